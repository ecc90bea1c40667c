// SPDX-License-Identifier: Apache-2.0
//! The component: watches fill the zone, a thread answers, the address is kept.

use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use hickory_proto::rr::Name;
use hyper::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::address::{self, AddressError};
use super::forward::Forwarder;
use super::metrics::Metrics;
use super::resolv::Upstreams;
use super::serve::{self, BindError, Sockets};
use super::server::{Access, Server};
use super::zone::{Place, Zone};
use super::{Config, Error};
use crate::{config, http, servers};

const PORT: u16 = 53;
/// CoreDNS's.
const METRICS_PORT: u16 = 9153;
/// How long to wait for a port that somebody else has.
const RETRY: Duration = Duration::from_secs(5);
/// How often the address is looked for. Somebody may flush `lo`.
const LOOK: Duration = Duration::from_secs(2);

/// Run until `stop`. `ready` is sent when questions are answered, or when it has been logged why not:
/// then it is tried again, and a node without DNS is better than none. While the API server cannot
/// be reached, what is known is served; before it was reached, names of the cluster get SERVFAIL.
///
/// The address stays at the end, so that clients are refused at once and not led elsewhere;
/// [`super::cleanup`] takes it away.
///
/// # Errors
/// A configuration that cannot be used, or a thread that died.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let place = place(&config)?;
    let client = crate::run::client(&config.kubeconfig).await?;
    let server = Arc::new(server(&config, place));
    let serving = stop.child_token();
    let _end_with_us = serving.clone().drop_guard();
    let outcome = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        outcome = watch(client, &server.zone, &config.addresses) => outcome,
        outcome = keep_serving(&config, &server, ready, &serving) => outcome,
    };
    outcome
}

fn place(config: &Config) -> Result<Place, Error> {
    let mut domain = Name::from_ascii(&config.domain)
        .map_err(|_| Error::Domain(config.domain.clone()))?
        .to_lowercase();
    domain.set_fqdn(true);
    if domain.is_root() {
        return Err(Error::Domain(config.domain.clone()));
    }
    Ok(Place {
        domain,
        servers: config.addresses.clone(),
        pods: config::cidrs(&config.cluster_cidr).map_err(Error::Range)?,
        services: config::cidrs(&config.service_cidr).map_err(Error::Range)?,
    })
}

fn server(config: &Config, place: Place) -> Server {
    let listen: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
    let name = format!("dns://{}:{PORT}", listen.join(","));
    let metrics = Arc::new(Metrics::new(&name, &place.domain.to_string()));
    let upstreams = Upstreams::new(config.resolv_conf.clone(), config.addresses.clone());
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A serial number that is larger after a restart; it wraps in 2106, as they may.
    let serial = since.map_or(1, |since| since.as_secs() as u32);
    Server {
        access: Access {
            pods: place.pods.clone(),
            own: RwLock::default(),
        },
        zone: Arc::new(RwLock::new(Zone::new(place, serial))),
        forwarder: Arc::new(Forwarder::new(upstreams, metrics.clone())),
        metrics,
        turn: AtomicUsize::new(0),
    }
}

fn write(zone: &RwLock<Zone>) -> RwLockWriteGuard<'_, Zone> {
    // An event is taken in or not; a panic in between ends the process.
    zone.write().unwrap_or_else(PoisonError::into_inner)
}

/// Fill the zone. Ends only when a watch does, which none does by itself.
async fn watch(client: Client, zone: &RwLock<Zone>, own: &[IpAddr]) -> Result<(), Error> {
    let settings = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), settings()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), settings()).default_backoff();
    let namespaces = watcher(Api::<Namespace>::all(client), settings()).default_backoff();
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    let mut namespaces = pin!(namespaces);
    loop {
        tokio::select! {
            event = services.next() => {
                if let Some(event) = heard("Services", event)? {
                    warn_of_another(&event, own);
                    write(zone).service_event(event);
                }
            }
            event = slices.next() => {
                if let Some(event) = heard("EndpointSlices", event)? {
                    write(zone).slice_event(event);
                }
            }
            event = namespaces.next() => {
                if let Some(event) = heard("Namespaces", event)? {
                    write(zone).namespace_event(event);
                }
            }
        }
    }
}

fn heard<K>(
    what: &'static str,
    event: Option<Result<watcher::Event<K>, watcher::Error>>,
) -> Result<Option<watcher::Event<K>>, Error> {
    match event {
        None => Err(Error::Proxy(crate::Error::WatchEnded(what))),
        Some(Ok(event)) => Ok(Some(event)),
        Some(Err(error)) => {
            tracing::warn!(%error, "watching {what} for cluster DNS");
            Ok(None)
        }
    }
}

/// A Service that has our address and is served by the Service proxy takes what is sent to it.
fn warn_of_another(event: &watcher::Event<Service>, own: &[IpAddr]) {
    let (watcher::Event::Apply(service) | watcher::Event::InitApply(service)) = event else {
        return;
    };
    let served = crate::parse::service(service);
    let taken = served.is_some_and(|s| s.cluster_ips.iter().any(|ip| own.contains(ip)));
    if taken {
        let meta = &service.metadata;
        tracing::warn!(
            namespace = meta.namespace,
            service = meta.name,
            "this Service has the address of cluster DNS, and its endpoints answer; \
             if that is meant, --disable dns"
        );
    }
}

/// Serve, and keep the address. Ends only by failing.
async fn keep_serving(
    config: &Config,
    server: &Arc<Server>,
    ready: oneshot::Sender<()>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let sockets = open(config, server, ready).await?;
    let mut end = serve::start(server.clone(), sockets, stop.clone()).map_err(Error::Thread)?;
    tracing::info!(addresses = ?config.addresses, "cluster DNS is served");
    let _metrics = serve_metrics(config, server, stop);
    loop {
        tokio::select! {
            ended = &mut end => return match ended {
                Ok(Ok(())) if stop.is_cancelled() => Ok(()),
                Ok(Err(error)) => Err(Error::Thread(error)),
                _ => Err(Error::Died),
            },
            () = tokio::time::sleep(LOOK) => {}
        }
        match on_thread(config, |config| address::repair(&config.addresses)).await? {
            Ok((false, own)) => remember(server, own),
            Ok((true, own)) => {
                tracing::warn!(addresses = ?config.addresses, "the address of cluster DNS was gone; it is back");
                remember(server, own);
            }
            Err(error) => warn("keeping the address of cluster DNS", &error),
        }
    }
}

fn remember(server: &Server, own: Vec<IpAddr>) {
    *server
        .access
        .own
        .write()
        .unwrap_or_else(PoisonError::into_inner) = own;
}

fn warn(what: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(error, "{what}; it is tried again");
}

async fn on_thread<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(&Config) -> T + Send + 'static,
) -> Result<T, Error> {
    let config = config.clone();
    let done = spawn_blocking(move || work(&config));
    done.await.map_err(|_| Error::Died)
}

/// Why it is not served yet.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Bind(#[from] BindError),
}

fn try_open(state: &Path, addresses: &[IpAddr]) -> Result<(Vec<Sockets>, Vec<IpAddr>), OpenError> {
    address::take(state, addresses)?;
    let (_, own) = address::repair(addresses)?;
    let sockets = addresses.iter().map(|ip| Sockets::bind((*ip, PORT).into()));
    Ok((sockets.collect::<Result<_, _>>()?, own))
}

/// Have the address and its ports, whenever they can be had.
async fn open(
    config: &Config,
    server: &Server,
    ready: oneshot::Sender<()>,
) -> Result<Vec<Sockets>, Error> {
    let mut ready = Some(ready);
    let mut told = String::new();
    loop {
        let opened = on_thread(config, |c| try_open(&c.state_file, &c.addresses)).await?;
        // Nobody may be waiting; that is no reason to stop.
        ready.take().map(|ready| ready.send(()));
        match opened {
            Ok((sockets, own)) => {
                remember(server, own);
                return Ok(sockets);
            }
            Err(error) => {
                let text = format!("{error:?}");
                if told != text {
                    warn("cluster DNS is not served", &error);
                    told = text;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `/metrics` where CoreDNS has it. The servers end with the set.
fn serve_metrics(config: &Config, server: &Arc<Server>, stop: &CancellationToken) -> JoinSet<()> {
    let mut set = JoinSet::new();
    for ip in &config.addresses {
        let address = (*ip, METRICS_PORT).into();
        let server = server.clone();
        let answer: http::Answer = Arc::new(move |path| match path {
            "/metrics" => {
                let cached = server.forwarder.cached_counts();
                servers::page(server.metrics.render(cached))
            }
            _ => http::status(StatusCode::NOT_FOUND),
        });
        let failed = move |error| tracing::warn!(%address, %error, "listening; it is tried again");
        set.spawn(http::serve(address, answer, failed, stop.clone()));
    }
    set
}
