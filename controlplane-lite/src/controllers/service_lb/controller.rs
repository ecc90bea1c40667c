// SPDX-License-Identifier: Apache-2.0
//! Writes the addresses of nodes into the status of Services of type LoadBalancer.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::endpoints::SERVICE_NAME;
use super::super::machinery::events::Recorder;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};
use super::claims;

/// The controller. Its only key stands for all load balancers, because they share the nodes' ports.
pub(crate) struct Controller {
    context: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<Key>>,
    /// What was last said of a Service, so that it is said once.
    said: Mutex<HashMap<Key, String>>,
}

fn all() -> Key {
    Key::new("", "load balancers")
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let informers = &context.informers;
        let own = Arc::clone(&queue);
        informers
            .services
            .on_change(move |change: &Change<'_, Service>| {
                // One that was a load balancer frees its ports; a node port takes one.
                if change.versions().any(|s| {
                    let kind = s.spec.as_ref().and_then(|spec| spec.type_.as_deref());
                    matches!(kind, Some("LoadBalancer" | "NodePort"))
                }) {
                    own.add(all());
                }
            });
        let own = Arc::clone(&queue);
        informers
            .nodes
            .on_change(move |_: &Change<'_, Node>| own.add(all()));
        let own = Arc::clone(&queue);
        informers.pods.on_change(move |change: &Change<'_, Pod>| {
            if change
                .versions()
                .any(|pod| claims::host_ports(pod).next().is_some())
            {
                own.add(all());
            }
        });
        let (own, services) = (Arc::clone(&queue), Arc::clone(&informers.services));
        informers
            .endpoint_slices
            .on_change(move |change: &Change<'_, EndpointSlice>| {
                let of_balancer = |slice: &EndpointSlice| {
                    let owner = owner(slice);
                    owner
                        .and_then(|key| services.get(&key))
                        .is_some_and(|s| wants_local(&s))
                };
                if change.versions().any(of_balancer) {
                    own.add(all());
                }
            });
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("service-lb-controller"),
            queue,
            said: Mutex::default(),
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |_| self.reconcile();
        sync::run("service-lb", &self.queue, 1, &stop, reconcile).await;
    }

    async fn reconcile(&self) -> Result<Again, SyncError> {
        let informers = &self.context.informers;
        let services = informers.services.all();
        let nodes = informers.nodes.all();
        let decided = claims::decide(&services, &informers.pods.all());
        self.forget_others(&decided.keys().cloned().collect());
        for service in &services {
            let key = Key::of(service.as_ref());
            let wanted = match decided.get(&key) {
                Some(None) => {
                    let here = wants_local(service).then(|| self.nodes_with_endpoints(&key));
                    claims::addresses(service, &nodes, here.as_ref())
                }
                Some(Some(conflict)) => {
                    self.say(service, &key, conflict);
                    Vec::new()
                }
                // What is no load balancer any more has no addresses of one.
                None if was_balancer(service) => Vec::new(),
                None => continue,
            };
            if wanted != claims::given(service) {
                self.give(service, &key, &wanted).await?;
            }
        }
        Ok(None)
    }

    fn nodes_with_endpoints(&self, key: &Key) -> BTreeSet<String> {
        let slices = self
            .context
            .informers
            .endpoint_slices
            .in_namespace(&key.namespace);
        let of_service = slices
            .iter()
            .filter(|slice| owner(slice).as_ref() == Some(key));
        let endpoints = of_service.flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints
            .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
            .filter_map(|e| e.node_name.clone())
            .collect()
    }

    async fn give(&self, service: &Service, key: &Key, wanted: &[String]) -> Result<(), SyncError> {
        let ingress: Vec<Value> = wanted
            .iter()
            .map(|ip| json!({"ip": ip, "ipMode": "VIP"}))
            .collect();
        let patch = json!({
            "metadata": {"uid": service.metadata.uid},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let api: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("giving addresses to load balancer {key}"))?;
        if !wanted.is_empty() {
            let said = self
                .said
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
            if said.is_some() || claims::given(service).is_empty() {
                self.events
                    .normal(service, "EnsuredLoadBalancer", "Ensured load balancer");
            }
        }
        Ok(())
    }

    fn say(&self, service: &Service, key: &Key, conflict: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(key).is_none_or(|words| words != conflict) {
            let message = format!("Error syncing load balancer: {conflict}");
            self.events
                .warning(service, "SyncLoadBalancerFailed", message);
            said.insert(key.clone(), conflict.to_owned());
        }
    }

    fn forget_others(&self, living: &BTreeSet<Key>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|key, _| living.contains(key));
    }
}

fn owner(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(
        slice.metadata.namespace.clone().unwrap_or_default(),
        name.clone(),
    ))
}

fn wants_local(service: &Service) -> bool {
    let policy = service
        .spec
        .as_ref()
        .and_then(|s| s.external_traffic_policy.as_deref());
    claims::is_ours(service) && policy == Some("Local")
}

fn was_balancer(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|s| s.type_.as_deref());
    kind != Some("LoadBalancer") && !claims::given(service).is_empty()
}
