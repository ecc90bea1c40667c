// SPDX-License-Identifier: Apache-2.0
//! The node API's certificate, and the CA that its clients are checked against.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::ServerOptions;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that isn't PEM, or isn't there.
    #[error("reading {what} from {path}")]
    Read {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it wasn't found.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate without its key, or the other way round.
    #[error("tlsCertFile and tlsPrivateKeyFile must be given together")]
    Pair,
    /// A self-signed certificate could not be made.
    #[error("making a self-signed certificate")]
    SelfSigned(#[source] rcgen::Error),
    /// The client CA is unusable.
    #[error("using the client ca from {path}")]
    ClientCa {
        /// Where it came from.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificate and key don't go together, or no common protocol.
    #[error("using the serving certificate")]
    Serving(#[source] rustls::Error),
}

/// Builds the server's side. Clients may come without a certificate; what they then get is 401.
pub(super) fn server_config(options: &ServerOptions) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = certificate(options)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Serving)?;
    let builder = match &options.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| bad_ca(path)(error.into()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(TlsError::Serving)?;
    // Upgrades need HTTP/1.1, and every client here may want one.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn bad_ca(path: &Path) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::ClientCa { path, source }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| bad_ca(path)(error.into()))?;
    }
    Ok(roots)
}

type Served = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn certificate(options: &ServerOptions) -> Result<Served, TlsError> {
    match (&options.tls_cert_file, &options.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(unread("a private key", key))?;
            Ok((certificates(certificate)?, key))
        }
        (None, None) => self_signed(&options.node_name),
        _ => Err(TlsError::Pair),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificates";
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(unread(what, path))
}

fn unread(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(rustls::pki_types::pem::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::Read { what, path, source }
}

/// For a kubelet that nobody gave a certificate. It lives in memory only.
fn self_signed(node_name: &str) -> Result<Served, TlsError> {
    let names = vec![node_name.to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(TlsError::SelfSigned)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}
