// SPDX-License-Identifier: Apache-2.0
//! Mirror pods: API objects that stand for static pods, so that everybody can see them. Made when a
//! static pod has none, made again when deleted or out of date, removed with the static pod. Names
//! are the key: the mirror has the static pod's name and another uid.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::pod::{labels, spec};

/// Retries, and the backstop for missed changes.
const PERIOD: Duration = Duration::from_secs(10);

type Key = (String, String);
type Pods = RwLock<BTreeMap<Key, Pod>>;

/// What is known of static pods and their mirrors.
#[derive(Debug, Default)]
pub struct Mirrors {
    statics: RwLock<Option<BTreeMap<Key, Pod>>>,
    mirrors: Pods,
    changed: Notify,
    arrived: Notify,
}

fn key(pod: &Pod) -> Key {
    (spec::namespace(pod).to_owned(), spec::name(pod).to_owned())
}

impl Mirrors {
    /// All static pods of this node.
    pub fn set_statics(&self, pods: Vec<Pod>) {
        let pods = pods.into_iter().map(|pod| (key(&pod), pod)).collect();
        *self.statics.write().unwrap_or_else(PoisonError::into_inner) = Some(pods);
        self.changed.notify_one();
    }

    /// All mirror pods of this node.
    pub fn set_mirrors(&self, pods: Vec<Pod>) {
        let pods = pods.into_iter().map(|pod| (key(&pod), pod)).collect();
        *self.mirrors.write().unwrap_or_else(PoisonError::into_inner) = pods;
        self.changed.notify_one();
        self.arrived.notify_one();
    }

    /// A new or changed mirror pod.
    pub fn put_mirror(&self, pod: Pod) {
        let mut mirrors = self.mirrors.write().unwrap_or_else(PoisonError::into_inner);
        let uid = pod.metadata.uid.clone();
        let before = mirrors.insert(key(&pod), pod);
        drop(mirrors);
        self.changed.notify_one();
        if before.is_none_or(|before| before.metadata.uid != uid) {
            self.arrived.notify_one();
        }
    }

    /// Resolves when a mirror has come that was not there before. For one listener.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// A mirror pod is gone.
    pub fn remove_mirror(&self, pod: &Pod) {
        let mut mirrors = self.mirrors.write().unwrap_or_else(PoisonError::into_inner);
        mirrors.remove(&key(pod));
        drop(mirrors);
        self.changed.notify_one();
    }

    /// The mirror of a static pod, if it is there and up to date.
    pub fn mirror_of(&self, pod: &Pod) -> Option<Pod> {
        let mirrors = self.mirrors.read().unwrap_or_else(PoisonError::into_inner);
        let mirror = mirrors.get(&key(pod))?;
        is_current(mirror, pod).then(|| mirror.clone())
    }
}

fn is_current(mirror: &Pod, of: &Pod) -> bool {
    let hash = spec::annotation(of, labels::CONFIG_HASH);
    spec::annotation(mirror, labels::CONFIG_MIRROR) == hash && !spec::is_deleting(mirror)
}

/// The mirror of a static pod, as it is sent to the API.
fn mirror(pod: &Pod, node: Option<&Node>) -> Pod {
    let mut mirror = Pod {
        spec: pod.spec.clone(),
        ..Default::default()
    };
    mirror.metadata.name = pod.metadata.name.clone();
    mirror.metadata.namespace = pod.metadata.namespace.clone();
    mirror.metadata.labels = pod.metadata.labels.clone();
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let hash = spec::annotation(pod, labels::CONFIG_HASH).unwrap_or_default();
    annotations.insert(labels::CONFIG_MIRROR.to_owned(), hash.to_owned());
    mirror.metadata.annotations = Some(annotations);
    if let Some(node) = node {
        mirror.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            controller: Some(true),
            ..Default::default()
        }]);
    }
    mirror
}

/// Keeps mirrors and static pods in step until `stop`. A failed call is tried again at the next
/// look.
pub async fn run(
    client: Client,
    node_name: String,
    mirrors: std::sync::Arc<Mirrors>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = mirrors.changed.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(error) = reconcile(&client, &node_name, &mirrors).await {
            tracing::warn!(%error, "mirror pods are not in step yet");
        }
    }
}

async fn reconcile(client: &Client, node_name: &str, mirrors: &Mirrors) -> Result<(), kube::Error> {
    let statics = mirrors
        .statics
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    // Before the manifests have been read, every mirror would look superfluous.
    let Some(statics) = statics else {
        return Ok(());
    };
    let known = mirrors
        .mirrors
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for (key, mirror) in &known {
        let wanted = statics.get(key).is_some_and(|pod| is_current(mirror, pod));
        if !wanted {
            delete(client, mirror).await?;
        }
    }
    let missing: Vec<&Pod> = statics
        .iter()
        .filter(|(key, _)| !known.contains_key(*key))
        .map(|(_, pod)| pod)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let node = Api::<Node>::all(client.clone()).get_opt(node_name).await?;
    for pod in missing {
        let api: Api<Pod> = Api::namespaced(client.clone(), spec::namespace(pod));
        match api
            .create(&PostParams::default(), &mirror(pod, node.as_ref()))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn delete(client: &Client, mirror: &Pod) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), spec::namespace(mirror));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        }),
        ..Default::default()
    };
    match api.delete(spec::name(mirror), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
