// SPDX-License-Identifier: Apache-2.0
//! Carries a session's channels over WebSocket messages (RFC 6455; the codec is in `channels`).

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::channels::{Codec, Parsed};
use super::link::{Far, GOODBYE, LINGER, PING_EVERY, Reason, Said, Say, Watch};

/// The largest message of a client. kubectl sends 32 KiB pieces, other clients all they have.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What is read at once, and what may wait to be written.
const BUFFER: usize = 32 << 10;

/// Speaks WebSocket on a connection whose handshake is done.
pub(super) async fn server<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(2 * MESSAGE_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves until the session ends its side, the client is gone, or `watch` ends it.
pub async fn carry(io: impl AsyncRead + AsyncWrite + Unpin, codec: Codec, far: Far, watch: &Watch) {
    let (mut sink, mut stream) = server(io).await.split();
    let Far {
        mut outgoing,
        incoming,
    } = far;
    let last = tokio::select! {
        last = read(&mut stream, codec, &incoming, watch) => last,
        wrote = write(&mut sink, codec, &mut outgoing, watch) => match wrote {
            // kubectl takes a close without a status code for a broken connection.
            Ok(()) => Some(close(CloseCode::Normal, "")),
            Err(_) => return,
        },
        reason = watch.end() => Some(match reason {
            Reason::Idle => close(CloseCode::Normal, "idle for too long"),
            Reason::Stopping => close(CloseCode::Away, "the runtime is stopping"),
        }),
    };
    // From here on the session finds nobody.
    drop((outgoing, incoming));
    let last_word = async {
        if let Some(last) = last {
            sink.send(Message::Close(Some(last))).await?;
        }
        sink.close().await
    };
    if matches!(tokio::time::timeout(GOODBYE, last_word).await, Ok(Ok(()))) {
        let rest = async { while let Some(Ok(_)) = stream.next().await {} };
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
}

fn close(code: CloseCode, reason: &'static str) -> CloseFrame {
    CloseFrame {
        code,
        reason: Utf8Bytes::from_static(reason),
    }
}

/// Hears the client to its end. What is returned is what it should be told, if it still listens.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    codec: Codec,
    incoming: &mpsc::Sender<Said>,
    watch: &Watch,
) -> Option<CloseFrame> {
    loop {
        let message = match stream.next().await? {
            Ok(message) => message,
            Err(error) => return complaint(&error),
        };
        match codec.parse(message) {
            Parsed::Nothing => {}
            Parsed::End => return None,
            Parsed::Wrong(code, why) => return Some(close(code, why)),
            Parsed::Said(said) => {
                watch.touch();
                // An error: the session has ended, which the writer is about to see.
                incoming.send(said).await.ok()?;
            }
        }
    }
}

/// What a client is told that broke WebSocket itself.
fn complaint(error: &Error) -> Option<CloseFrame> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Some(close(CloseCode::Size, "a message is too long"))
        }
        Error::Protocol(_) => Some(close(CloseCode::Protocol, "not WebSocket")),
        Error::Utf8(_) => Some(close(CloseCode::Invalid, "text that is not UTF-8")),
        _ => None,
    }
}

/// Sends what the session says, to its end.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    codec: Codec,
    outgoing: &mut mpsc::Receiver<Say>,
    watch: &Watch,
) -> Result<(), Error> {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let message = tokio::select! {
            say = outgoing.recv() => match say {
                None => return Ok(()),
                Some(say) => {
                    watch.touch();
                    codec.message(say)
                }
            },
            _ = ping.tick() => Some(Message::Ping(bytes::Bytes::new())),
        };
        if let Some(message) = message {
            sink.send(message).await?;
        }
    }
}
