// SPDX-License-Identifier: Apache-2.0
//! The HTTP client for one endpoint: what to trust, what to show, which proxy, how long to wait.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, Url, redirect};

use super::super::error::ImageError;
use super::dns::SystemResolver;
use super::hosts::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that follows no redirects, because that is where credentials could go astray, and that
/// takes a transfer for failed when nothing arrives for `idle`, unless that is zero.
pub(super) fn client(endpoint: &Endpoint, idle: Duration) -> Result<Client, ImageError> {
    let mut builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(endpoint.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
        .dns_resolver(Arc::new(SystemResolver::default()))
        .tls_danger_accept_invalid_certs(endpoint.skip_verify)
        // Not HTTP/2: there all layers share one connection, and when that one stalls, so does every
        // further attempt. Of HTTP/1.1, a transfer that failed closes its own.
        .http1_only()
        .redirect(redirect::Policy::none());
    if !idle.is_zero() {
        builder = builder.read_timeout(idle);
    }
    if endpoint.base.scheme() == "http" {
        // A machine without any CA certificates can still use a plain registry.
        builder = builder.tls_certs_only([]);
    }
    // HTTP_PROXY, HTTPS_PROXY and NO_PROXY count, but never for this machine itself, as in Go.
    if is_loopback(&endpoint.base) {
        builder = builder.no_proxy();
    }
    for path in &endpoint.ca {
        let pem = read("reading CA certificates from", path)?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|source| not_valid("CA certificates in", path, source))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some((certificate, key)) = &endpoint.client {
        let mut pem = read("reading the client certificate from", certificate)?;
        if key != certificate {
            pem.push(b'\n');
            pem.extend(read("reading the client's key from", key)?);
        }
        let identity = Identity::from_pem(&pem).map_err(|source| {
            not_valid("the client certificate and key in", certificate, source)
        })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|source| ImageError::Malformed {
        what: format!(
            "cannot set up TLS for {} (is the package ca-certificates installed?)",
            host_of(&endpoint.base)
        ),
        source: Some(source.into()),
    })
}

fn read(doing: &'static str, path: &Path) -> Result<Vec<u8>, ImageError> {
    std::fs::read(path).map_err(|source| ImageError::storage(doing, path, source))
}

fn not_valid(what: &str, path: &Path, source: reqwest::Error) -> ImageError {
    ImageError::Malformed {
        what: format!("{what} {} are not valid", path.display()),
        source: Some(source.into()),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

pub(super) fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}
