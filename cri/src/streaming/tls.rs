// SPDX-License-Identifier: Apache-2.0
//! TLS for the streaming server: a certificate from files, or one that it signs itself at each start.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::fault::{Fault, Result};
use crate::settings::Streaming;

/// What connections are accepted with; `None` for plain HTTP. Blocks on files.
///
/// # Errors
/// A file cannot be read, or key and certificate do not go together.
pub(super) fn acceptor(config: &Streaming, address: IpAddr) -> Result<Option<TlsAcceptor>> {
    if !config.enable_tls {
        return Ok(None);
    }
    let (certificates, key) = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(certificate), Some(key)) => from_files(certificate, key)?,
        _ => self_signed(address)?,
    };
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|e| Fault::internal("the streaming server's certificate cannot be used", e))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn from_files(certificate: &Path, key: &Path) -> Result<Identity> {
    let failed = |path: &Path, error| {
        Fault::internal(format!("reading {} for streaming", path.display()), error)
    };
    let certificates: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let certificates = certificates.map_err(|e| failed(certificate, e))?;
    if certificates.is_empty() {
        return Err(Fault::invalid(format!(
            "{} holds no certificate",
            certificate.display()
        )));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, e))?;
    Ok((certificates, key))
}

/// For localhost and the address that is listened on.
fn self_signed(address: IpAddr) -> Result<Identity> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if !address.is_unspecified() && !address.is_loopback() {
        names.push(address.to_string());
    }
    let signed = rcgen::generate_simple_self_signed(names)
        .map_err(|e| Fault::internal("making the streaming server's certificate", e))?;
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    Ok((vec![signed.cert.der().clone()], key.into()))
}
