// SPDX-License-Identifier: Apache-2.0
//! What is attached, on disk: one file per attachment, with the configuration that was used. DEL
//! and CHECK work from it, so they do the right thing after the configuration has changed.
//!
//! The first line is the [`Record`], the last one the result so far. A line without its end was being
//! written when the machine stopped, and does not count.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::conf::{self, NetworkList};
use crate::network::{Attached, Error, chain};
use crate::types::AddResult;

const KIND: &str = "podwright-attachment/v2";
/// Extensions of a record's file, and of what is written to the side of it.
const RECORD: &str = "json";
const SIDE: &str = "tmp";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    kind: String,
    network: String,
    pub(crate) attachment: Attachment,
    list: Value,
    /// Of ADD, as far as it has got.
    #[serde(skip)]
    pub(crate) result: Option<AddResult>,
}

impl Record {
    pub(crate) fn new(attachment: &Attachment, list: &NetworkList) -> Record {
        Record {
            kind: KIND.to_owned(),
            network: list.name.clone(),
            attachment: attachment.clone(),
            list: list.raw.clone(),
            result: None,
        }
    }

    /// The configuration as it was used.
    pub(crate) fn raw_list(&self) -> &Value {
        &self.list
    }

    pub(crate) fn list(&self) -> Result<NetworkList, Error> {
        conf::parse(self.list.clone()).map_err(|e| {
            Error::Config(format!(
                "as attached, of container {}: {e}",
                self.attachment.container_id
            ))
        })
    }
}

impl From<Record> for Attached {
    fn from(record: Record) -> Attached {
        Attached {
            network: record.network,
            attachment: record.attachment,
            result: record.result,
        }
    }
}

/// The directory of records, below that of state.
pub(crate) const RESULTS: &str = "results";
const ENDING: &str = ".json";

/// The name of the attachment whose record has this file name.
pub(crate) fn name(file: &str) -> Option<&str> {
    file.strip_suffix(ENDING)
}

/// The directory of records.
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn new(dir: &Path) -> Records {
        Records {
            dir: dir.to_owned(),
        }
    }

    /// Both parts have been checked: no '/' in either.
    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{container_id}-{ifname}{ENDING}"))
    }

    /// Write a record that has no result yet: to the side and renamed, so that nobody reads half of
    /// it.
    pub(crate) fn begin(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.attachment.container_id, &record.attachment.ifname);
        let side = side(&path);
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(&side, line(record)))
            .and_then(|()| fs::rename(&side, &path))
            .map_err(|source| writing(path, source))
    }

    /// Add the record's result to its file. Not by another file in its place: ext4 writes that out
    /// at once, so that the name never leads to an empty file, and every ADD would wait for it.
    pub(crate) fn add_result(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.attachment.container_id, &record.attachment.ifname);
        let mut options = fs::OpenOptions::new();
        let file = options.append(true).open(&path);
        file.and_then(|mut file| file.write_all(&line(&record.result)))
            .map_err(|source| writing(path, source))
    }

    pub(crate) fn find(&self, container_id: &str, ifname: &str) -> Result<Option<Record>, Error> {
        read(&self.path(container_id, ifname))
    }

    pub(crate) fn remove(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.attachment.container_id, &record.attachment.ifname);
        // Left by a writer that was killed. Absent as a rule; what stays, `all` removes.
        let _ = fs::remove_file(side(&path));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::State {
                what: "removing",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Every record. One that cannot be read (the disk was full, the power failed) is no reason to
    /// stop; it is removed if it is of no attachment in `valid`, which then has nothing but it. So is
    /// one that a killed writer did not finish.
    pub(crate) fn all(&self, valid: &[(String, String)]) -> Result<Vec<Record>, Error> {
        let is_valid = |path: &Path| {
            valid
                .iter()
                .any(|(id, ifname)| self.path(id, ifname) == path)
        };
        for unfinished in self.paths(SIDE)? {
            if !is_valid(&unfinished.with_extension(RECORD)) {
                // What stays is looked at again next time.
                let _ = fs::remove_file(&unfinished);
            }
        }
        let mut records = Vec::new();
        for path in self.paths(RECORD)? {
            match read(&path) {
                Ok(record) => records.extend(record),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "passing over an attachment's record");
                    if !is_valid(&path) {
                        let _ = fs::remove_file(&path);
                    }
                }
            }
        }
        Ok(records)
    }

    /// Every record that can be read.
    pub(crate) fn readable(&self) -> Result<Vec<Record>, Error> {
        let paths = self.paths(RECORD)?.into_iter();
        Ok(paths
            .filter_map(|path| read(&path).ok().flatten())
            .collect())
    }

    /// Every record that can be read, with the name of its attachment.
    pub(crate) fn named(&self) -> Result<Vec<(String, Record)>, Error> {
        let paths = self.paths(RECORD)?.into_iter();
        let one = |path: PathBuf| {
            let name = path.file_name()?.to_str().and_then(name)?;
            Some((name.to_owned(), read(&path).ok().flatten()?))
        };
        Ok(paths.filter_map(one).collect())
    }

    /// The record of an attachment that [`name`] gave a name.
    pub(crate) fn by_name(&self, name: &str) -> Result<Option<Record>, Error> {
        read(&self.dir.join(format!("{name}{ENDING}")))
    }

    /// Files with this extension.
    fn paths(&self, extension: &str) -> Result<Vec<PathBuf>, Error> {
        let unreadable = |source| Error::State {
            what: "reading",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(unreadable)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|e| e == extension) {
                paths.push(path);
            }
        }
        Ok(paths)
    }
}

fn side(path: &Path) -> PathBuf {
    path.with_extension(SIDE)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).expect("plain data always encodes");
    text.push(b'\n');
    text
}

fn writing(path: PathBuf, source: io::Error) -> Error {
    Error::State {
        what: "writing",
        path,
        source,
    }
}

fn read(path: &Path) -> Result<Option<Record>, Error> {
    let failed = |source| Error::State {
        what: "reading",
        path: path.to_owned(),
        source,
    };
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n');
    let mut lines = text[..whole.unwrap_or(0)].split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut record: Record = serde_json::from_slice(first).map_err(|e| failed(e.into()))?;
    if let Some(last) = lines.next_back() {
        record.result = serde_json::from_slice(last).map_err(|e| failed(e.into()))?;
    }
    if record.kind != KIND {
        let text = format!("kind {:?} is not {KIND}", record.kind);
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
    }
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            kind: KIND.to_owned(),
            network: "n".to_owned(),
            attachment: Attachment {
                container_id: id.to_owned(),
                netns: "/run/netns/x".into(),
                ifname: "eth0".to_owned(),
                pod_name: String::new(),
                pod_namespace: String::new(),
                pod_uid: String::new(),
                capabilities: Default::default(),
            },
            list: Value::Null,
            result: None,
        }
    }

    #[test]
    fn the_last_whole_result_counts() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        let mut record = record("a");
        records.begin(&record).unwrap();
        let found = || records.find("a", "eth0").unwrap().expect("a record");
        assert_eq!(found().result, None);
        for address in ["10.0.0.1/24", "10.0.0.2/24"] {
            let result = serde_json::json!({"ips": [{"address": address}]});
            record.result = Some(serde_json::from_value(result).unwrap());
            records.add_result(&record).unwrap();
            assert_eq!(found().result, record.result);
        }
        let path = records.path("a", "eth0");
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"ips\":");
        fs::write(&path, text).unwrap();
        assert_eq!(found().result, record.result, "half a line");
        for text in ["", "{", "\n"] {
            fs::write(&path, text).unwrap();
            records.find("a", "eth0").expect_err(text);
        }
    }

    #[test]
    fn what_a_killed_writer_leaves_goes() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        records.begin(&record("a")).unwrap();
        for id in ["a", "making", "gone"] {
            fs::write(side(&records.path(id, "eth0")), "{").unwrap();
        }
        let valid = ["a", "making"].map(|id| (id.to_owned(), "eth0".to_owned()));
        assert_eq!(records.all(&valid).unwrap().len(), 1);
        let names = || -> Vec<String> {
            let entries = fs::read_dir(dir.path()).unwrap().flatten();
            let mut names: Vec<_> = entries
                .map(|e| e.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a-eth0.json", "a-eth0.tmp", "making-eth0.tmp"]);
        records.remove(&record("a")).unwrap();
        assert_eq!(names(), ["making-eth0.tmp"]);
        assert_eq!(records.all(&[]).unwrap().len(), 0);
        assert_eq!(names(), Vec::<String>::new());
    }
}
