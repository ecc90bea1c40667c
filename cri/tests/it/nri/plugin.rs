// SPDX-License-Identifier: Apache-2.0
//! A plugin as the runtime meets it: a socket, ttrpc messages on it, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cri::nri::api;
use cri::nri::wire::{self, Demux, Kind, Message};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::node::{Handle, PATIENCE};

/// What a plugin does when it is asked.
pub(crate) enum Reply {
    /// The encoded answer.
    Say(Vec<u8>),
    Refuse(i32, &'static str),
    /// Answers with nothing, once it is let.
    When(Arc<Notify>),
    Never,
}

/// Says one message.
pub(crate) fn say(message: &impl prost::Message) -> Reply {
    Reply::Say(message.encode_to_vec())
}

type Behaviour = Box<dyn Fn(&str, &[u8]) -> Reply + Send + Sync>;
type Answers = Arc<Mutex<HashMap<u32, oneshot::Sender<api::TtrpcResponse>>>>;

/// Something that the plugin was asked.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
    /// Of a pod or a container, where the request is about one.
    pub(crate) pod: api::PodSandbox,
    pub(crate) container: api::Container,
}

/// A connected plugin. It goes when it is dropped.
pub(crate) struct Plugin {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: Arc<Notify>,
    write: mpsc::UnboundedSender<Vec<u8>>,
    answers: Answers,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Where this node's plugins connect.
pub(crate) fn socket_of(node: &Handle) -> PathBuf {
    let settings = node.config().settings.get();
    settings.nri.socket_path.clone().unwrap()
}

/// What a plugin says where nothing else is said. It wants to hear of everything, and validates nothing.
pub(crate) fn agree(method: &str, payload: &[u8]) -> Reply {
    match method {
        "Configure" => say(&api::ConfigureResponse { events: 0x1fff }),
        "Synchronize" => {
            let request = api::SynchronizeRequest::decode(payload).unwrap();
            say(&api::SynchronizeResponse {
                more: request.more,
                ..Default::default()
            })
        }
        _ => Reply::Say(Vec::new()),
    }
}

impl Plugin {
    /// Connects and registers; returns once it is synchronized.
    pub(crate) async fn join(
        node: &Handle,
        index: &str,
        name: &str,
        behaviour: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static,
    ) -> Plugin {
        let plugin = Plugin::connect(node, behaviour).await;
        let answer = plugin.register(index, name).await;
        assert_eq!(answer.status.unwrap_or_default().code, 0);
        plugin.heard("Synchronize").await;
        plugin
    }

    /// Connects, and says nothing yet.
    pub(crate) async fn connect(
        node: &Handle,
        behaviour: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static,
    ) -> Plugin {
        let socket = UnixStream::connect(socket_of(node)).await.unwrap();
        Plugin::on(socket, behaviour)
    }

    fn on(
        socket: UnixStream,
        behaviour: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static,
    ) -> Plugin {
        let (read, mut half) = socket.into_split();
        let (write, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        let writer = tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if half.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let mut plugin = Plugin {
            seen: Arc::default(),
            changed: Arc::default(),
            write,
            answers: Arc::default(),
            tasks: vec![writer],
        };
        let reader = Reader {
            seen: plugin.seen.clone(),
            changed: plugin.changed.clone(),
            write: plugin.write.clone(),
            answers: plugin.answers.clone(),
            behaviour: Box::new(behaviour),
        };
        plugin.tasks.push(tokio::spawn(reader.run(read)));
        plugin
    }

    pub(crate) async fn register(&self, index: &str, name: &str) -> api::TtrpcResponse {
        let request = api::RegisterPluginRequest {
            plugin_name: name.to_owned(),
            plugin_idx: index.to_owned(),
            nri_version: "test".to_owned(),
        };
        self.ask("RegisterPlugin", &request).await
    }

    /// Asks the runtime.
    pub(crate) async fn ask(
        &self,
        method: &str,
        request: &impl prost::Message,
    ) -> api::TtrpcResponse {
        static STREAM: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let stream = STREAM.fetch_add(2, std::sync::atomic::Ordering::Relaxed);
        let (told, answer) = oneshot::channel();
        self.answers.lock().unwrap().insert(stream, told);
        let envelope = api::TtrpcRequest {
            service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            ..Default::default()
        };
        self.send(packet(
            wire::RUNTIME_SERVICE,
            stream,
            Kind::Request,
            &envelope,
        ));
        let answered = tokio::time::timeout(PATIENCE, answer).await;
        answered.expect("no answer").expect("the connection ended")
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&self, bytes: Vec<u8>) {
        let _ = self.write.send(bytes);
    }

    /// All that it was asked until now.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The events of one container, or of a pod alone, in order.
    pub(crate) fn events_of(&self, id: &str) -> Vec<String> {
        let of = |seen: &Seen| match seen.container.id.as_str() {
            "" => seen.pod.id == id,
            container => container == id,
        };
        self.seen()
            .into_iter()
            .filter(of)
            .map(|seen| seen.method)
            .collect()
    }

    /// Waits until it has been asked something, and returns the first of it.
    pub(crate) async fn heard(&self, method: &str) -> Seen {
        self.until(|seen| seen.iter().find(|seen| seen.method == method).cloned())
            .await
    }

    pub(crate) async fn until<T>(&self, found: impl Fn(&[Seen]) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let changed = self.changed.notified();
            if let Some(found) = found(&self.seen()) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "only {:?}", self.methods());
            let _ = tokio::time::timeout(PATIENCE, changed).await;
        }
    }

    pub(crate) fn methods(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.method).collect()
    }

    /// Waits until the runtime has closed the connection.
    pub(crate) async fn dropped(mut self) {
        let reader = self.tasks.pop().unwrap();
        tokio::time::timeout(PATIENCE, reader)
            .await
            .expect("still connected")
            .unwrap();
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Reader {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: Arc<Notify>,
    write: mpsc::UnboundedSender<Vec<u8>>,
    answers: Answers,
    behaviour: Behaviour,
}

impl Reader {
    async fn run(self, mut socket: OwnedReadHalf) {
        let mut demux = Demux::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = socket.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            demux.feed(&buffer[..count]).unwrap();
            while let Some((connection, message)) = demux.next_message() {
                match (connection, message.kind) {
                    (wire::PLUGIN_SERVICE, Kind::Request) => self.serve(message),
                    (wire::RUNTIME_SERVICE, Kind::Response) => {
                        let answer = api::TtrpcResponse::decode(message.payload).unwrap();
                        let told = self.answers.lock().unwrap().remove(&message.stream);
                        let _ = told.expect("nobody asked").send(answer);
                    }
                    other => panic!("{other:?} from the runtime"),
                }
            }
        }
    }

    fn serve(&self, message: Message) {
        let request = api::TtrpcRequest::decode(message.payload).unwrap();
        assert_eq!(request.service, "nri.pkg.api.v1alpha1.Plugin");
        let reply = (self.behaviour)(&request.method, &request.payload);
        self.note(request);
        let (write, stream) = (self.write.clone(), message.stream);
        let answer = move |envelope: api::TtrpcResponse| {
            let _ = write.send(packet(
                wire::PLUGIN_SERVICE,
                stream,
                Kind::Response,
                &envelope,
            ));
        };
        match reply {
            Reply::Never => {}
            Reply::Say(payload) => answer(api::TtrpcResponse {
                payload,
                ..Default::default()
            }),
            Reply::Refuse(code, message) => answer(api::TtrpcResponse {
                status: Some(api::TtrpcStatus {
                    code,
                    message: message.to_owned(),
                }),
                ..Default::default()
            }),
            Reply::When(let_go) => {
                tokio::spawn(async move {
                    let_go.notified().await;
                    answer(api::TtrpcResponse::default());
                });
            }
        }
    }

    fn note(&self, request: api::TtrpcRequest) {
        // Everything about a pod or a container has them in the first two fields.
        let about = match request.method.as_str() {
            "Configure" | "Synchronize" | "Shutdown" | "StateChange" => Default::default(),
            "UpdatePodSandbox" => api::CreateContainerRequest::default(),
            _ => api::CreateContainerRequest::decode(request.payload.as_slice()).unwrap(),
        };
        self.seen.lock().unwrap().push(Seen {
            method: request.method,
            payload: request.payload,
            pod: about.pod.unwrap_or_default(),
            container: about.container.unwrap_or_default(),
        });
        self.changed.notify_waiters();
    }
}

fn packet(connection: u32, stream: u32, kind: Kind, envelope: &impl prost::Message) -> Vec<u8> {
    let payload = envelope.encode_to_vec().into();
    let message = Message {
        stream,
        kind,
        flags: 0,
        payload,
    };
    wire::encode(connection, &message).unwrap()
}

/// An adjustment as the answer to CreateContainer.
pub(crate) fn adjusting(
    adjust: api::ContainerAdjustment,
) -> impl Fn(&str, &[u8]) -> Reply + Send + Sync {
    move |method, payload| match method {
        "CreateContainer" => say(&api::CreateContainerResponse {
            adjust: Some(adjust.clone()),
            ..Default::default()
        }),
        _ => agree(method, payload),
    }
}

/// An annotation or variable.
pub(crate) fn pair<M: FromIterator<(String, String)>>(name: &str, value: &str) -> M {
    BTreeMap::from([(name.to_owned(), value.to_owned())])
        .into_iter()
        .collect()
}
