// SPDX-License-Identifier: Apache-2.0
//! A client of the streaming server that speaks SPDY/3.1, over TCP, TLS or a WebSocket tunnel.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cri::streaming::spdy::decode::Decoder;
use cri::streaming::spdy::encode::Encoder;
use cri::streaming::spdy::frame::Frame;
use cri::streaming::spdy::headers::Headers;
use cri::streaming::tunnel::Tunnel;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, crypto};

use crate::node::PATIENCE;

pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Both ends of a SPDY connection, which can be driven apart.
pub(crate) struct Spdy {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

pub(crate) struct Sender {
    io: tokio::io::WriteHalf<Box<dyn Wire>>,
    encoder: Encoder,
    next: u32,
}

pub(crate) struct Receiver {
    io: tokio::io::ReadHalf<Box<dyn Wire>>,
    decoder: Decoder,
    buffer: BytesMut,
}

/// Connects to where a URL points, with TLS if it says so.
pub(crate) async fn connect(url: &str) -> Box<dyn Wire> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let address = rest.split('/').next().unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    if scheme == "http" {
        return Box::new(tcp);
    }
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Box::new(connector.connect(name, tcp).await.unwrap())
}

/// Asks for an upgrade. The answer's head, and the connection if it was granted.
pub(crate) async fn upgrade(url: &str, headers: &str) -> (String, Box<dyn Wire>) {
    let mut io = connect(url).await;
    let rest = url.split_once("://").unwrap().1;
    let (host, path) = rest.split_once('/').unwrap();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), io)
}

impl Spdy {
    /// Upgrades with one of these protocols, and says which it was.
    pub(crate) async fn open(url: &str, protocols: &str) -> (String, Self) {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocols}");
        let (head, io) = upgrade(url, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let chosen = head
            .lines()
            .find_map(|l| l.strip_prefix("x-stream-protocol-version: "));
        (chosen.unwrap().to_owned(), Self::over(io))
    }

    /// In the messages of a WebSocket.
    pub(crate) async fn tunnelled(url: &str) -> Self {
        let socket = crate::streams::open(url, "SPDY/3.1+portforward.k8s.io").await;
        Self::over(Box::new(Tunnel::new(socket.unwrap())))
    }

    fn over(io: Box<dyn Wire>) -> Self {
        let (reader, writer) = tokio::io::split(io);
        Self {
            sender: Sender {
                io: writer,
                encoder: Encoder::default(),
                next: 1,
            },
            receiver: Receiver {
                io: reader,
                decoder: Decoder::new(),
                buffer: BytesMut::new(),
            },
        }
    }

    /// Reads until every stream of `streams` was closed or reset by the server, or the connection
    /// ended. What came on each.
    pub(crate) async fn until_closed(&mut self, streams: &[u32]) -> HashMap<u32, Vec<u8>> {
        let (mut open, mut text) = (streams.to_vec(), HashMap::<u32, Vec<u8>>::new());
        while !open.is_empty() {
            match self.receiver.next().await {
                None => break,
                Some(Frame::Data { stream, fin, data }) => {
                    text.entry(stream).or_default().extend_from_slice(&data);
                    open.retain(|s| !fin || *s != stream);
                }
                Some(Frame::RstStream { stream, .. }) => open.retain(|s| *s != stream),
                Some(_) => {}
            }
        }
        text
    }
}

impl Sender {
    pub(crate) async fn frame(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(frame, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Opens a stream with these headers.
    pub(crate) async fn stream(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = headers.iter();
        let headers = headers.map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        self.frame(&Frame::SynStream {
            stream,
            fin: false,
            unidirectional: false,
            headers: Headers(headers.collect()),
        })
        .await;
        stream
    }

    /// The streams of one forwarded connection: error and data.
    pub(crate) async fn pair(&mut self, id: &str, port: u16) -> (u32, u32) {
        let port = port.to_string();
        let mut pair = [0; 2];
        for (stream, kind) in pair.iter_mut().zip(["error", "data"]) {
            let headers = [("streamtype", kind), ("port", &port), ("requestid", id)];
            *stream = self.stream(&headers).await;
        }
        (pair[0], pair[1])
    }

    pub(crate) async fn data(&mut self, stream: u32, data: &[u8], fin: bool) {
        let data = Bytes::copy_from_slice(data);
        self.frame(&Frame::Data { stream, fin, data }).await;
    }
}

impl Receiver {
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            self.buffer.reserve(64 << 10);
            let reading = self.io.read_buf(&mut self.buffer);
            let read = tokio::time::timeout(PATIENCE, reading).await;
            if !matches!(read.expect("a frame in time"), Ok(1..)) {
                return None;
            }
        }
    }
}

/// Whoever it is that answers.
#[derive(Debug)]
struct Anyone(Arc<crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
