// SPDX-License-Identifier: Apache-2.0
//! The controllers: each watches the API, compares what is wanted with what is there, and writes
//! the difference back. They are clients of the API and never see the store.
//!
//! In every folder a core decides on plain data (`plan`, `decide`, `health` and so on) and a
//! `controller` reads caches and writes. All controllers share one watch per kind ([`context`]).
//! They hold no state that matters: what they remember only bridges the time until a watch shows
//! what they wrote, so any of them may be killed at any moment.
//!
//! There is no leader election yet: run the controllers in one server of a cluster.

mod config;
mod context;
mod deployment;
mod discovery;
mod endpoints;
mod gc;
pub(crate) mod machinery;
mod namespace;
mod node;
mod replicaset;
mod service_account;
mod service_lb;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Error, NodePrefixes};
pub use machinery::cidr::CidrError;
pub use machinery::group::Early;

use context::{Context, Informers};
use machinery::SYSTEM_CLOCK;
use machinery::events::Recorder;
use machinery::group::{self, Group};

/// Runs every controller until `stop` is cancelled, then lets writes that have begun finish.
///
/// Works with a server that is not up yet: the watches retry until it answers.
///
/// # Errors
/// [`Error::ClusterCidr`] if the configured range is not one, [`Error::Early`] if a controller
/// ended by itself, which is a fault in it.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    // A token of our own: a controller that fails ends the others, not whoever called.
    let stop = stop.child_token();
    let cluster = node::ipam::pools(&config.cluster_cidr, config.node_prefixes)
        .map_err(Error::ClusterCidr)?;
    let mut tasks = Group::new();
    let (events, sending) = Recorder::new(
        client.clone(),
        "controller-manager",
        SYSTEM_CLOCK,
        stop.clone(),
    );
    tasks.spawn(async move {
        sending.await;
        "events"
    });
    let context = Arc::new(Context {
        client,
        informers: Informers::default(),
        events,
        clock: SYSTEM_CLOCK,
    });
    start(&mut tasks, &context, &config, cluster, &stop);
    context.watch_all(&mut tasks, &stop);
    Ok(group::supervise(tasks, stop).await?)
}

/// Makes each controller, which puts its hooks in place, and runs it once the caches are filled.
fn start(
    tasks: &mut Group,
    context: &Arc<Context>,
    config: &Config,
    cluster: Vec<node::ipam::Pool>,
    stop: &CancellationToken,
) {
    macro_rules! start {
        ($name:literal, $controller:expr) => {
            if !config.disable.contains($name) {
                let controller = $controller;
                let (context, stop) = (Arc::clone(context), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = context.synced() => controller.run(stop).await,
                        () = stop.cancelled() => {}
                    }
                    $name
                });
            }
        };
    }
    let (grace, period) = (config.node_monitor_grace_period, config.node_monitor_period);
    start!("deployment", deployment::Controller::new(context));
    start!("replicaset", replicaset::Controller::new(context));
    start!(
        "endpoints",
        endpoints::Controller::new(context, endpoints::Kind::Endpoints)
    );
    start!(
        "endpointslice",
        endpoints::Controller::new(context, endpoints::Kind::EndpointSlices)
    );
    start!("namespace", namespace::Controller::new(context));
    start!("serviceaccount", service_account::Controller::new(context));
    start!("garbagecollector", gc::Controller::new(context));
    start!(
        "nodelifecycle",
        node::lifecycle::Controller::new(context, grace, period)
    );
    start!("tainteviction", node::eviction::Controller::new(context));
    start!("nodeipam", node::ipam::Controller::new(context, cluster));
    start!("podgc", node::pod_gc::Controller::new(context));
    start!("service-lb", service_lb::Controller::new(context));
}
