// SPDX-License-Identifier: Apache-2.0
//! Connections to kubelets: TLS both ways with the cluster's authority, HTTP/1.1.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        error::ApiError,
        serve::{ServeError, certificate, roots},
    },
    map::Place,
};
use crate::pki::ServerFiles;

/// Time to connect and to agree on TLS.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Opens connections.
pub(super) struct Dialer {
    tls: TlsConnector,
}

impl Dialer {
    pub(super) fn new(files: &ServerFiles) -> Result<Self, ServeError> {
        let (certificates, key) = certificate(&files.kubelet_client)?;
        let fail = |e: rustls::Error| ServeError::Certificate {
            path: files.kubelet_client.cert.clone(),
            reason: e.to_string(),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(fail)?
            .with_root_certificates(roots(files)?)
            .with_client_auth_cert(certificates, key)
            .map_err(fail)?;
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Opens a connection and drives it in a task that ends with it or with `stop`.
    pub(super) async fn connect(
        &self,
        place: &Place,
        stop: CancellationToken,
    ) -> Result<SendRequest<Full<Bytes>>, ApiError> {
        let fail = |why: String| {
            ApiError::internal(format!(
                "error dialing kubelet of node {} at {}: {why}",
                place.node, place.address
            ))
        };
        let dial = async {
            let socket = TcpStream::connect(place.address).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::IpAddress(place.address.ip().into());
            self.tls.connect(name, socket).await
        };
        let socket = tokio::time::timeout(DIAL_DEADLINE, dial)
            .await
            .map_err(|_| fail("timed out".to_owned()))?
            .map_err(|e| fail(e.to_string()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|e| fail(e.to_string()))?;
        tokio::spawn(async move {
            tokio::select! {
                ended = connection.with_upgrades() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection to a kubelet");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        Ok(sender)
    }
}
