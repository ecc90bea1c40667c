// SPDX-License-Identifier: Apache-2.0
//! The channel protocol of Kubernetes over WebSocket: the first byte of each message names its
//! channel, the rest is data (KEP-4006 describes v5, which adds the closing of a channel).

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// v5: the second byte names a channel that the client closes.
pub(super) const CLOSE: u8 = 255;

/// Messages that may wait for the network; then readers wait.
const QUEUE: usize = 8;
/// One read of a process's output.
const CHUNK: usize = 32 << 10;
/// A vanished client is noticed when a ping cannot be delivered.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Data(u8, Bytes),
    /// The client is gone, or said goodbye.
    End,
}

/// Understands one message. `None`: nothing to do.
pub(super) fn parse(message: Option<Result<Message, axum::Error>>) -> Option<Input> {
    let data = match message {
        Some(Ok(Message::Binary(data))) => data,
        Some(Ok(Message::Text(text))) => Bytes::copy_from_slice(text.as_bytes()),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return None,
        Some(Ok(Message::Close(_)) | Err(_)) | None => return Some(Input::End),
    };
    let channel = *data.first()?;
    let data = data.slice(1..);
    // Clients open each channel with an empty message.
    (!data.is_empty()).then_some(Input::Data(channel, data))
}

/// A message on a channel.
pub(super) fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// The sending side of a connection. Cheap to clone; ends when all clones are dropped.
pub(super) type Outbox = mpsc::Sender<Message>;

/// Splits a connection: messages to send, the task that sends them, and what comes in.
pub(super) fn split(
    socket: WebSocket,
) -> (
    Outbox,
    impl Future<Output = ()> + Send,
    futures::stream::SplitStream<WebSocket>,
) {
    let (sink, stream) = socket.split();
    let (outbox, queue) = mpsc::channel(QUEUE);
    (outbox, send_all(sink, queue), stream)
}

async fn send_all(mut sink: SplitSink<WebSocket, Message>, mut queue: mpsc::Receiver<Message>) {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = ping.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else { break };
        if sink.send(message).await.is_err() {
            return;
        }
    }
    // Closing tells the client that everything was said; it may be gone already. kubectl takes a
    // close without a status code for a broken connection.
    let said = CloseFrame {
        code: close_code::NORMAL,
        reason: Utf8Bytes::default(),
    };
    let _ = sink.send(Message::Close(Some(said))).await;
    let _ = sink.close().await;
}

/// Sends everything that `stream` yields on a channel, until its end or the client's.
pub(super) async fn pump(mut stream: impl AsyncRead + Unpin, channel: u8, outbox: Outbox) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 || outbox.send(frame(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

/// A terminal size as kubectl sends it: `{"Width":80,"Height":24}`.
pub(super) fn terminal_size(data: &[u8]) -> Option<(u16, u16)> {
    #[derive(serde::Deserialize)]
    struct Size {
        #[serde(alias = "width", rename = "Width")]
        width: u16,
        #[serde(alias = "height", rename = "Height")]
        height: u16,
    }
    let size: Size = serde_json::from_slice(data).ok()?;
    (size.width > 0 && size.height > 0).then_some((size.width, size.height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) -> Option<Input> {
        parse(Some(Ok(Message::Binary(Bytes::copy_from_slice(bytes)))))
    }

    #[test]
    fn the_first_byte_is_the_channel() {
        assert_eq!(
            check(b"\x00hi"),
            Some(Input::Data(STDIN, Bytes::from_static(b"hi")))
        );
        assert_eq!(check(b"\x00"), None);
        assert_eq!(check(b""), None);
        assert_eq!(parse(None), Some(Input::End));
        assert_eq!(
            frame(STDOUT, b"x"),
            Message::Binary(Bytes::from_static(b"\x01x"))
        );
    }

    #[test]
    fn sizes_are_json() {
        assert_eq!(
            terminal_size(br#"{"Width":80,"Height":24}"#),
            Some((80, 24))
        );
        assert_eq!(terminal_size(br#"{"Width":0,"Height":24}"#), None);
        assert_eq!(terminal_size(b"junk"), None);
    }
}
