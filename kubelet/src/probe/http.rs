// SPDX-License-Identifier: Apache-2.0
//! A small HTTP/1.1 client for probes and lifecycle hooks: one request per connection, certificates
//! not verified (as upstream: a probe asks whether somebody answers, not who), redirects followed
//! only within the same host. The caller brings the deadline.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{HTTPGetAction, HTTPHeader};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of a body that are read: it is shown in no event, but the server should see it taken.
const BODY_BYTES_MAX: usize = 10 * 1024;
/// Upstream's bound on redirects.
const REDIRECTS_MAX: usize = 10;

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code of the last response.
    pub status: u16,
    /// A redirect to another host was not followed; where it pointed.
    pub redirected_away: Option<String>,
}

/// Why there is no answer, in the words that Go's client would use.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("Get \"{url}\": {problem}")]
pub struct HttpError {
    url: String,
    problem: String,
}

/// The URL of an `httpGet` action. `port` is already looked up.
pub fn url(action: &HTTPGetAction, default_host: &str, port: u16) -> String {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let host = action.host.as_deref().filter(|host| !host.is_empty());
    let host = host.unwrap_or(default_host);
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}:{port}{slash}{path}")
}

/// Gets `url`. A name in `headers` replaces the default header of that name; `Host` sets the host.
///
/// # Errors
/// Connecting, TLS or the protocol failed; no status code says that.
pub async fn get(url: &str, headers: &[HTTPHeader]) -> Result<Answer, HttpError> {
    let mut current = url.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        let fail = |problem: String| HttpError {
            url: current.clone(),
            problem,
        };
        let uri: Uri = current
            .parse()
            .map_err(|_| fail("invalid URL".to_owned()))?;
        let (status, location) = once(&uri, headers).await.map_err(fail)?;
        let Some(location) = location.filter(|_| (300..400).contains(&status)) else {
            return Ok(Answer {
                status,
                redirected_away: None,
            });
        };
        let next = resolve(&uri, &location);
        let same = next
            .parse::<Uri>()
            .is_ok_and(|next| next.host() == uri.host());
        if !same {
            return Ok(Answer {
                status,
                redirected_away: Some(next),
            });
        }
        current = next;
    }
    Err(HttpError {
        url: url.to_owned(),
        problem: format!("stopped after {REDIRECTS_MAX} redirects"),
    })
}

fn resolve(base: &Uri, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let scheme = base.scheme_str().unwrap_or("http");
    let authority = base
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}");
    }
    let path = base.path();
    let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    format!("{scheme}://{authority}{folder}{location}")
}

async fn once(uri: &Uri, headers: &[HTTPHeader]) -> Result<(u16, Option<String>), String> {
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let stream = TcpStream::connect((bare, port))
        .await
        .map_err(|error| dial_error(bare, port, &error))?;
    if https {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting_tls()?));
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| format!("tls: {error}"))?;
        return exchange(stream, uri, headers).await;
    }
    exchange(stream, uri, headers).await
}

/// How Go prints a failed dial.
pub fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let problem = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {problem}")
}

async fn exchange<S>(
    stream: S,
    uri: &Uri,
    headers: &[HTTPHeader],
) -> Result<(u16, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(uri, headers)?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let location = response.headers().get(http::header::LOCATION);
        let location = location
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        // Too long or broken bodies do not matter: the status has been said.
        let _ = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await;
        Ok((status, location))
    };
    let mut talk = std::pin::pin!(talk);
    // The connection is driven here and dropped with the answer: nothing outlives the probe. A
    // server may close at once; what it said before is still to be had then.
    tokio::select! {
        biased;
        answer = &mut talk => answer,
        ended = connection => talk.await.map_err(|problem: String| match ended {
            Ok(()) => "EOF".to_owned(),
            Err(_) => problem,
        }),
    }
}

fn request(uri: &Uri, extra: &[HTTPHeader]) -> Result<Request<Empty<Bytes>>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(
        http::header::USER_AGENT,
        HeaderValue::from_static("kube-probe/1.37"),
    );
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let host = HeaderValue::from_str(&authority).map_err(|error| error.to_string())?;
    headers.insert(http::header::HOST, host);
    let mut replaced = std::collections::HashSet::new();
    for header in extra {
        let name: HeaderName = header
            .name
            .parse()
            .map_err(|_| format!("invalid header name {:?}", header.name))?;
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| format!("invalid value of header {name}"))?;
        // An empty value takes the default away, as upstream allows for User-Agent and Accept.
        if replaced.insert(name.clone()) {
            headers.remove(&name);
        }
        if !header.value.is_empty() {
            headers.append(name, value);
        }
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse().map_err(|_| "invalid URL path".to_owned())?;
    *request.headers_mut() = headers;
    Ok(request)
}

pub(crate) fn trusting_tls() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Accepts every certificate; see the module's text.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers each connection with the next of these responses; returns the port.
    async fn serve(responses: Vec<String>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            for response in responses {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(response.as_bytes()).await;
            }
        });
        port
    }

    fn response(head: &str) -> String {
        format!("HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\nhi")
    }

    #[tokio::test]
    async fn the_status_is_told() {
        let port = serve(vec![response("503 Busy")]).await;
        let answer = get(&format!("http://127.0.0.1:{port}/x"), &[]).await;
        assert_eq!(answer.map(|answer| answer.status), Ok(503));
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_host_only() {
        let port = serve(vec![
            response("302 Found\r\nLocation: /next"),
            response("200 OK"),
        ])
        .await;
        let answer = get(&format!("http://127.0.0.1:{port}/"), &[])
            .await
            .expect("answers");
        assert_eq!((answer.status, answer.redirected_away), (200, None));
        let port = serve(vec![response("302 Found\r\nLocation: http://example.org/")]).await;
        let answer = get(&format!("http://127.0.0.1:{port}/"), &[])
            .await
            .expect("answers");
        assert_eq!(
            answer.redirected_away.as_deref(),
            Some("http://example.org/")
        );
    }

    #[tokio::test]
    async fn a_closed_port_reads_as_go_says_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let error = get(&format!("http://127.0.0.1:{port}/"), &[])
            .await
            .expect_err("nobody listens");
        assert_eq!(
            error.to_string(),
            format!(
                "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
    }
}
