// SPDX-License-Identifier: Apache-2.0
//! User namespaces of pods with `hostUsers: false`: each gets ids of its own.
//!
//! [`subids`] reads which ids the node gives away, [`pool`] decides who gets which; this module
//! keeps a record in each pod's directory, in upstream's form, so that the ids of a running pod are
//! known after a restart. A pod's ids are free again when its directory is gone.

mod pool;
mod subids;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::config::UserNamespaceSettings;
use crate::cri_v1 as cri;
use crate::pod::spec;
use crate::volumes;
use pool::{Pool, Range};

/// The record's name in the pod's directory.
const RECORD: &str = "userns";

/// Why a pod has no user namespace, or why the node can give none.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// The configured ids cannot be used.
    #[error("kubelet mappings: {0}")]
    Configured(String),
    /// The runtime, or the handler of the pod's RuntimeClass, cannot do it.
    #[error("can't set `spec.hostUsers: false`, {} does not support user namespaces", named(.handler))]
    Unsupported {
        /// The handler; empty for the default one.
        handler: String,
    },
    /// The runtime does not have the handler of the pod's RuntimeClass.
    #[error(
        "can't set `spec.hostUsers: false`, {} does not support user namespaces: the handler {handler:?} is not known",
        named(.handler)
    )]
    UnknownHandler {
        /// The handler.
        handler: String,
    },
    /// No range is free.
    #[error("create user namespace: {0}")]
    Exhausted(String),
    /// The uid cannot be a directory's name.
    #[error("create user namespace: pod uid {0:?} is not a valid name")]
    Uid(String),
    /// A record that says something impossible.
    #[error("record pod mappings for existing pod {uid:?}: {why}")]
    Record {
        /// The pod.
        uid: String,
        /// What is wrong.
        why: String,
    },
    /// The disk.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pods' directories.
    #[error(transparent)]
    Directory(#[from] volumes::SetUpError),
    /// The work on the disk ended abnormally.
    #[error("create user namespace: the work on the disk ended abnormally")]
    Lost,
}

fn named(handler: &str) -> String {
    match handler {
        "" => "runtime".to_owned(),
        handler => format!("RuntimeClass handler {handler:?}"),
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UsernsError {
    move |source| UsernsError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// One record: the layout of upstream's `userns` file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Record {
    fn new(range: Range) -> Self {
        let all = vec![Mapping {
            host_id: range.first,
            container_id: 0,
            length: range.length,
        }];
        Self {
            uid_mappings: all.clone(),
            gid_mappings: all,
        }
    }

    /// The range, if it is one that we would have written.
    fn range(&self) -> Result<Range, String> {
        match (self.uid_mappings.as_slice(), self.gid_mappings.as_slice()) {
            ([uids], [gids]) if uids != gids => {
                Err("GID and UID mapping should be identical".to_owned())
            }
            ([one], [_]) if one.container_id != 0 => Err("UID 0 must be mapped".to_owned()),
            ([one], [_]) if one.length == 0 || one.host_id == 0 => {
                Err(format!("{} ids from {} on", one.length, one.host_id))
            }
            ([one], [_]) => Ok(Range {
                first: one.host_id,
                length: one.length,
            }),
            _ => Err("no more than one mapping allowed".to_owned()),
        }
    }
}

/// Gives pods their ids. One per kubelet; it is the only one that writes the records.
#[derive(Debug)]
pub struct UserNamespaces {
    kubelet_dir: PathBuf,
    pool: Mutex<Pool>,
}

impl UserNamespaces {
    /// Reads the node's configuration and the records of pods that are there.
    ///
    /// # Errors
    /// Ids that cannot be used; a record that cannot be read or believed: going on could give one
    /// pod's ids to another.
    pub fn open(
        kubelet_dir: &Path,
        settings: &UserNamespaceSettings,
        max_pods: u32,
    ) -> Result<Self, UsernsError> {
        let uid = subids::uid_of_user(&text_of(&settings.passwd_file)?);
        let (subuid, subgid) = (
            text_of(&settings.subuid_file)?,
            text_of(&settings.subgid_file)?,
        );
        let ids = settings.ids_per_pod;
        let space = subids::range(&subuid, &subgid, uid)
            .map_err(UsernsError::Configured)?
            .unwrap_or_else(|| pool::default_space(ids));
        let mut pool = Pool::new(space, ids, max_pods).map_err(UsernsError::Configured)?;
        for (uid, dir) in volumes::pod_dirs(kubelet_dir)? {
            if let Some(range) = read(&uid, &dir.join(RECORD))? {
                let taken = pool.record(&uid, range);
                taken.map_err(|why| UsernsError::Record { uid, why })?;
            }
        }
        Ok(Self {
            kubelet_dir: kubelet_dir.to_owned(),
            pool: Mutex::new(pool),
        })
    }

    /// A poisoned lock means that somebody died between two whole values.
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the runtime is told about a pod. A pod that should have ids and has none (its record is
    /// lost) is described without, which every runtime refuses.
    pub fn of(&self, pod: &Pod) -> cri::UserNamespace {
        if spec::host_users(pod) {
            return cri::UserNamespace {
                mode: cri::NamespaceMode::Node.into(),
                ..Default::default()
            };
        }
        let range = self.pool().of(spec::uid(pod));
        let ids: Vec<cri::IdMapping> = range
            .map(|range| cri::IdMapping {
                host_id: range.first,
                container_id: 0,
                length: range.length,
            })
            .into_iter()
            .collect();
        cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: ids.clone(),
            gids: ids,
        }
    }

    /// Makes sure that a pod which needs ids has them, and that they are on record. Idempotent. The
    /// pod's handler in the runtime says what it can do; `None`: there is no such handler.
    ///
    /// # Errors
    /// The handler cannot do it, none are free, or the record cannot be written.
    pub async fn ensure(
        self: &Arc<Self>,
        pod: &Pod,
        handler: &str,
        features: Option<cri::RuntimeHandlerFeatures>,
    ) -> Result<(), UsernsError> {
        if spec::host_users(pod) {
            return Ok(());
        }
        let handler = || handler.to_owned();
        match features {
            Some(features) if features.user_namespaces => {}
            Some(_) => return Err(UsernsError::Unsupported { handler: handler() }),
            None => return Err(UsernsError::UnknownHandler { handler: handler() }),
        }
        let (all, uid) = (Arc::clone(self), spec::uid(pod).to_owned());
        tokio::task::spawn_blocking(move || all.ensure_on_disk(&uid))
            .await
            .map_err(|_| UsernsError::Lost)?
    }

    fn ensure_on_disk(&self, uid: &str) -> Result<(), UsernsError> {
        let dir = volumes::pod_dir(&self.kubelet_dir, uid)
            .ok_or_else(|| UsernsError::Uid(uid.to_owned()))?;
        let path = dir.join(RECORD);
        let (had, range) = {
            let mut pool = self.pool();
            (
                pool.of(uid),
                pool.take(uid).map_err(UsernsError::Exhausted)?,
            )
        };
        if had.is_some() && path.exists() {
            return Ok(());
        }
        let written = write(&dir, &path, &Record::new(range));
        if written.is_err() && had.is_none() {
            self.release(uid);
        }
        written
    }

    /// The pod's directory is gone and nothing of it runs: others may have its ids.
    pub fn release(&self, uid: &str) {
        self.pool().release(uid);
    }
}

/// The text of a file of the node; an absent one is empty.
fn text_of(path: &Path) -> Result<String, UsernsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(at("reading", path)(error)),
    }
}

fn read(uid: &str, path: &Path) -> Result<Option<Range>, UsernsError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("reading", path)(error)),
    };
    let wrong = |why: String| UsernsError::Record {
        uid: uid.to_owned(),
        why: format!("invalid user namespace mappings file: {why}"),
    };
    let record: Record = serde_json::from_slice(&bytes).map_err(|why| wrong(why.to_string()))?;
    record.range().map(Some).map_err(wrong)
}

/// Replaces the record; it has outlived a power failure when this returns.
fn write(dir: &Path, path: &Path, record: &Record) -> Result<(), UsernsError> {
    volumes::make_private(dir)?;
    let temporary = dir.join(".userns.new");
    let bytes = serde_json::to_vec(record).map_err(|error| at("encoding", path)(error.into()))?;
    let mut file = fs::File::create(&temporary).map_err(at("creating", &temporary))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_data())
        .map_err(at("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(at("renaming to", path))?;
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(at("syncing", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    fn settings(dir: &Path) -> UserNamespaceSettings {
        UserNamespaceSettings {
            ids_per_pod: 65536,
            subuid_file: dir.join("subuid"),
            subgid_file: dir.join("subgid"),
            passwd_file: dir.join("passwd"),
        }
    }

    fn open(dir: &Path) -> Result<Arc<UserNamespaces>, UsernsError> {
        UserNamespaces::open(&dir.join("kubelet"), &settings(dir), 1).map(Arc::new)
    }

    fn features(user_namespaces: bool) -> Option<cri::RuntimeHandlerFeatures> {
        Some(cri::RuntimeHandlerFeatures {
            user_namespaces,
            ..Default::default()
        })
    }

    async fn ensure(all: &Arc<UserNamespaces>, pod: &Pod) -> Result<(), UsernsError> {
        all.ensure(pod, "", features(true)).await
    }

    fn with_uid(uid: &str) -> Pod {
        let mut pod = pod("hostUsers: false\ncontainers: [{name: a, image: x}]");
        pod.metadata.uid = Some(uid.to_owned());
        pod
    }

    #[tokio::test]
    async fn ids_are_on_record_before_they_are_used_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["subuid", "subgid"] {
            fs::write(dir.path().join(name), "kubelet:131072:131072\n").expect("writes");
        }
        let all = open(dir.path()).expect("opens");
        let (a, b, c) = (with_uid("a"), with_uid("b"), with_uid("c"));
        ensure(&all, &a).await.expect("one is free");
        ensure(&all, &b).await.expect("another is free");
        let mapping = all.of(&a);
        assert_eq!(mapping.mode(), cri::NamespaceMode::Pod);
        assert_eq!(mapping.uids, mapping.gids);
        assert_eq!(mapping.uids[0].host_id, 131_072);
        let full = ensure(&all, &c).await.expect_err("none is free");
        assert_eq!(
            full.to_string(),
            "create user namespace: could not find an empty slot to allocate a user namespace"
        );

        let again = open(dir.path()).expect("opens");
        assert_eq!(again.of(&a), mapping);
        assert_eq!(again.of(&b), all.of(&b));
        fs::remove_dir_all(dir.path().join("kubelet/pods/a")).expect("removes");
        again.release("a");
        ensure(&again, &c).await.expect("the first one's ids");
        assert_eq!(again.of(&c), mapping);
    }

    #[tokio::test]
    async fn a_runtime_without_user_namespaces_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = open(dir.path()).expect("opens");
        let refusal = async |handler, features| {
            let refused = all.ensure(&with_uid("a"), handler, features).await;
            refused.expect_err("refused").to_string()
        };
        assert_eq!(
            refusal("", features(false)).await,
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        let of_class = "can't set `spec.hostUsers: false`, RuntimeClass handler \"kata\" does not support user namespaces";
        assert_eq!(refusal("kata", features(false)).await, of_class);
        assert_eq!(
            refusal("kata", None).await,
            format!("{of_class}: the handler \"kata\" is not known")
        );
        let plain = pod("containers: [{name: a, image: x}]");
        ensure(&all, &plain).await.expect("nothing to do");
        assert_eq!(all.of(&plain).mode(), cri::NamespaceMode::Node);
    }

    #[test]
    fn a_record_that_cannot_be_believed_stops_the_kubelet() {
        for text in [
            "{",
            r#"{"uidMappings":[],"gidMappings":[]}"#,
            r#"{"uidMappings":[{"hostId":65536,"containerId":1,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":1,"length":65536}]}"#,
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let pod = dir.path().join("kubelet/pods/a");
            fs::create_dir_all(&pod).expect("creates");
            fs::write(pod.join(RECORD), text).expect("writes");
            let error = open(dir.path()).expect_err("refused").to_string();
            assert!(error.contains("existing pod \"a\""), "{error}");
        }
    }
}
