// SPDX-License-Identifier: Apache-2.0
//! Pod volumes on disk, and the mounts that hand them to the runtime.
//!
//! [`plan`] and [`payload`] decide from plain data what a volume is and which files it has;
//! the other modules act: [`directory`] (disk and tmpfs), [`atomic_writer`], [`host_path`],
//! [`subpath`], [`removal`]. [`Volumes`] is the manager that a pod's actor calls. It keeps no
//! state: what is on disk is the truth, so a kubelet that was killed continues where it was.

mod atomic_writer;
mod directory;
mod host_path;
mod hosts_file;
mod layout;
mod mounts;
mod payload;
mod plan;
mod removal;
mod subpath;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume, VolumeProjection};

use crate::env::{ObjectError, Objects};
use crate::node::NodeFacts;
use directory::Root;
use layout::PodDir;
use payload::{Defaults, Payload};
use plan::Source;

pub(crate) use directory::make_private;
pub use mounts::{ContainerMounts, MountContext, MountError};

/// How long the disk may take for one call.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where volumes live and which host files they are made from.
#[derive(Debug, Clone)]
pub struct VolumeDirs {
    /// `<data-dir>/kubelet`; pods live in `pods/<uid>` below it.
    pub kubelet_dir: PathBuf,
    /// The node's own hosts file, for pods on the host network (`/etc/hosts`).
    pub node_hosts_file: PathBuf,
}

/// Why something about a pod's volumes failed. The text is that of upstream's `FailedMount`
/// event, cause included, because an event has no chain of causes.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// One volume could not be made.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    SetUp {
        /// The volume's name in the pod.
        volume: String,
        /// What went wrong.
        cause: SetUpError,
    },
    /// A pod's directory could not be taken away.
    #[error("removing the volumes of pod {uid:?} : {cause}")]
    TearDown {
        /// The pod.
        uid: String,
        /// What went wrong.
        cause: SetUpError,
    },
    /// The uid can't be a directory's name.
    #[error("pod uid {0:?} is not a valid name")]
    Uid(String),
    /// The disk did not answer in time; the work goes on behind, and the next call waits for it.
    #[error("volumes of pod {uid:?}: no result within {seconds} s")]
    Late {
        /// The pod.
        uid: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// What goes wrong inside of one volume.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The manifest asks for something that can't be had, by name.
    #[error("{0}")]
    Refused(String),
    /// An object is missing or can't be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The file system.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SetUpError {
    move |source| SetUpError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// One volume, ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedVolume {
    /// The host directory, file, socket or device.
    pub path: PathBuf,
    /// Content that containers never write (configMap, secret, downwardAPI, projected).
    pub read_only: bool,
}

/// What [`Volumes::prepare`] made: a path per volume name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreparedVolumes {
    /// By name of the volume.
    pub volumes: BTreeMap<String, PreparedVolume>,
    /// Remarks for the user, each fit for an event: accepted fields that have no effect yet.
    pub notes: Vec<String>,
}

type Locks = Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>;

/// The volume manager. Cheap to clone; one per kubelet.
///
/// Calls for the same pod wait for each other. Dropping a call is safe: work on the disk that
/// has begun is finished in the background, and the next call waits for it.
#[derive(Clone)]
pub struct Volumes {
    dirs: VolumeDirs,
    objects: Arc<dyn Objects>,
    node: Arc<NodeFacts>,
    locks: Arc<Locks>,
}

impl Volumes {
    /// Nothing is touched on disk yet.
    #[must_use]
    pub fn new(dirs: VolumeDirs, objects: Arc<dyn Objects>, node: Arc<NodeFacts>) -> Self {
        Self {
            dirs,
            objects,
            node,
            locks: Arc::default(),
        }
    }

    /// Makes every volume of the pod. Idempotent; call again after a failure.
    ///
    /// # Errors
    /// The text is ready for a `FailedMount` event.
    pub async fn prepare(&self, pod: &Pod) -> Result<PreparedVolumes, VolumeError> {
        let mut prepared = PreparedVolumes::default();
        let (uid, dir) = self.pod_dir(pod)?;
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
        for volume in volumes.unwrap_or_default() {
            let (made, note) = self.prepare_one(pod, &uid, &dir, volume).await?;
            prepared.notes.extend(note);
            prepared.volumes.insert(volume.name.clone(), made);
        }
        Ok(prepared)
    }

    /// Brings configMap, secret, downwardAPI and projected content up to date, by an atomic swap.
    /// Only volumes that were prepared before are touched.
    ///
    /// # Errors
    /// As [`Volumes::prepare`]; the previous content stays in place.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        let (uid, dir) = self.pod_dir(pod)?;
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
        for volume in volumes.unwrap_or_default() {
            let Ok(source) = plan::source(pod, volume, &self.node) else {
                continue;
            };
            let mark = dir.ready_mark(source.plugin(), &volume.name);
            if source.is_payload() && mark.exists() {
                self.prepare_one(pod, &uid, &dir, volume).await?;
            }
        }
        Ok(())
    }

    /// The mounts of one container, for one start of it.
    ///
    /// # Errors
    /// A volume that was not prepared, a `subPath` that leaves its volume, a refused field.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        prepared: &PreparedVolumes,
        context: MountContext<'_>,
    ) -> Result<ContainerMounts, MountError> {
        let refuse = |error: VolumeError| MountError::Files(error.to_string());
        let (uid, dir) = self.pod_dir(pod).map_err(refuse)?;
        let (pod, container) = (pod.clone(), container.clone());
        let prepared = prepared.clone();
        let (env, ips) = (context.env.to_vec(), context.pod_ips.to_vec());
        let (hostname, domain) = (context.hostname.to_owned(), context.host_domain.to_owned());
        let node_hosts_file = self.dirs.node_hosts_file.clone();
        let recursive_read_only_mounts = context.recursive_read_only_mounts;
        self.on_disk(&uid, move || {
            mounts::Maker {
                pod: &pod,
                container: &container,
                dir: &dir,
                prepared: &prepared,
                context: MountContext {
                    env: &env,
                    pod_ips: &ips,
                    hostname: &hostname,
                    host_domain: &domain,
                    recursive_read_only_mounts,
                },
                node_hosts_file: &node_hosts_file,
            }
            .make()
        })
        .await
        .map_err(refuse)?
    }

    /// Unmounts and removes everything of a pod. Idempotent. Call it when no container is left.
    ///
    /// # Errors
    /// What could not be removed; call again later.
    pub async fn teardown(&self, uid: &str) -> Result<(), VolumeError> {
        let dir = PodDir::new(&self.dirs.kubelet_dir, uid)
            .ok_or_else(|| VolumeError::Uid(uid.to_owned()))?;
        self.on_disk(uid, move || removal::remove_pod_dir(dir.path()))
            .await?
            .map_err(|cause| VolumeError::TearDown {
                uid: uid.to_owned(),
                cause,
            })
    }

    /// Removes the directories of pods that are not in `known`; returns the uids that it removed.
    /// For the start of the kubelet, after a crash too, and every few minutes.
    ///
    /// # Errors
    /// The directory of pods cannot be read. A pod that cannot be removed is logged and skipped.
    pub async fn reconcile(&self, known: &BTreeSet<String>) -> Result<Vec<String>, VolumeError> {
        let pods = layout::pods(&self.dirs.kubelet_dir);
        let found = self
            .on_disk("", move || list_pods(&pods))
            .await?
            .map_err(|cause| VolumeError::TearDown {
                uid: String::new(),
                cause,
            })?;
        let mut removed = Vec::new();
        for uid in found.into_iter().filter(|uid| !known.contains(uid)) {
            match self.teardown(&uid).await {
                Ok(()) => removed.push(uid),
                Err(error) => tracing::warn!(uid, %error, "an orphaned pod's volumes stay"),
            }
        }
        Ok(removed)
    }

    fn pod_dir(&self, pod: &Pod) -> Result<(String, PodDir), VolumeError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match PodDir::new(&self.dirs.kubelet_dir, &uid) {
            Some(dir) => Ok((uid, dir)),
            None => Err(VolumeError::Uid(uid)),
        }
    }

    async fn prepare_one(
        &self,
        pod: &Pod,
        uid: &str,
        dir: &PodDir,
        volume: &Volume,
    ) -> Result<(PreparedVolume, Option<String>), VolumeError> {
        let failed = |cause| VolumeError::SetUp {
            volume: volume.name.clone(),
            cause,
        };
        if !layout::is_plain_name(&volume.name) {
            let text = "the volume's name is not a valid file name".to_owned();
            return Err(failed(SetUpError::Refused(text)));
        }
        let group = fs_group(pod).map_err(failed)?;
        let source = plan::source(pod, volume, &self.node).map_err(failed)?;
        let path = dir.volume(source.plugin(), &volume.name);
        let mark = dir.ready_mark(source.plugin(), &volume.name);
        let prepared = |path, read_only| PreparedVolume { path, read_only };
        match source {
            Source::HostPath(source) => {
                let source = source.clone();
                let set_up = move || host_path::set_up(&source);
                let path = self.on_disk(uid, set_up).await?.map_err(failed)?;
                Ok((prepared(path, false), None))
            }
            Source::EmptyDir(empty) => {
                let root = Root {
                    tmpfs_bytes: empty.memory_bytes,
                    mode: empty.mode,
                    group,
                    writable: true,
                };
                let target = path.clone();
                let set_up = move || directory::set_up(&target, &mark, root);
                self.on_disk(uid, set_up).await?.map_err(failed)?;
                let note = empty.unenforced_limit.map(|limit| {
                    format!(
                        "emptyDir volume {:?}: sizeLimit {limit} on disk is not enforced",
                        volume.name
                    )
                });
                Ok((prepared(path, false), note))
            }
            source => {
                let payload = self.payload(pod, &source).await.map_err(failed)?;
                let root = Root {
                    tmpfs_bytes: source.on_tmpfs().then_some(0),
                    mode: 0o777,
                    group,
                    writable: false,
                };
                let target = path.clone();
                let set_up = move || {
                    directory::set_up(&target, &mark, root)?;
                    atomic_writer::write(&target, &payload, group)
                };
                self.on_disk(uid, set_up).await?.map_err(failed)?;
                Ok((prepared(path, true), None))
            }
        }
    }

    /// Reads the objects that a volume names, and turns them into files.
    async fn payload(&self, pod: &Pod, source: &Source<'_>) -> Result<Payload, SetUpError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        match source {
            Source::ConfigMap(source) => {
                let optional = source.optional == Some(true);
                let map = self.config_map(namespace, &source.name, optional).await?;
                let defaults = Defaults::new(source.default_mode, source.default_user)?;
                payload::config_map(map.as_deref(), source.items.as_deref(), optional, defaults)
            }
            Source::Secret(source) => {
                let optional = source.optional == Some(true);
                let name = source.secret_name.as_deref().unwrap_or_default();
                let secret = self.secret(namespace, name, optional).await?;
                let defaults = Defaults::new(source.default_mode, source.default_user)?;
                payload::secret(
                    secret.as_deref(),
                    source.items.as_deref(),
                    optional,
                    defaults,
                )
            }
            Source::DownwardApi(source) => {
                let defaults = Defaults::new(source.default_mode, source.default_user)?;
                payload::downward_api(pod, source.items.as_deref(), &self.node, defaults)
            }
            Source::Projected(source) => {
                let defaults = Defaults::new(source.default_mode, source.default_user)?;
                let mut files = Payload::new();
                for part in source.sources.iter().flatten() {
                    files.extend(self.projection(pod, namespace, part, defaults).await?);
                }
                Ok(files)
            }
            Source::EmptyDir(_) | Source::HostPath(_) => Ok(Payload::new()),
        }
    }

    async fn projection(
        &self,
        pod: &Pod,
        namespace: &str,
        part: &VolumeProjection,
        defaults: Defaults,
    ) -> Result<Payload, SetUpError> {
        if let Some(name) = payload::unsupported_projection(part) {
            let text = format!("projected volume source {name:?} is not supported");
            return Err(SetUpError::Refused(text));
        }
        let mut files = Payload::new();
        if let Some(source) = &part.config_map {
            let optional = source.optional == Some(true);
            let map = self.config_map(namespace, &source.name, optional).await?;
            let items = source.items.as_deref();
            files.extend(payload::config_map(
                map.as_deref(),
                items,
                optional,
                defaults,
            )?);
        }
        if let Some(source) = &part.secret {
            let optional = source.optional == Some(true);
            let secret = self.secret(namespace, &source.name, optional).await?;
            let items = source.items.as_deref();
            files.extend(payload::secret(
                secret.as_deref(),
                items,
                optional,
                defaults,
            )?);
        }
        if let Some(source) = &part.downward_api {
            let items = source.items.as_deref();
            files.extend(payload::downward_api(pod, items, &self.node, defaults)?);
        }
        Ok(files)
    }

    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        excuse(self.objects.config_map(namespace, name).await, optional)
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<Arc<Secret>>, ObjectError> {
        excuse(self.objects.secret(namespace, name).await, optional)
    }

    /// Runs disk work off the executor, one at a time per pod. The lock goes with the work, so
    /// it is held until the work ends even when the caller is gone.
    async fn on_disk<T: Send + 'static>(
        &self,
        uid: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, VolumeError> {
        let late = || VolumeError::Late {
            uid: uid.to_owned(),
            seconds: DEADLINE.as_secs(),
        };
        let lock = self.lock(uid);
        let run = async move {
            let guard = lock.lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let result = work();
                drop(guard);
                result
            })
            .await
        };
        match tokio::time::timeout(DEADLINE, run).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panicked)) if panicked.is_panic() => {
                std::panic::resume_unwind(panicked.into_panic())
            }
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    fn lock(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(uid).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(uid.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

fn excuse<T>(
    object: Result<Arc<T>, ObjectError>,
    optional: bool,
) -> Result<Option<Arc<T>>, ObjectError> {
    match object {
        Ok(object) => Ok(Some(object)),
        Err(error) if optional && error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn fs_group(pod: &Pod) -> Result<Option<u32>, SetUpError> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let group = context.and_then(|context| context.fs_group);
    group
        .map(|group| {
            u32::try_from(group)
                .map_err(|_| SetUpError::Refused(format!("fsGroup {group} is not a group id")))
        })
        .transpose()
}

/// Unmounts and removes the directories of all pods below a kubelet's directory, and their logs.
/// For a node that is given up: no kubelet may be running on it. Idempotent.
///
/// # Errors
/// The first directory that could not be read or removed; call again later.
pub fn purge(kubelet_dir: &Path, pod_logs_dir: &Path) -> Result<(), VolumeError> {
    let tear_down = |uid: &str| {
        let uid = uid.to_owned();
        move |cause| VolumeError::TearDown { uid, cause }
    };
    for uid in list_pods(&layout::pods(kubelet_dir)).map_err(tear_down(""))? {
        let dir = PodDir::new(kubelet_dir, &uid).ok_or_else(|| VolumeError::Uid(uid.clone()))?;
        removal::remove_pod_dir(dir.path()).map_err(tear_down(&uid))?;
        for logs in list_pods(pod_logs_dir).map_err(tear_down(&uid))? {
            // <namespace>_<name>_<uid>, and no name has an underscore in it.
            if logs.rsplit('_').next() == Some(&uid) {
                removal::remove_pod_dir(&pod_logs_dir.join(logs)).map_err(tear_down(&uid))?;
            }
        }
    }
    Ok(())
}

/// The directory of one pod; none when the uid is not a plain file name.
pub(crate) fn pod_dir(kubelet_dir: &Path, uid: &str) -> Option<PathBuf> {
    PodDir::new(kubelet_dir, uid).map(|dir| dir.path().to_owned())
}

/// Every pod that has a directory: (uid, directory).
///
/// # Errors
/// The directory of pods cannot be read.
pub(crate) fn pod_dirs(kubelet_dir: &Path) -> Result<Vec<(String, PathBuf)>, SetUpError> {
    let uids = list_pods(&layout::pods(kubelet_dir))?.into_iter();
    Ok(uids
        .filter_map(|uid| pod_dir(kubelet_dir, &uid).map(|dir| (uid, dir)))
        .collect())
}

fn list_pods(pods: &Path) -> Result<Vec<String>, SetUpError> {
    let entries = match fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("reading", pods)(error)),
    };
    let mut uids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at("reading", pods))?;
        uids.extend(entry.file_name().into_string());
    }
    uids.sort();
    Ok(uids)
}
