// SPDX-License-Identifier: Apache-2.0
//! Carries a session's channels over a SPDY/3.1 connection: whatever bytes it runs on, a socket or a
//! tunnel in WebSocket messages.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::decode::Decoder;
use super::encode::Encoder;
use super::frame::{Frame, Violation};
use super::session::{Reaction, Session};
use crate::streaming::link::{Far, GOODBYE, LINGER, PING_EVERY, Said, Say, Watch};

/// Answers that may wait to be written; then nothing more is read.
const REPLIES: usize = 8;
/// One read of the connection.
const CHUNK: usize = 32 << 10;
/// Pings of a server have even numbers.
const FIRST_PING: u32 = 2;

/// How the client's side ended.
enum Ended {
    /// It said goodbye, or hung up.
    Gone,
    Broken(Violation),
}

/// Serves until the session ends its side, the client is gone, or `watch` ends it.
pub(crate) async fn carry(io: impl AsyncRead + AsyncWrite, far: Far, watch: &Watch) {
    let (mut reader, writer) = tokio::io::split(io);
    let Far {
        mut outgoing,
        incoming,
    } = far;
    let session = Mutex::new(Session::default());
    let (replies, mut waiting) = mpsc::channel(REPLIES);
    let mut writer = Writer {
        io: writer,
        encoder: Encoder::default(),
        buffer: BytesMut::new(),
    };
    let status = tokio::select! {
        ended = read(&mut reader, &session, &incoming, &replies, watch) => match ended {
            Ended::Gone => 0,
            Ended::Broken(violation) => {
                tracing::debug!(%violation, "a SPDY connection ends");
                1
            }
        },
        wrote = write(&mut writer, &session, &mut outgoing, &mut waiting, watch) => match wrote {
            Ok(()) => 0,
            Err(_) => return,
        },
        reason = watch.end() => {
            tracing::debug!(?reason, "a SPDY connection ends");
            0
        }
    };
    // From here on the session finds nobody.
    drop((outgoing, incoming));
    let goodbye = lock(&session).goodbye(status);
    let last_word = async {
        writer.frame(&goodbye).await?;
        writer.io.shutdown().await
    };
    if matches!(tokio::time::timeout(GOODBYE, last_word).await, Ok(Ok(()))) {
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut reader, &mut tokio::io::sink()))
            .await;
    }
}

fn lock(session: &Mutex<Session>) -> std::sync::MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(
    io: &mut (impl AsyncRead + Unpin),
    session: &Mutex<Session>,
    incoming: &mpsc::Sender<Said>,
    replies: &mpsc::Sender<Frame>,
    watch: &Watch,
) -> Ended {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
    loop {
        buffer.reserve(CHUNK);
        match io.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Ended::Gone,
            Ok(_) => watch.touch(),
        }
        loop {
            let reaction = match decoder.next(&mut buffer) {
                Ok(None) => break,
                Ok(Some(frame)) => lock(session).receive(frame),
                Err(violation) => return Ended::Broken(violation),
            };
            let Reaction { said, reply, over } = match reaction {
                Ok(reaction) => reaction,
                Err(violation) => return Ended::Broken(violation),
            };
            for said in said.into_iter().flatten() {
                if incoming.send(said).await.is_err() {
                    return Ended::Gone;
                }
            }
            if let Some(reply) = reply
                && replies.send(reply).await.is_err()
            {
                return Ended::Gone;
            }
            if over {
                return Ended::Gone;
            }
        }
    }
}

struct Writer<W> {
    io: W,
    encoder: Encoder,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        self.buffer.clear();
        self.encoder.encode(frame, &mut self.buffer);
        self.io.write_all(&self.buffer).await?;
        self.io.flush().await
    }
}

/// Writes what the session says, to its end.
async fn write(
    writer: &mut Writer<impl AsyncWrite + Unpin>,
    session: &Mutex<Session>,
    outgoing: &mut mpsc::Receiver<Say>,
    replies: &mut mpsc::Receiver<Frame>,
    watch: &Watch,
) -> io::Result<()> {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    let mut id = FIRST_PING;
    loop {
        let frame = tokio::select! {
            Some(reply) = replies.recv() => Some(reply),
            say = outgoing.recv() => match say {
                None => return Ok(()),
                Some(say) => {
                    watch.touch();
                    lock(session).say(say)
                }
            },
            _ = ping.tick() => {
                id = (id + 2) & 0x7fff_fffe;
                Some(Frame::Ping { id: id.max(FIRST_PING) })
            }
        };
        if let Some(frame) = frame {
            writer.frame(&frame).await?;
        }
    }
}
