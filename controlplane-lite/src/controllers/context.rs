// SPDX-License-Identifier: Apache-2.0
//! What all controllers share: the client, one watch per kind, the recorder of events, the clock.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::machinery::Clock;
use super::machinery::events::Recorder;
use super::machinery::informer::Informer;

/// Where kubelets keep their leases.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";

/// One watch per kind.
#[derive(Default)]
pub(crate) struct Informers {
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) service_accounts: Arc<Informer<ServiceAccount>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) endpoint_slices: Arc<Informer<EndpointSlice>>,
    pub(crate) endpoints: Arc<Informer<Endpoints>>,
    pub(crate) leases: Arc<Informer<Lease>>,
}

/// Shared by all controllers.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) events: Recorder,
    pub(crate) clock: Clock,
}

impl Context {
    /// Starts every watch as a task of `tasks`. All hooks must be in place by now.
    pub(crate) fn watch_all(&self, tasks: &mut JoinSet<&'static str>, stop: &CancellationToken) {
        macro_rules! watch {
            ($name:literal, $informer:ident) => {{
                let informer = Arc::clone(&self.informers.$informer);
                let api = Api::all(self.client.clone());
                let stop = stop.clone();
                tasks.spawn(async move {
                    informer.run(api, stop).await;
                    $name
                });
            }};
        }
        watch!("watch of pods", pods);
        watch!("watch of nodes", nodes);
        watch!("watch of services", services);
        watch!("watch of namespaces", namespaces);
        watch!("watch of serviceaccounts", service_accounts);
        watch!("watch of replicasets", replica_sets);
        watch!("watch of deployments", deployments);
        watch!("watch of endpointslices", endpoint_slices);
        watch!("watch of endpoints", endpoints);
        watch!("watch of leases", leases);
    }

    /// Returns when the first list of every kind is complete.
    pub(crate) async fn synced(&self) {
        let i = &self.informers;
        tokio::join!(
            i.pods.synced(),
            i.nodes.synced(),
            i.services.synced(),
            i.namespaces.synced(),
            i.service_accounts.synced(),
            i.replica_sets.synced(),
            i.deployments.synced(),
            i.endpoint_slices.synced(),
            i.endpoints.synced(),
            i.leases.synced(),
        );
    }
}
