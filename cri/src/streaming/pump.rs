// SPDX-License-Identifier: Apache-2.0
//! From a stream of the node to a channel of the client.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{Outbox, Say};

/// One read.
const CHUNK: usize = 32 << 10;

/// Says when a stream is not waited for any more, though nobody closed it.
#[derive(Debug)]
pub(super) struct Ending {
    begun: CancellationToken,
    at: OnceLock<Instant>,
    grace: Duration,
}

impl Ending {
    /// From [`Ending::begin`] on, `grace` remains.
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            begun: CancellationToken::new(),
            at: OnceLock::new(),
            grace,
        }
    }

    pub(super) fn begin(&self) {
        let _ = self.at.set(Instant::now() + self.grace);
        self.begun.cancel();
    }

    async fn over(&self) {
        self.begun.cancelled().await;
        if let Some(at) = self.at.get() {
            tokio::time::sleep_until(*at).await;
        }
    }
}

/// Sends everything that `stream` yields on a channel, until its end or the client's. What is there
/// when `ending` is over is sent too: only waiting for more has an end, however slow the client is.
pub(super) async fn pump(
    mut stream: impl AsyncRead + Unpin,
    channel: u32,
    outbox: &Outbox,
    ending: &Ending,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let count = tokio::select! {
            biased;
            count = stream.read_buf(&mut buffer) => count,
            () = ending.over() => return,
        };
        // A terminal ends with EIO (pty(7)).
        if !matches!(count, Ok(1..)) {
            return;
        }
        let data = buffer.split().freeze();
        if outbox.send(Say::Data(channel, data)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_slow_client_gets_everything_and_a_background_child_is_not_waited_for() {
        let (mut process, stream) = tokio::io::duplex(1 << 20);
        let (outbox, mut client) = mpsc::channel(1);
        let ending = Ending::new(Duration::from_millis(10));
        let text = vec![b'x'; 1 << 20];
        process.write_all(&text).await.unwrap();
        ending.begin();
        let slow = async {
            let mut read = 0;
            while let Some(Say::Data(7, data)) = client.recv().await {
                read += data.len();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            read
        };
        let pumping = async {
            pump(stream, 7, &outbox, &ending).await;
            drop(outbox);
        };
        let ((), read) = tokio::join!(pumping, slow);
        assert_eq!(read, text.len());
        drop(process);
    }
}
