// SPDX-License-Identifier: Apache-2.0
//! Sockets: TLS with optional client certificates, HTTP/1.1 and HTTP/2, and an orderly end.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    allocate::Ranges, api::Api, authn::User, bootstrap, bootstrap_dns, error::ApiError,
    kubelet::Kubelets,
};
use crate::{pki::ServerFiles, store::Store};

/// How long a connection may stay silent between requests. Clients keep idle connections for up to
/// 90 seconds (hyper, Go); a server that is quicker to close fails the request that they then send.
const IDLE: Duration = Duration::from_secs(120);

/// Time for a client to finish the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Time that connections get to finish what they are doing when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener could not be bound.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key could not be used.
    #[error("using the certificate {path}: {reason}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
    /// An object that must exist could not be made.
    #[error("making {what}: {reason}")]
    Bootstrap {
        /// The object.
        what: String,
        /// The refusal.
        reason: String,
    },
}

/// What a server is made of.
pub(crate) struct ServerParts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) files: ServerFiles,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: SocketAddr,
    pub(crate) service_ranges: Ranges,
    pub(crate) server_version: String,
}

/// A server whose socket is bound.
pub(crate) struct Server {
    api: Arc<Api>,
    listener: TcpListener,
    tls: TlsAcceptor,
    advertise: SocketAddr,
    local: SocketAddr,
}

impl Server {
    /// Binds the socket. Connections wait until [`Server::run`].
    pub(crate) async fn bind(
        parts: ServerParts,
        stop: CancellationToken,
    ) -> Result<Self, ServeError> {
        let fail = |source| ServeError::Listen {
            address: parts.listen,
            source,
        };
        let listener = TcpListener::bind(parts.listen).await.map_err(fail)?;
        let local = listener.local_addr().map_err(fail)?;
        let api = Api {
            store: parts.store,
            ranges: parts.service_ranges,
            kubelets: Kubelets::new(&parts.files)?,
            server_version: parts.server_version,
            ready: AtomicBool::new(false),
            stop,
        };
        let mut advertise = parts.advertise;
        if advertise.port() == 0 {
            advertise.set_port(local.port());
        }
        Ok(Self {
            api: Arc::new(api),
            listener,
            tls: TlsAcceptor::from(Arc::new(tls(&parts.files)?)),
            advertise,
            local,
        })
    }

    /// The bound port.
    pub(crate) fn port(&self) -> u16 {
        self.local.port()
    }

    /// Makes sure that the objects are there that every cluster has. From here on `/readyz` is ok.
    pub(crate) async fn bootstrap(&self, dns: &[IpAddr]) -> Result<(), ServeError> {
        bootstrap::ensure(&self.api, self.advertise).await.map_err(
            |(what, error): (String, ApiError)| ServeError::Bootstrap {
                what,
                reason: error.message,
            },
        )?;
        bootstrap_dns::ensure(&self.api, dns).await;
        self.api.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Serves until the token is cancelled: then not ready, no new connections, a deadline for
    /// those that are there.
    pub(crate) async fn run(self) {
        let connections = TaskTracker::new();
        let stop = self.api.stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((socket, _)) => {
                    let tls = self.tls.clone();
                    connections.spawn(connection(self.api.clone(), tls, socket));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tracing::info!(open = connections.len(), "API server: draining connections");
        connections.close();
        if tokio::time::timeout(DRAIN_DEADLINE, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                open = connections.len(),
                "API server: connections did not end in time"
            );
        }
    }
}

/// One connection, from the handshake to its end.
async fn connection(api: Arc<Api>, tls: TlsAcceptor, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let socket = match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(socket)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake");
            return;
        }
        Err(_) => return,
    };
    let certificate = socket
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let user = certificate.and_then(User::of_certificate);
    let stop = api.stop.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(api.handle(user, request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .header_read_timeout(IDLE)
        .timer(hyper_util::rt::TokioTimer::new());
    server
        .http2()
        .timer(hyper_util::rt::TokioTimer::new())
        .max_concurrent_streams(250)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let serving = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection");
    }
}

/// Reads a certificate and its key.
pub(super) fn certificate(
    files: &crate::pki::KeyFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ServeError> {
    let fail = |path: &PathBuf, reason: String| ServeError::Certificate {
        path: path.clone(),
        reason,
    };
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|e| fail(&files.cert, e.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|e| fail(&files.key, e.to_string()))?;
    Ok((certificates, key))
}

/// The authority as the only root.
pub(super) fn roots(files: &ServerFiles) -> Result<RootCertStore, ServeError> {
    let fail = |reason: String| ServeError::Certificate {
        path: PathBuf::from("ca.crt"),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(files.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| fail(e.to_string()))?;
        roots.add(certificate).map_err(|e| fail(e.to_string()))?;
    }
    Ok(roots)
}

fn tls(files: &ServerFiles) -> Result<rustls::ServerConfig, ServeError> {
    let fail = |reason: String| ServeError::Certificate {
        path: files.serving.cert.clone(),
        reason,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(files)?), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| fail(e.to_string()))?;
    let (certificates, key) = certificate(&files.serving)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(|e| fail(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
