// SPDX-License-Identifier: Apache-2.0
//! Port-forward over SPDY: each connection is a pair of streams, data and error, with one request id
//! and the port in their headers. Any number of connections to any ports share one client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{Link, Outbox, Said, Say};
use super::port_forward::{Connection, QUEUE, forward, netns};
use super::spdy::headers::Headers;
use crate::runtime::Runtime;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// Streams of a request whose other half has not come.
#[derive(Debug, Default)]
struct Pair {
    data: Option<Half>,
    error: Option<u32>,
    port: u16,
}

/// A data stream, and what came on it.
#[derive(Debug)]
struct Half {
    stream: u32,
    input: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
}

/// The way to a connection's input.
#[derive(Debug)]
struct Route {
    queue: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Somebody reads the queue.
    connected: bool,
}

/// What is known of one client.
struct Client<'a> {
    runtime: &'a Arc<Runtime>,
    sandbox: &'a str,
    outbox: Outbox,
    /// When half a request gives up.
    pairs: HashMap<String, (Pair, Instant)>,
    /// By data stream. What happens to error streams does not matter.
    routes: HashMap<u32, Route>,
    connections: JoinSet<u32>,
    patience: Duration,
}

/// Serves until the client is gone. Half a request gives up after `patience`.
pub(super) async fn serve(runtime: &Arc<Runtime>, link: Link, sandbox: &str, patience: Duration) {
    let Link { outbox, inbox } = link;
    let client = Client {
        runtime,
        sandbox,
        outbox: outbox.clone(),
        pairs: HashMap::new(),
        routes: HashMap::new(),
        connections: JoinSet::new(),
        patience,
    };
    // A client may be gone while its data wait for a pod that does not read them.
    tokio::select! {
        () = client.run(inbox) => {}
        () = outbox.closed() => {}
    }
}

impl Client<'_> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Said>) {
        loop {
            let soonest = self.pairs.values().map(|(_, until)| *until).min();
            let late = async {
                match soonest {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                said = inbox.recv() => match said {
                    Some(said) => self.hear(said).await,
                    None => return,
                },
                Some(ended) = self.connections.join_next() => {
                    if let Ok(data) = ended {
                        self.routes.remove(&data);
                    }
                }
                () = late => self.give_up().await,
            }
        }
    }

    async fn hear(&mut self, said: Said) {
        match said {
            Said::Opened(stream, headers) => self.opened(stream, &headers).await,
            Said::Data(stream, data) => self.data(stream, data).await,
            Said::Closed(stream) => {
                if let Some(route) = self.routes.get_mut(&stream) {
                    route.queue = None;
                }
            }
            Said::Reset(stream) => {
                if let Some(route) = self.routes.remove(&stream) {
                    route.reset.cancel();
                }
            }
        }
    }

    /// For no stream, or for one that has ended: dropped.
    async fn data(&mut self, stream: u32, data: Bytes) {
        let Some(route) = self.routes.get_mut(&stream) else {
            return;
        };
        let Some(queue) = &route.queue else { return };
        if route.connected {
            if queue.send(data).await.is_err() {
                route.queue = None;
            }
        } else if queue.try_send(data).is_err() {
            // So much before there is a connection, and nobody to wait for.
            self.routes.remove(&stream);
            self.say(Say::Reset(stream)).await;
        }
    }

    async fn opened(&mut self, stream: u32, headers: &Headers) {
        let Some((kind, port)) = kind_and_port(headers) else {
            return self.say(Say::Reset(stream)).await;
        };
        let id = request_id(stream, kind, headers);
        let until = Instant::now() + self.patience;
        let (pair, _) = self
            .pairs
            .entry(id.clone())
            .or_insert_with(|| (Pair::default(), until));
        match kind {
            Kind::Data if pair.data.is_none() => {
                let (queue, input) = mpsc::channel(QUEUE);
                let reset = CancellationToken::new();
                pair.port = port;
                pair.data = Some(Half {
                    stream,
                    input,
                    reset: reset.clone(),
                });
                let route = Route {
                    queue: Some(queue),
                    reset,
                    connected: false,
                };
                self.routes.insert(stream, route);
            }
            Kind::Error if pair.error.is_none() => pair.error = Some(stream),
            _ => return self.say(Say::Reset(stream)).await,
        }
        let whole = pair.data.is_some() && pair.error.is_some();
        self.say(Say::Accept(stream)).await;
        if whole && let Some((pair, _)) = self.pairs.remove(&id) {
            self.connect(pair);
        }
    }

    fn connect(&mut self, pair: Pair) {
        let (Some(half), Some(error)) = (pair.data, pair.error) else {
            return;
        };
        if let Some(route) = self.routes.get_mut(&half.stream) {
            route.connected = true;
        }
        let connection = Connection {
            port: pair.port,
            data: half.stream,
            error,
            input: half.input,
            reset: half.reset,
        };
        let netns = netns(self.runtime, self.sandbox);
        let outbox = self.outbox.clone();
        self.connections.spawn(async move {
            forward(netns, connection, &outbox).await;
            half.stream
        });
    }

    /// Ends requests whose other half has not come in time.
    async fn give_up(&mut self) {
        let now = Instant::now();
        let late: Vec<Pair> = self
            .pairs
            .extract_if(|_, (_, until)| *until <= now)
            .map(|(_, (pair, _))| pair)
            .collect();
        for pair in late {
            if let Some(error) = pair.error {
                self.say(Say::Data(error, "timed out waiting for streams".into()))
                    .await;
                self.say(Say::Close(error)).await;
            }
            if let Some(half) = pair.data {
                self.routes.remove(&half.stream);
                self.say(Say::Reset(half.stream)).await;
            }
        }
    }

    async fn say(&self, say: Say) {
        // An error: the client is gone, which the loop is about to see.
        let _ = self.outbox.send(say).await;
    }
}

fn kind_and_port(headers: &Headers) -> Option<(Kind, u16)> {
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    Some((kind, port))
}

/// Which request a stream belongs to. Clients from before request ids open the error stream first and
/// the data stream next.
fn request_id(stream: u32, kind: Kind, headers: &Headers) -> String {
    match headers.get("requestid").filter(|id| !id.is_empty()) {
        Some(id) => id.to_owned(),
        None => match kind {
            Kind::Error => format!("stream {stream}"),
            Kind::Data => format!("stream {}", stream.saturating_sub(2)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_a_stream_is() {
        let good = Headers::of(&[("streamtype", "data"), ("port", "80"), ("requestid", "4")]);
        assert_eq!(kind_and_port(&good), Some((Kind::Data, 80)));
        assert_eq!(request_id(9, Kind::Data, &good), "4");
        for (kind, port) in [
            ("data", "0"),
            ("data", "65536"),
            ("video", "80"),
            ("", "80"),
        ] {
            let bad = Headers::of(&[("streamtype", kind), ("port", port)]);
            assert_eq!(kind_and_port(&bad), None);
        }
        let old = Headers::of(&[("streamtype", "error"), ("port", "80")]);
        assert_eq!(
            request_id(1, Kind::Error, &old),
            request_id(3, Kind::Data, &old)
        );
    }
}
