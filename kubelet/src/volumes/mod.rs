// SPDX-License-Identifier: Apache-2.0
//! Pod volumes on disk, and the mounts that hand them to the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cri_v1;
use crate::env::Objects;
use crate::node::NodeFacts;

/// Where volumes live and which host files they are made from.
#[derive(Debug, Clone)]
pub struct VolumeDirs {
    /// `<data-dir>/kubelet`; pods live in `pods/<uid>` below it.
    pub kubelet_dir: PathBuf,
    /// The node's own hosts file, for pods on the host network (`/etc/hosts`).
    pub node_hosts_file: PathBuf,
}

/// Why a volume could not be set up. The text is that of upstream's `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A field or type that is refused, by name.
    #[error("{0}")]
    Unsupported(String),
}

/// Why the mounts of a container could not be made: `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A field or type that is refused, by name.
    #[error("{0}")]
    Unsupported(String),
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

/// What is known about a container at the moment when its mounts are made.
#[derive(Debug, Clone)]
pub struct MountContext<'a> {
    /// The container's environment, for `subPathExpr`.
    pub env: &'a [(String, String)],
    /// The pod's addresses; empty before the sandbox has any.
    pub pod_ips: &'a [IpAddr],
    /// The pod's host name, as given to the sandbox.
    pub hostname: &'a str,
    /// `<subdomain>.<namespace>.svc.<cluster domain>` when the pod has a subdomain, else empty.
    pub host_domain: &'a str,
}

/// The mounts of one container, and where its termination message will be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerMounts {
    /// In the order of `volumeMounts`, then `/etc/hosts`, then the termination log.
    pub mounts: Vec<cri_v1::Mount>,
    /// The host file behind `terminationMessagePath`; new for every start of a container.
    pub termination_log: PathBuf,
}

/// The volume manager. Cheap to clone; one per kubelet.
#[derive(Clone)]
pub struct Volumes {
    _dirs: VolumeDirs,
    _objects: Arc<dyn Objects>,
    _node: Arc<NodeFacts>,
}

impl Volumes {
    /// Nothing is touched on disk yet.
    #[must_use]
    pub fn new(dirs: VolumeDirs, objects: Arc<dyn Objects>, node: Arc<NodeFacts>) -> Self {
        Self {
            _dirs: dirs,
            _objects: objects,
            _node: node,
        }
    }

    /// Makes every volume of the pod. Idempotent; call again after a failure.
    ///
    /// # Errors
    /// The text is ready for a `FailedMount` event.
    pub async fn prepare(&self, _pod: &Pod) -> Result<PreparedVolumes, VolumeError> {
        Err(not_yet())
    }

    /// Brings configMap, secret, downwardAPI and projected content up to date, by an atomic swap.
    ///
    /// # Errors
    /// As [`Volumes::prepare`]; the previous content stays in place.
    pub async fn refresh(&self, _pod: &Pod) -> Result<(), VolumeError> {
        Err(not_yet())
    }

    /// The mounts of one container, for one start of it.
    ///
    /// # Errors
    /// A volume that was not prepared, or a `subPath` that leaves its volume.
    pub async fn mounts(
        &self,
        _pod: &Pod,
        _container: &Container,
        _prepared: &PreparedVolumes,
        _context: MountContext<'_>,
    ) -> Result<ContainerMounts, MountError> {
        Err(MountError::Unsupported(
            "mounts are not implemented yet".to_owned(),
        ))
    }

    /// Unmounts and removes everything of a pod. Idempotent. Call it when no container is left.
    ///
    /// # Errors
    /// What could not be removed; call again later.
    pub async fn teardown(&self, _uid: &str) -> Result<(), VolumeError> {
        Err(not_yet())
    }

    /// Removes the directories of pods that are not in `known`; returns the uids that it removed.
    /// For the start of the kubelet, after a crash too, and every few minutes.
    ///
    /// # Errors
    /// The directory of pods cannot be read. A pod that cannot be removed is logged and skipped.
    pub async fn reconcile(&self, _known: &BTreeSet<String>) -> Result<Vec<String>, VolumeError> {
        Err(not_yet())
    }
}

fn not_yet() -> VolumeError {
    VolumeError::Unsupported("volumes are not implemented yet".to_owned())
}
