// SPDX-License-Identifier: Apache-2.0
//! The node API on port 10250: pods, logs, exec, attach, port-forward, stats, metrics.
//!
//! [`route`], [`auth`], [`stats`] and most of [`logs`] are pure; [`handlers`] has one function
//! per request; [`splice`] hands streams through to the runtime. [`run`] owns every connection
//! and every stream, and ends them all when it is stopped.

mod auth;
mod handlers;
mod healthz;
mod logs;
mod reply;
mod route;
mod runtime;
mod splice;
mod stats;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::{ImageClient, RuntimeClient};
use auth::Identity;
use handlers::Service;

#[cfg(test)]
pub(crate) use tests::fake_cri::FakeCri;
pub use tls::TlsError;

/// From the connection to the end of the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// For the headers of a request, and between two requests of a connection (upstream: 90 s).
const HEADER_DEADLINE: Duration = Duration::from_secs(90);
/// More connections than this wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// After `stop`, open requests and streams have this long to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// After an accept that failed for lack of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where and how to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The Node object's name, for stats.
    pub node_name: String,
    /// Listen address of the node API.
    pub address: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// `127.0.0.1:<port>/healthz`; 0 turns it off.
    pub healthz_port: u16,
    /// Clients are verified against this CA. Without it every request gets 401.
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate; without it a self-signed one is made in memory.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// The filesystem that the stats report as the node's.
    pub data_dir: PathBuf,
}

/// The kubelet's pods, as the node API needs them. Both calls read memory only.
///
/// Containers and sandboxes are found through the runtime (labels `io.kubernetes.pod.uid` and
/// `io.kubernetes.container.name`), log files through `ContainerStatus.log_path`.
pub trait PodLookup: Send + Sync + 'static {
    /// Every pod of this node, with the newest status.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// One pod, with the newest status.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
}

/// Why the node API could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificates are unusable.
    #[error("setting up the node api's tls")]
    Tls(#[from] TlsError),
    /// The address is taken or not ours.
    #[error("listening on {address}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Serves until `stop`; `ready` gets the bound port. Dropping the future closes the listeners and
/// leaves streams to end by themselves; prefer `stop`.
///
/// # Errors
/// An address that cannot be bound, or certificates that cannot be read.
pub async fn run(
    options: ServerOptions,
    pods: Arc<dyn PodLookup>,
    runtime: RuntimeClient,
    images: ImageClient,
    ready: oneshot::Sender<u16>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let tls = TlsAcceptor::from(Arc::new(tls::server_config(&options)?));
    let listener = listen(SocketAddr::new(options.address, options.port)).await?;
    let port = listener.local_addr().map_or(options.port, |a| a.port());
    let health = match options.healthz_port {
        0 => None,
        port => Some(listen(SocketAddr::from(([127, 0, 0, 1], port))).await?),
    };
    let tracker = TaskTracker::new();
    if let Some(health) = health {
        tracker.spawn(healthz::serve(health, stop.clone()));
    }
    let service = Arc::new(Service {
        node_name: options.node_name,
        data_dir: options.data_dir,
        pods,
        runtime: runtime::Runtime { runtime, images },
        tracker: tracker.clone(),
        stop: stop.clone(),
        cpu: Mutex::new(None),
    });
    // Whoever waited may have gone; the server is wanted all the same.
    let _ = ready.send(port);
    accept(&listener, &tls, &service).await;
    drop(listener);
    tracker.close();
    if timeout(DRAIN_DEADLINE, tracker.wait()).await.is_err() {
        tracing::warn!(
            left = tracker.len(),
            "node api connections did not end in time"
        );
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { address, source })
}

async fn accept(listener: &TcpListener, tls: &TlsAcceptor, service: &Arc<Service>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = service.stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (tls, service) = (tls.clone(), Arc::clone(service));
                let tracker = service.tracker.clone();
                tracker.spawn(async move {
                    connection(stream, tls, service).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the node api was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, service: Arc<Service>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection stays with Nagle's algorithm");
    }
    let stream = match timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a tls handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(<[_]>::first);
    let identity = identity.and_then(Identity::from_certificate).map(Arc::new);
    let stop = service.stop.clone();
    let handler = service_fn(move |request| {
        let (service, identity) = (Arc::clone(&service), identity.clone());
        async move { Ok::<_, std::convert::Infallible>(service.handle(identity, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), handler)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a node api connection ended");
    }
}
