// SPDX-License-Identifier: Apache-2.0
//! What a session and its transport say to each other. Sessions (exec, attach, port-forward) know
//! channels by number; transports (WebSocket, SPDY) know what a number is on the wire.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::spdy::headers::Headers;

/// Messages that may wait for the network; then a session waits.
const OUTGOING: usize = 8;
/// Messages that may wait for a session; then the network does.
const INCOMING: usize = 4;
/// A vanished client is noticed when a ping cannot be delivered.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
/// After the last word, how long a client may take to hang up. Hanging up first would cut off what
/// it has not read yet, if it was still sending.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// One write may be held back by a client that reads nothing for this long, when the daemon stops or
/// a session is idle.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);

/// From the client. That it is gone is said by the end of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A channel comes to be (SPDY; those of WebSocket are there from the start).
    Opened(u32, Headers),
    /// Never empty.
    Data(u32, Bytes),
    /// The client sends no more on this channel.
    Closed(u32),
    /// The client neither sends nor listens any more.
    Reset(u32),
}

/// To the client. What a transport has no words for, it leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// A channel that the client opened is welcome.
    Accept(u32),
    /// May be empty, which WebSocket clients take as a sign that the channel is open.
    Data(u32, Bytes),
    /// We send no more on this channel.
    Close(u32),
    /// We neither send nor listen any more.
    Reset(u32),
}

/// The sending side of a session. Its `closed()` says that the client is gone.
pub(super) type Outbox = mpsc::Sender<Say>;

/// A session's end. When it is dropped, the transport says goodbye.
#[derive(Debug)]
pub struct Link {
    /// To the client.
    pub outbox: mpsc::Sender<Say>,
    /// From the client, to its end.
    pub inbox: mpsc::Receiver<Said>,
}

/// A transport's end. When it is dropped, the session knows that the client is gone.
#[derive(Debug)]
pub struct Far {
    pub(super) outgoing: mpsc::Receiver<Say>,
    pub(super) incoming: mpsc::Sender<Said>,
}

/// Both ends.
#[must_use]
pub fn pair() -> (Link, Far) {
    let (outbox, outgoing) = mpsc::channel(OUTGOING);
    let (incoming, inbox) = mpsc::channel(INCOMING);
    (Link { outbox, inbox }, Far { outgoing, incoming })
}

/// What ends a connection from outside: silence for too long, or the daemon's stop.
#[derive(Debug)]
pub struct Watch {
    last: Mutex<Instant>,
    idle: Duration,
    stop: CancellationToken,
}

/// Why a connection ends that both its sides would go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Idle,
    Stopping,
}

impl Watch {
    /// Begins now. With `idle` of zero, silence never ends anything.
    #[must_use]
    pub fn new(idle: Duration, stop: CancellationToken) -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            idle,
            stop,
        }
    }

    /// Data moved, either way. Pings do not count.
    pub(super) fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until the connection must end.
    pub(super) async fn end(&self) -> Reason {
        tokio::select! {
            () = self.stop.cancelled() => Reason::Stopping,
            () = self.silence() => Reason::Idle,
        }
    }

    async fn silence(&self) {
        if self.idle.is_zero() {
            std::future::pending::<()>().await;
        }
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let until = last + self.idle;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_counted_from_the_last_byte() {
        let idle = Duration::from_millis(200);
        let watch = Watch::new(idle, CancellationToken::new());
        let start = Instant::now();
        let moving = async {
            tokio::time::sleep(idle / 2).await;
            watch.touch();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            reason = watch.end() => assert_eq!(reason, Reason::Idle),
            () = moving => {}
        }
        assert!(start.elapsed() >= idle * 3 / 2);
        watch.stop.cancel();
        let never = Watch::new(Duration::ZERO, watch.stop);
        assert_eq!(never.end().await, Reason::Stopping);
    }
}
