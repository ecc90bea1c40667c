// SPDX-License-Identifier: Apache-2.0
//! What every actor shares: the ports, the volume manager, the node's facts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::spec;
use crate::cri_v1::RuntimeHandlerFeatures;
use crate::env::Objects;
use crate::node::NodeFacts;
use crate::ports::{Clock, Events, Runtime, StatusSink};
use crate::userns::UserNamespaces;
use crate::volumes::Volumes;

/// The part of the configuration that actors need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub node_ips: Vec<IpAddr>,
    /// Root of container logs.
    pub pod_logs_dir: PathBuf,
    /// Root cgroup.
    pub cgroup_parent: String,
    /// Cluster DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain.
    pub cluster_domain: String,
    /// The node's resolver configuration.
    pub resolv_conf: PathBuf,
    /// What the runtime's default handler can do.
    pub default_handler: RuntimeHandlerFeatures,
    /// A pod is looked at again at least this often.
    pub sync_frequency: Duration,
}

/// Shared by every actor.
pub struct Deps {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Where statuses go.
    pub sink: Arc<dyn StatusSink>,
    /// Where events go.
    pub events: Arc<dyn Events>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// ConfigMaps, Secrets, Services.
    pub objects: Arc<dyn Objects>,
    /// The volume manager.
    pub volumes: Volumes,
    /// Ids of pods with user namespaces.
    pub userns: Arc<UserNamespaces>,
    /// What the node has.
    pub facts: Arc<NodeFacts>,
    /// Every pod with its newest status.
    pub table: Arc<PodTable>,
    /// Configuration.
    pub settings: Settings,
}

/// The newest state of every pod. Actors write their own pod; anybody reads.
#[derive(Debug)]
pub struct PodTable {
    pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    changed: watch::Sender<u64>,
}

impl Default for PodTable {
    fn default() -> Self {
        PodTable {
            pods: RwLock::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl PodTable {
    /// Puts a pod in, or its newer state.
    pub fn put(&self, pod: Arc<Pod>) {
        self.write(|pods| {
            pods.insert(spec::uid(&pod).to_owned(), Arc::clone(&pod))
                .is_none()
        });
    }

    /// Takes a pod out.
    pub fn remove(&self, uid: &str) {
        self.write(|pods| pods.remove(uid).is_some());
    }

    fn write(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Pod>>) -> bool) {
        // A poisoned lock means that a writer died between two whole values: the map is still good.
        let mut pods = self
            .pods
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut pods);
        drop(pods);
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Every pod.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        let pods = self
            .pods
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// One pod by uid.
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        let pods = self
            .pods
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pods.get(uid).cloned()
    }

    /// Changes whenever any pod does.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl crate::server::PodLookup for PodTable {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.all()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let mut all = self.all().into_iter();
        all.find(|pod| spec::namespace(pod) == namespace && spec::name(pod) == name)
    }
}
