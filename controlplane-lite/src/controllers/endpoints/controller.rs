// SPDX-License-Identifier: Apache-2.0
//! Writes EndpointSlices and Endpoints. The two are separate queues, because one failing must not
//! hold up the other, and each may be switched off.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::expectations::Expectations;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::selector::Selector;
use super::super::machinery::sync::{
    self, Again, Attempt, SyncError, gone_is_fine, is_namespace_terminating, is_not_found,
};
use super::slices::{self, Step};
use super::{candidates, legacy};

const WORKERS: usize = 5;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Which of the two kinds a controller writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Endpoints,
    EndpointSlices,
}

/// The controller of one of the two kinds.
pub(crate) struct Controller {
    kind: Kind,
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
    expectations: Arc<Expectations>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>, kind: Kind) -> Self {
        let controller = Self {
            kind,
            context: Arc::clone(context),
            queue: Arc::new(Queue::new(Backoff::CONTROLLER)),
            expectations: Arc::new(Expectations::default()),
        };
        controller.hook_services();
        controller.hook_pods();
        match kind {
            Kind::Endpoints => controller.hook_endpoints(),
            Kind::EndpointSlices => controller.hook_slices(),
        }
        controller
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        match self.kind {
            Kind::Endpoints => {
                let reconcile = |key| self.reconcile_endpoints(key);
                sync::run("endpoints", &self.queue, WORKERS, &stop, reconcile).await;
            }
            Kind::EndpointSlices => {
                let reconcile = |key| self.reconcile_slices(key);
                sync::run("endpointslice", &self.queue, WORKERS, &stop, reconcile).await;
            }
        }
    }

    fn hook_services(&self) {
        let queue = Arc::clone(&self.queue);
        let informer = &self.context.informers.services;
        informer.on_change(move |change: &Change<'_, Service>| {
            if let Some(service) = change.latest() {
                queue.add(Key::of(service));
            }
        });
    }

    fn hook_pods(&self) {
        let queue = Arc::clone(&self.queue);
        let services = Arc::clone(&self.context.informers.services);
        self.context
            .informers
            .pods
            .on_change(move |change: &Change<'_, Pod>| {
                for pod in change.versions() {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    for service in services.in_namespace(namespace) {
                        if selector(&service).is_some_and(|s| s.matches(pod.labels())) {
                            queue.add(Key::of(service.as_ref()));
                        }
                    }
                }
            });
    }

    fn hook_endpoints(&self) {
        let queue = Arc::clone(&self.queue);
        let informer = &self.context.informers.endpoints;
        informer.on_change(move |change: &Change<'_, Endpoints>| {
            if let Some(object) = change.latest() {
                queue.add(Key::of(object));
            }
        });
    }

    fn hook_slices(&self) {
        let queue = Arc::clone(&self.queue);
        let expectations = Arc::clone(&self.expectations);
        let informer = &self.context.informers.endpoint_slices;
        informer.on_change(move |change: &Change<'_, EndpointSlice>| {
            let Some(key) = change.latest().and_then(service_of) else {
                return;
            };
            match (change.old, change.new) {
                (None, Some(_)) => expectations.created(&key),
                (Some(old), None) => expectations.deleted(&key, &old.uid().unwrap_or_default()),
                _ => {}
            }
            queue.add(key);
        });
    }

    fn candidates(&self, service: &Service) -> Vec<candidates::Candidate> {
        let Some(selector) = selector(service) else {
            return Vec::new();
        };
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods = self.context.informers.pods.in_namespace(namespace);
        pods.retain(|pod| selector.matches(pod.labels()));
        candidates::candidates(service, &pods)
    }

    async fn reconcile_endpoints(&self, key: Key) -> Result<Again, SyncError> {
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let existing = self.context.informers.endpoints.get(&key);
        let Some(service) = self.context.informers.services.get(&key) else {
            if existing.is_some() {
                self.remove_endpoints(&api, &key).await?;
            }
            return Ok(None);
        };
        if !candidates::is_managed(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let candidates = self.candidates(&service);
        let wanted = legacy::wanted(&service, &candidates, existing.as_deref());
        let params = PostParams::default();
        let result = match existing.as_deref() {
            None => api.create(&params, &wanted).await,
            Some(existing) if legacy::differs(existing, &wanted) => {
                api.replace(&key.name, &params, &wanted).await
            }
            Some(_) => return Ok(None),
        };
        match result {
            Err(error) if is_namespace_terminating(&error) => Ok(None),
            result => result
                .attempt(|| format!("writing endpoints {key}"))
                .map(|_| None),
        }
    }

    /// The Service is gone from the cache; the server has the last word, because a Service of the
    /// same name may be back.
    async fn remove_endpoints(&self, api: &Api<Endpoints>, key: &Key) -> Result<(), SyncError> {
        let services: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match services.get_opt(&key.name).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => return Err(error).attempt(|| format!("reading service {key}")),
        }
        let result = api.delete(&key.name, &DeleteParams::default()).await;
        gone_is_fine(result).attempt(|| format!("deleting endpoints {key}"))
    }

    async fn reconcile_slices(&self, key: Key) -> Result<Again, SyncError> {
        let existing = self.slices(&key);
        let Some(service) = self.context.informers.services.get(&key) else {
            self.expectations.forget(&key);
            return self.remove_slices(&key, existing).await;
        };
        if !candidates::is_managed(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        if !self.expectations.satisfied(&key, Instant::now()) {
            // The watch will wake this key when it shows what was written.
            return Ok(None);
        }
        let nodes = &self.context.informers.nodes;
        let zone = |name: &str| -> Option<String> {
            let node: Arc<Node> = nodes.get(&Key::new("", name))?;
            node.labels().get(ZONE).cloned()
        };
        let steps = slices::plan(&service, &self.candidates(&service), &existing, &zone);
        self.expect(&key, &steps);
        for step in steps {
            self.carry_out(&key, step).await?;
        }
        Ok(None)
    }

    fn slices(&self, key: &Key) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self
            .context
            .informers
            .endpoint_slices
            .in_namespace(&key.namespace);
        slices.retain(|slice| service_of(slice).as_ref() == Some(key));
        slices
    }

    fn expect(&self, key: &Key, steps: &[Step]) {
        let creations = steps
            .iter()
            .filter(|s| matches!(s, Step::Create(_)))
            .count();
        let deletions: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Delete(slice) => slice.uid(),
                _ => None,
            })
            .collect();
        self.expectations
            .expect(key.clone(), creations, deletions, Instant::now());
    }

    async fn carry_out(&self, key: &Key, step: Step) -> Result<(), SyncError> {
        let api = self.api(key);
        match step {
            Step::Create(slice) => match api.create(&PostParams::default(), &slice).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    // What did not happen will not be seen; the retry plans anew.
                    self.expectations.forget(key);
                    if is_namespace_terminating(&error) {
                        return Ok(());
                    }
                    Err(error).attempt(|| format!("creating an endpointslice of service {key}"))
                }
            },
            Step::Update(slice) => {
                let name = slice.name_any();
                let result = api.replace(&name, &PostParams::default(), &slice).await;
                result
                    .attempt(|| format!("updating endpointslice {name}"))
                    .inspect_err(|_| self.expectations.forget(key))
                    .map(|_| ())
            }
            Step::Delete(slice) => self.delete(key, &slice).await,
        }
    }

    async fn delete(&self, key: &Key, slice: &EndpointSlice) -> Result<(), SyncError> {
        let name = slice.name_any();
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: slice.uid(),
            resource_version: None,
        });
        match self.api(key).delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.expectations.forget(key);
                if is_not_found(&error) {
                    return Ok(());
                }
                Err(error).attempt(|| format!("deleting endpointslice {name}"))
            }
        }
    }

    async fn remove_slices(
        &self,
        key: &Key,
        existing: Vec<Arc<EndpointSlice>>,
    ) -> Result<Again, SyncError> {
        if existing.is_empty() {
            return Ok(None);
        }
        let services: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let live = services
            .get_opt(&key.name)
            .await
            .attempt(|| format!("reading service {key}"))?;
        if live.is_some() {
            return Ok(None);
        }
        for slice in existing {
            self.delete(key, &slice).await?;
        }
        Ok(None)
    }

    fn api(&self, key: &Key) -> Api<EndpointSlice> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

fn selector(service: &Service) -> Option<Selector> {
    if !candidates::is_managed(service) {
        return None;
    }
    let labels: &BTreeMap<_, _> = service.spec.as_ref()?.selector.as_ref()?;
    Some(Selector::from_labels(labels))
}

/// The Service of a slice that we manage.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.labels();
    let ours = labels.get(slices::MANAGED_BY).map(String::as_str) == Some(slices::MANAGER);
    let name = labels.get(slices::SERVICE_NAME).filter(|_| ours)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}
