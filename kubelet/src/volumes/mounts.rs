// SPDX-License-Identifier: Apache-2.0
//! The mounts of one container: volumes, the managed `/etc/hosts`, the termination log.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::directory::make_private;
use super::layout::PodDir;
use super::{PreparedVolume, PreparedVolumes, SetUpError, at, hosts_file, subpath};
use crate::cri_v1::{Mount, MountPropagation};
use crate::env::expand_strict;

const HOSTS_PATH: &str = "/etc/hosts";
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";
/// The running container's termination log and the one before it; older ones are removed.
const KEPT_TERMINATION_LOGS: usize = 2;
const BIND_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// Why the mounts of a container could not be made: `CreateContainerConfigError`.
/// The texts are upstream's and name nothing of the node's files.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The manifest names a volume that the pod does not have.
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume {
        /// The name in `volumeMounts`.
        volume: String,
        /// The container.
        container: String,
    },
    /// A `subPath` that cannot be resolved within its volume.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        /// The name in `volumeMounts`.
        volume: String,
        /// The container.
        container: String,
    },
    /// A field that is refused, by name.
    #[error("{0}")]
    Refused(String),
    /// The kubelet's own files could not be written.
    #[error("{0}")]
    Files(String),
}

impl From<SetUpError> for MountError {
    fn from(error: SetUpError) -> Self {
        Self::Files(error.to_string())
    }
}

/// What is known about a container at the moment when its mounts are made.
#[derive(Debug, Clone, Copy)]
pub struct MountContext<'a> {
    /// The container's environment, for `subPathExpr`.
    pub env: &'a [(String, String)],
    /// The pod's addresses; empty before the sandbox has any.
    pub pod_ips: &'a [IpAddr],
    /// The pod's host name, as given to the sandbox.
    pub hostname: &'a str,
    /// `<subdomain>.<namespace>.svc.<cluster domain>` when the pod has a subdomain, else empty.
    pub host_domain: &'a str,
    /// What the runtime says in `Status.runtime_handlers[].features`.
    pub recursive_read_only_mounts: bool,
}

/// The mounts of one container, and where its termination message will be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerMounts {
    /// In the order of `volumeMounts`, then `/etc/hosts`, then the termination log.
    pub mounts: Vec<Mount>,
    /// The host file behind `terminationMessagePath`; new for every start of a container.
    pub termination_log: PathBuf,
}

/// Everything that does not depend on one mount.
pub(super) struct Maker<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) dir: &'a PodDir,
    pub(super) prepared: &'a PreparedVolumes,
    pub(super) context: MountContext<'a>,
    pub(super) node_hosts_file: &'a Path,
}

impl Maker<'_> {
    pub(super) fn make(&self) -> Result<ContainerMounts, MountError> {
        if self.container.volume_devices.iter().flatten().count() > 0 {
            let text = "volumeDevices (raw block volumes) are not supported";
            return Err(MountError::Refused(text.to_owned()));
        }
        let wanted = self.container.volume_mounts.as_deref().unwrap_or_default();
        let mut mounts = Vec::with_capacity(wanted.len() + 2);
        for (index, mount) in wanted.iter().enumerate() {
            mounts.push(self.volume(index, mount)?);
        }
        mounts.extend(self.hosts(&mounts)?);
        let termination_log = self.termination_log()?;
        let path = self.container.termination_message_path.as_deref();
        mounts.push(Mount {
            container_path: path
                .filter(|path| !path.is_empty())
                .unwrap_or(DEFAULT_TERMINATION_LOG)
                .to_owned(),
            host_path: text(&termination_log)?,
            ..Mount::default()
        });
        Ok(ContainerMounts {
            mounts,
            termination_log,
        })
    }

    fn volume(&self, index: usize, mount: &VolumeMount) -> Result<Mount, MountError> {
        let volume =
            self.prepared
                .volumes
                .get(&mount.name)
                .ok_or_else(|| MountError::NoVolume {
                    volume: mount.name.clone(),
                    container: self.container.name.clone(),
                })?;
        let propagation = self.propagation(mount)?;
        let options = mount.bind_mount_options.clone().unwrap_or_default();
        if let Some(option) = options.iter().find(|o| !BIND_OPTIONS.contains(&o.as_str())) {
            return Err(MountError::Refused(format!(
                "invalid bindMountOptions value {option:?}"
            )));
        }
        Ok(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: text(&self.host_path(index, mount, volume)?)?,
            readonly: volume.read_only || mount.read_only == Some(true),
            propagation: propagation.into(),
            recursive_read_only: self.recursive_read_only(mount, propagation)?,
            mount_options: options,
            ..Mount::default()
        })
    }

    /// The volume itself, or the bound `subPath` in it.
    fn host_path(
        &self,
        index: usize,
        mount: &VolumeMount,
        volume: &PreparedVolume,
    ) -> Result<PathBuf, MountError> {
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        let sub = if expression.is_empty() {
            mount.sub_path.clone().unwrap_or_default()
        } else {
            expand_strict(expression, self.context.env).map_err(|missing| {
                MountError::Refused(format!("missing value for {}", missing.join(", ")))
            })?
        };
        if sub.is_empty() {
            return Ok(volume.path.clone());
        }
        subpath::check(&sub).map_err(MountError::Refused)?;
        let sub: PathBuf = Path::new(&sub).components().collect();
        let target = self.dir.subpath(&mount.name, &self.container.name, index);
        subpath::open(&volume.path, &sub)
            .and_then(|fd| subpath::bind(&fd, &target))
            .map_err(|error| {
                tracing::warn!(
                    volume = mount.name,
                    container = self.container.name,
                    error = &error as &dyn std::error::Error,
                    "subPath was not prepared"
                );
                MountError::SubPath {
                    volume: mount.name.clone(),
                    container: self.container.name.clone(),
                }
            })?;
        Ok(target)
    }

    fn propagation(&self, mount: &VolumeMount) -> Result<MountPropagation, MountError> {
        match mount.mount_propagation.as_deref() {
            None | Some("None" | "") => Ok(MountPropagation::PropagationPrivate),
            Some("HostToContainer") => Ok(MountPropagation::PropagationHostToContainer),
            Some("Bidirectional") if self.privileged() => {
                Ok(MountPropagation::PropagationBidirectional)
            }
            Some("Bidirectional") => Err(MountError::Refused(
                "Bidirectional mount propagation is available only to privileged containers"
                    .to_owned(),
            )),
            Some(other) => Err(MountError::Refused(format!(
                "invalid MountPropagation mode: {other:?}"
            ))),
        }
    }

    fn privileged(&self) -> bool {
        let context = self.container.security_context.as_ref();
        context.and_then(|context| context.privileged) == Some(true)
    }

    fn recursive_read_only(
        &self,
        mount: &VolumeMount,
        propagation: MountPropagation,
    ) -> Result<bool, MountError> {
        let mode = match mount.recursive_read_only.as_deref() {
            None | Some("Disabled" | "") => return Ok(false),
            Some(mode) => mode,
        };
        let wants = format!("volume {:?} requested recursive read-only mode", mount.name);
        if mount.read_only != Some(true) {
            return Err(MountError::Refused(format!(
                "{wants}, but it is not read-only"
            )));
        }
        if propagation != MountPropagation::PropagationPrivate {
            return Err(MountError::Refused(format!(
                "{wants}, but it is not compatible with propagation {:?}",
                mount.mount_propagation.as_deref().unwrap_or_default()
            )));
        }
        match (mode, self.context.recursive_read_only_mounts) {
            ("IfPossible", supported) => Ok(supported),
            ("Enabled", true) => Ok(true),
            ("Enabled", false) => Err(MountError::Refused(format!(
                "{wants}, but it is not supported by the runtime"
            ))),
            (other, _) => Err(MountError::Refused(format!(
                "unknown recursive read-only mode {other:?}"
            ))),
        }
    }

    /// The managed hosts file, unless the container brings its own or the pod has no address.
    fn hosts(&self, mounts: &[Mount]) -> Result<Option<Mount>, MountError> {
        let spec = self.pod.spec.as_ref();
        let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
        let own = mounts
            .iter()
            .any(|mount| mount.container_path == HOSTS_PATH);
        if own || (self.context.pod_ips.is_empty() && !host_network) {
            return Ok(None);
        }
        let aliases = spec.and_then(|spec| spec.host_aliases.as_deref());
        let aliases = aliases.unwrap_or_default();
        let content = if host_network {
            let node = fs::read_to_string(self.node_hosts_file)
                .map_err(at("reading", self.node_hosts_file))?;
            hosts_file::of_node(&node, aliases)
        } else {
            let context = &self.context;
            hosts_file::of_pod(
                context.pod_ips,
                context.hostname,
                context.host_domain,
                aliases,
            )
        };
        make_private(self.dir.path())?;
        let path = self.dir.etc_hosts();
        write_in_place(&path, &content)?;
        Ok(Some(Mount {
            container_path: HOSTS_PATH.to_owned(),
            host_path: text(&path)?,
            ..Mount::default()
        }))
    }

    /// A new empty file that any user in the container may write.
    fn termination_log(&self) -> Result<PathBuf, MountError> {
        let dir = self.dir.container(&self.container.name);
        make_private(&dir)?;
        prune(&dir, KEPT_TERMINATION_LOGS - 1);
        let path = dir.join(format!("{:08x}", rand::random::<u32>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&path)
            .map_err(at("creating", &path))?;
        // Past the umask.
        file.set_permissions(fs::Permissions::from_mode(0o666))
            .map_err(at("setting the mode of", &path))?;
        Ok(path)
    }
}

/// Keeps the newest files of a directory. What can't be removed now is tried at the next start.
fn prune(dir: &Path, keep: usize) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    let surplus = files.len().saturating_sub(keep);
    for (_, path) in files.into_iter().take(surplus) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "an old termination log stays");
        }
    }
}

/// Other containers of the pod have this very file mounted, so it can't be replaced by a rename.
fn write_in_place(path: &Path, content: &str) -> Result<(), SetUpError> {
    match fs::read(path) {
        Ok(found) if found == content.as_bytes() => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(at("reading", path)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(at("opening", path))?;
    file.write_all(content.as_bytes())
        .map_err(at("writing", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .map_err(at("setting the mode of", path))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

fn text(path: &Path) -> Result<String, MountError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| MountError::Refused(format!("path {} is not valid UTF-8", path.display())))
}
