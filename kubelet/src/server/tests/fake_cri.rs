// SPDX-License-Identifier: Apache-2.0
//! A runtime that speaks CRI on a unix socket: gRPC framing over HTTP/2, and a streaming server
//! that upgrades. Only the client side of the contract is generated, so the server is by hand.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::cri_v1 as cri;

/// The state of the one container of the one pod.
pub(crate) struct FakeCri {
    pub(crate) log_path: PathBuf,
    pub(crate) running: AtomicBool,
    pub(crate) network_ready: AtomicBool,
    /// `http://127.0.0.1:<port>` of the streaming server.
    streaming: String,
}

impl FakeCri {
    /// Serves until the test's runtime ends.
    pub(crate) async fn start(socket: &Path, log_path: PathBuf) -> Arc<Self> {
        let streams = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = streams.local_addr().expect("bound");
        let fake = Arc::new(Self {
            log_path,
            running: AtomicBool::new(true),
            network_ready: AtomicBool::new(true),
            streaming: format!("http://{address}"),
        });
        tokio::spawn(serve_streams(streams));
        let listener = UnixListener::bind(socket).expect("binds");
        tokio::spawn(serve_cri(listener, Arc::clone(&fake)));
        fake
    }

    /// The answer to one call: a message, or a gRPC status code.
    fn answer(&self, call: &str, request: &[u8]) -> Result<Vec<u8>, u8> {
        let url = |path: &str| format!("{}/{path}", self.streaming);
        Ok(match call {
            "Status" => self.status().encode_to_vec(),
            "Version" => cri::VersionResponse {
                runtime_name: "podwright".into(),
                runtime_version: "0.1.0".into(),
                ..cri::VersionResponse::default()
            }
            .encode_to_vec(),
            "ListContainers" => {
                let request = decode::<cri::ListContainersRequest>(request);
                let wants = request.filter.unwrap_or_default().label_selector;
                let name = wants.get("io.kubernetes.container.name");
                let ours = name.is_none_or(|name| name == "app") && self.running();
                let containers = ours.then(|| self.container()).into_iter().collect();
                cri::ListContainersResponse { containers }.encode_to_vec()
            }
            "ContainerStatus" => cri::ContainerStatusResponse {
                status: Some(cri::ContainerStatus {
                    id: "c1".into(),
                    log_path: self.log_path.to_string_lossy().into_owned(),
                    state: self.container().state,
                    ..cri::ContainerStatus::default()
                }),
                ..cri::ContainerStatusResponse::default()
            }
            .encode_to_vec(),
            "ListPodSandbox" => cri::ListPodSandboxResponse {
                items: vec![cri::PodSandbox {
                    id: "s1".into(),
                    metadata: Some(metadata()),
                    ..cri::PodSandbox::default()
                }],
            }
            .encode_to_vec(),
            "Exec" => {
                let request = decode::<cri::ExecRequest>(request);
                let url = url(&format!("exec?cmd={}", request.cmd.join("+")));
                cri::ExecResponse { url }.encode_to_vec()
            }
            "Attach" => cri::AttachResponse { url: url("attach") }.encode_to_vec(),
            "PortForward" => {
                let request = decode::<cri::PortForwardRequest>(request);
                let url = url(&format!("portforward/{}", request.pod_sandbox_id));
                cri::PortForwardResponse { url }.encode_to_vec()
            }
            "ExecSync" => {
                let cmd = decode::<cri::ExecSyncRequest>(request).cmd;
                cri::ExecSyncResponse {
                    stdout: cmd.join("|").into_bytes(),
                    stderr: vec![],
                    exit_code: i32::from(cmd == ["false"]),
                }
                .encode_to_vec()
            }
            "ListContainerStats" => cri::ListContainerStatsResponse::default().encode_to_vec(),
            // UNIMPLEMENTED, as a runtime of another version would say.
            _ => return Err(12),
        })
    }

    fn status(&self) -> cri::StatusResponse {
        let condition = |name: &str, status: bool| cri::RuntimeCondition {
            r#type: name.into(),
            status,
            reason: if status { "" } else { "NetworkPluginNotReady" }.into(),
            message: if status { "" } else { "no network" }.into(),
        };
        let network = self.network_ready.load(Ordering::SeqCst);
        let conditions = vec![
            condition("RuntimeReady", true),
            condition("NetworkReady", network),
        ];
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            ..cri::StatusResponse::default()
        }
    }

    fn running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    fn container(&self) -> cri::Container {
        let state = if self.running() {
            cri::ContainerState::ContainerRunning
        } else {
            cri::ContainerState::ContainerExited
        };
        cri::Container {
            id: "c1".into(),
            pod_sandbox_id: "s1".into(),
            metadata: Some(cri::ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
            state: state.into(),
            ..cri::Container::default()
        }
    }
}

fn metadata() -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: "web".into(),
        namespace: "ns".into(),
        uid: "u-1".into(),
        attempt: 0,
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> M {
    M::decode(bytes).expect("a valid request")
}

async fn serve_cri(listener: UnixListener, fake: Arc<FakeCri>) {
    while let Ok((stream, _)) = listener.accept().await {
        let fake = Arc::clone(&fake);
        let service = service_fn(move |request| grpc(Arc::clone(&fake), request));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

type Frames =
    StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// One unary call: a five byte header, the message, and the status in the trailers.
async fn grpc(
    fake: Arc<FakeCri>,
    request: Request<Incoming>,
) -> Result<Response<Frames>, Infallible> {
    let path = request.uri().path().to_owned();
    let call = path.rsplit('/').next().unwrap_or_default();
    let body = request.into_body().collect().await.expect("a body");
    let body = body.to_bytes();
    let mut frames = Vec::new();
    let status = match fake.answer(call, &body[5..]) {
        Ok(message) => {
            let mut data = BytesMut::new();
            data.put_u8(0);
            data.put_u32(u32::try_from(message.len()).expect("small"));
            data.put_slice(&message);
            frames.push(Ok(Frame::data(data.freeze())));
            0
        }
        Err(status) => status,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

async fn serve_streams(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(stream_server(stream));
    }
}

/// Upgrades, says what was asked for, reads to the end of input, and says what came.
async fn stream_server(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let line = head.lines().next().unwrap_or_default().to_owned();
    if !head.contains("upgrade: websocket") || head.contains("authorization") {
        return stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")
            .await;
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-protocol: v5.channel.k8s.io\r\n\r\n";
    stream.write_all(answer.as_bytes()).await?;
    stream.write_all(format!("[{line}]").as_bytes()).await?;
    let mut input = Vec::new();
    stream.read_to_end(&mut input).await?;
    // The other direction is closed, and this one still works.
    stream.write_all(b"got ").await?;
    stream.write_all(&input).await?;
    stream.shutdown().await
}
