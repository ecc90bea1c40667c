// SPDX-License-Identifier: Apache-2.0
//! What is attached, on disk: one file per attachment, with the configuration that was used. DEL
//! and CHECK work from it, so they do the right thing after the configuration has changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::conf::{self, NetworkList};
use crate::network::{Attached, Error, chain};
use crate::types::AddResult;

const KIND: &str = "podwright-attachment/v1";
/// Extensions of a record's file, and of what is written to the side of it.
const RECORD: &str = "json";
const SIDE: &str = "tmp";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    kind: String,
    network: String,
    pub(crate) attachment: Attachment,
    list: Value,
    /// Of ADD; none when ADD did not come to its end.
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

    /// Written to the side and renamed, so that a reader sees the old one or the new one.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.attachment.container_id, &record.attachment.ifname);
        let side = side(&path);
        let text = serde_json::to_vec(record).expect("plain data always encodes");
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(&side, text))
            .and_then(|()| fs::rename(&side, &path))
            .map_err(|source| Error::State {
                what: "writing",
                path,
                source,
            })
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
    let record: Record = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
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
    fn what_a_killed_writer_leaves_goes() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        records.write(&record("a")).unwrap();
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
