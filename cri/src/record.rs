// SPDX-License-Identifier: Apache-2.0
//! Records on disk: one JSON file per object, with a version, one writer, replaced by rename.
//!
//! The configuration that the client sent is kept inside as its wire bytes (base64): CRI keeps
//! those readable across versions, and they are returned to clients as they came.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The file's name inside an object's directory.
pub(crate) const FILE: &str = "record.json";
/// The layout that this build writes. A newer one is refused, never guessed at.
pub(crate) const VERSION: u32 = 1;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{attempt} {}", path.display())]
    Io {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("parsing {}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has version {found}, this podwright reads up to {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

/// What the record of an object is about.
pub(crate) trait Subject {
    /// Whether the record tells something that outlives a power cut, such as an exit code. A power
    /// cut ends what still runs, and recovery takes an object with a damaged record apart; syncing
    /// the records of living things would only cost each start a millisecond or two.
    fn has_ended(&self) -> bool;
}

/// Replaces `<dir>/record.json`. It outlives this process; that of something that has ended is
/// synced and outlives a power cut as well.
///
/// # Errors
/// When the disk refuses. The former record is then still whole.
pub(crate) fn write<T: Serialize + Subject>(dir: &Path, record: &T) -> Result<(), RecordError> {
    let path = dir.join(FILE);
    let temporary = dir.join(".record.json.new");
    let io_error = |attempt| {
        let path = path.clone();
        move |source| RecordError::Io {
            attempt,
            path,
            source,
        }
    };
    let bytes = serde_json::to_vec_pretty(&Versioned {
        version: VERSION,
        record,
    })
    .map_err(|source| RecordError::Parse {
        path: path.clone(),
        source,
    })?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("creating"))?;
    file.write_all(&bytes).map_err(io_error("writing"))?;
    if record.has_ended() {
        file.sync_data().map_err(io_error("syncing"))?;
    }
    fs::rename(&temporary, &path).map_err(io_error("replacing"))
}

/// Reads `<dir>/record.json`; `None` when there is none.
///
/// # Errors
/// When it is there but unreadable, damaged or of a newer version.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path) -> Result<Option<T>, RecordError> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(RecordError::Io {
                attempt: "reading",
                path,
                source,
            });
        }
    };
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let parse = |source| RecordError::Parse {
        path: path.clone(),
        source,
    };
    let head: Head = serde_json::from_slice(&bytes).map_err(parse)?;
    if head.version > VERSION {
        return Err(RecordError::Version {
            path,
            found: head.version,
        });
    }
    let versioned: Versioned<T> = serde_json::from_slice(&bytes).map_err(parse)?;
    Ok(Some(versioned.record))
}

/// A CRI message inside a record.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Wire<M>(pub(crate) M);

impl<M: prost::Message> Serialize for Wire<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0.encode_to_vec()))
    }
}

impl<'de, M: prost::Message + Default> Deserialize<'de> for Wire<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        M::decode(bytes.as_slice())
            .map(Wire)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        id: String,
        config: Wire<v1::PodSandboxConfig>,
    }

    impl Subject for Sample {
        fn has_ended(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_record_survives_the_round_trip_and_absence_is_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read::<Sample>(dir.path()).unwrap().is_none());
        let sample = Sample {
            id: "a".into(),
            config: Wire(v1::PodSandboxConfig {
                hostname: "h".into(),
                ..Default::default()
            }),
        };
        write(dir.path(), &sample).unwrap();
        write(dir.path(), &sample).unwrap();
        assert_eq!(read::<Sample>(dir.path()).unwrap(), Some(sample));
    }

    #[test]
    fn a_newer_or_damaged_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), r#"{"version":99}"#).unwrap();
        let error = read::<Sample>(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Version { found: 99, .. }));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(
            read::<Sample>(dir.path()).unwrap_err(),
            RecordError::Parse { .. }
        ));
    }
}
