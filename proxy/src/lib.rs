// SPDX-License-Identifier: Apache-2.0
//! The service proxy of a node: Services and EndpointSlices become elements of nftables maps.
//!
//! [`run`] is one task. It watches Services and EndpointSlices ([`objects`]), compiles those that
//! changed ([`service`]), computes the elements that differ ([`state`], [`rules`]), and applies
//! them in one netlink transaction ([`apply`]). It reads nothing back from the kernel: it owns its
//! table, replaces it as a whole when it starts (and when a transaction is refused), and from then
//! on touches only what changed.
//!
//! At the end the rules stay, so that Services work while the proxy restarts. [`cleanup`] takes
//! them away.

pub mod apply;
pub mod objects;
pub mod rules;
pub mod service;
pub mod state;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use cni::cidr::{Cidr, ParseCidrError};
use cni::nft::{Family, NftError, Socket};
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use apply::{ApplyError, Kernel};
use objects::Objects;
use service::Node;
use state::{ServiceKey, State};

/// What the proxy of one node must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Addresses of this node that answer on NodePorts.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of all pods, as CIDRs separated by commas; what comes from elsewhere is masqueraded.
    pub cluster_cidr: String,
    /// Name of the nftables table; the proxy owns it alone.
    pub nft_table: String,
    /// Bridge of this node's pods.
    pub bridge: String,
}

/// Why the proxy did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDR cannot be read.
    #[error("cluster CIDR")]
    ClusterCidr(#[source] ParseCidrError),
    /// The kubeconfig cannot be used.
    #[error("reading kubeconfig {path}")]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No client could be made of it.
    #[error("making a client from kubeconfig {path}")]
    Client {
        /// Which file.
        path: PathBuf,
        #[source]
        source: Box<kube::Error>,
    },
    /// The rules could not be removed.
    #[error("removing the rules of Services")]
    Cleanup(#[source] NftError),
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// A watch ended, which it never does by itself.
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
    /// The thread that applies rules died.
    #[error("the thread that applies rules died")]
    Died,
}

/// How long a refused transaction waits before the table is replaced; doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How many events are taken in before the kernel hears of them.
const EVENTS_PER_SYNC: usize = 10_000;

/// Run until `stop`. `ready` is sent when the rules of every Service are in place for the first
/// time. While the API server cannot be reached, rules stay as they are and the watch is retried.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let cluster = cluster_cidrs(&config.cluster_cidr)?;
    let client = client(&config.kubeconfig).await?;
    let settings = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), settings()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), settings()).default_backoff();
    let mut proxy = Proxy::new(&config, &cluster);
    let mut ready = Some(ready);
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    loop {
        let retry = proxy.retry_in;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = services.next() => proxy.service(event)?,
            event = slices.next() => proxy.slice(event)?,
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
        proxy.drain(services.as_mut(), slices.as_mut())?;
        if proxy.objects.complete() {
            proxy.sync().await?;
            if proxy.retry_in.is_none()
                && let Some(ready) = ready.take()
            {
                // Nobody may be waiting; that is no reason to stop.
                let _ = ready.send(());
            }
        }
    }
}

/// Remove every rule of the proxy from this network namespace. Idempotent. Blocks for milliseconds.
pub fn cleanup(config: &Config) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(Error::Socket)?;
    socket
        .delete_table(Family::Inet, &config.nft_table)
        .map_err(Error::Cleanup)
}

fn cluster_cidrs(text: &str) -> Result<Vec<Cidr>, Error> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().map_err(Error::ClusterCidr))
        .collect()
}

async fn client(path: &PathBuf) -> Result<Client, Error> {
    let failed = |source| Error::Kubeconfig {
        path: path.clone(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(failed)?;
    Client::try_from(config).map_err(|source| Error::Client {
        path: path.clone(),
        source: Box::new(source),
    })
}

type Watched<K> = Option<Result<watcher::Event<K>, watcher::Error>>;

struct Proxy {
    node: Node,
    objects: Objects,
    /// Away while a thread applies it.
    state: Option<(State, Kernel)>,
    /// What the kernel has is not what `state` says: replace the table.
    needs_full: bool,
    retry_in: Option<Duration>,
    problems: BTreeMap<ServiceKey, Vec<String>>,
}

impl Proxy {
    fn new(config: &Config, cluster: &[Cidr]) -> Proxy {
        Proxy {
            node: Node {
                name: config.node_name.clone(),
                ips: config.node_ips.clone(),
            },
            objects: Objects::new(),
            state: Some((State::new(&config.nft_table, cluster), Kernel::default())),
            needs_full: true,
            retry_in: None,
            problems: BTreeMap::new(),
        }
    }

    fn service(&mut self, event: Watched<Service>) -> Result<(), Error> {
        match event {
            None => return Err(Error::WatchEnded("Services")),
            Some(Ok(event)) => self.objects.service_event(event),
            Some(Err(error)) => tracing::warn!(%error, "watching Services"),
        }
        Ok(())
    }

    fn slice(&mut self, event: Watched<EndpointSlice>) -> Result<(), Error> {
        match event {
            None => return Err(Error::WatchEnded("EndpointSlices")),
            Some(Ok(event)) => self.objects.slice_event(event),
            Some(Err(error)) => tracing::warn!(%error, "watching EndpointSlices"),
        }
        Ok(())
    }

    /// Take in what has come already, so that a burst is one transaction.
    fn drain(
        &mut self,
        mut services: std::pin::Pin<
            &mut impl Stream<Item = Result<watcher::Event<Service>, watcher::Error>>,
        >,
        mut slices: std::pin::Pin<
            &mut impl Stream<Item = Result<watcher::Event<EndpointSlice>, watcher::Error>>,
        >,
    ) -> Result<(), Error> {
        for _ in 0..EVENTS_PER_SYNC {
            let service = services.next().now_or_never();
            let slice = slices.next().now_or_never();
            if service.is_none() && slice.is_none() {
                break;
            }
            service.map_or(Ok(()), |event| self.service(event))?;
            slice.map_or(Ok(()), |event| self.slice(event))?;
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let changes = self.objects.take_changes(&self.node);
        if changes.is_empty() && !self.needs_full {
            return Ok(());
        }
        for (service, rules) in &changes {
            let problems = rules
                .as_ref()
                .map(|r| r.problems.clone())
                .unwrap_or_default();
            self.note(service, problems);
        }
        let Some((mut state, mut kernel)) = self.state.take() else {
            return Err(Error::Died);
        };
        let full = self.needs_full;
        let applied = tokio::task::spawn_blocking(move || {
            let mut step = state.update(changes);
            if full {
                step = state.full();
            }
            let outcome = kernel.apply(&step, &state);
            (state, kernel, outcome)
        });
        let (state, kernel, outcome) = applied.await.map_err(|_| Error::Died)?;
        self.state = Some((state, kernel));
        self.settle(outcome);
        Ok(())
    }

    fn settle(&mut self, outcome: Result<(), ApplyError>) {
        match outcome {
            Ok(()) => (self.needs_full, self.retry_in) = (false, None),
            // The rules are in place. The flows are looked at again at the next change.
            Err(error @ ApplyError::Flows(_)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "UDP flows may go astray"
                );
                (self.needs_full, self.retry_in) = (false, None);
            }
            Err(error) => {
                let wait = self
                    .retry_in
                    .map_or(RETRY.0, |last| (last * 2).min(RETRY.1));
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    ?wait,
                    "replacing the table"
                );
                (self.needs_full, self.retry_in) = (true, Some(wait));
            }
        }
    }

    /// Say once what a Service asks for and does not get.
    fn note(&mut self, service: &ServiceKey, problems: Vec<String>) {
        if self
            .problems
            .get(service)
            .map(Vec::as_slice)
            .unwrap_or_default()
            == problems
        {
            return;
        }
        for problem in &problems {
            tracing::warn!(
                service = format!("{}/{}", service.0, service.1),
                "{problem}"
            );
        }
        if problems.is_empty() {
            self.problems.remove(service);
        } else {
            self.problems.insert(service.clone(), problems);
        }
    }
}
