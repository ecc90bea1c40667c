// SPDX-License-Identifier: Apache-2.0
//! When a table must be replaced as a whole: at the start, after a refusal, and when somebody else
//! has changed it.

use std::time::{Duration, Instant};

use cni::nft::{Family, Monitor};
use tokio::io::unix::AsyncFd;

use crate::apply::ApplyError;
use crate::sys;

/// How long a refused transaction waits before the table is replaced; doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// The same when somebody changed the table, with who may go on to do so.
const REPAIR: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// Changes by others further apart than this have nothing to do with each other.
const CALM: Duration = Duration::from_secs(30);

/// The state of one table.
pub(crate) struct Upkeep {
    table: String,
    /// What the kernel has is not what it should: replace the table.
    needs_full: bool,
    /// When it may be replaced, and how long the last wait for that was.
    retry_at: Option<Instant>,
    backoff: Option<Duration>,
    monitor: Option<AsyncFd<Monitor>>,
    /// When somebody changed the table last, and how long that was waited for.
    damage: Option<(Instant, Duration)>,
}

impl Upkeep {
    /// Of a table that has to be written first.
    pub(crate) fn new(table: &str) -> Upkeep {
        Upkeep {
            table: table.to_owned(),
            needs_full: true,
            retry_at: None,
            backoff: None,
            monitor: None,
            damage: None,
        }
    }

    /// Must the table be replaced?
    pub(crate) fn needs_full(&self) -> bool {
        self.needs_full
    }

    /// The table must be replaced.
    pub(crate) fn replace(&mut self) {
        self.needs_full = true;
    }

    /// Is nothing waited for?
    pub(crate) fn is_settled(&self) -> bool {
        self.retry_at.is_none()
    }

    /// May it be written now?
    pub(crate) fn may_write(&self) -> bool {
        self.retry_at.is_none_or(|at| Instant::now() >= at)
    }

    /// Ends when a wait is over; never when there is none.
    pub(crate) async fn waited(&self) {
        match self.retry_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Ends when somebody else has changed the table; never without a monitor.
    pub(crate) async fn foreign_change(&self) {
        let Some(monitor) = &self.monitor else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut readable) = monitor.readable().await else {
                return std::future::pending().await;
            };
            let changed = monitor.get_ref().changed(Family::Inet, &self.table);
            readable.clear_ready();
            match changed {
                Ok(false) => {}
                Ok(true) => return,
                Err(error) => {
                    tracing::warn!(%error, "listening for changes of nftables; the table is replaced");
                    tokio::time::sleep(REPAIR.1).await;
                    return;
                }
            }
        }
    }

    /// Somebody changed our table: replace it soon. One who does so again and again is waited for.
    pub(crate) fn damaged(&mut self) {
        let wait = match self.damage {
            Some((last, wait)) if last.elapsed() < CALM => (wait * 2).min(REPAIR.1),
            _ => REPAIR.0,
        };
        tracing::warn!(
            table = self.table,
            ?wait,
            "somebody changed the table; replacing it"
        );
        self.damage = Some((Instant::now(), wait));
        self.needs_full = true;
        self.retry_at.get_or_insert(Instant::now() + wait);
    }

    /// Listen for what others do to the table. From the first time on that it is there; what it
    /// says of our own changes, which `port` makes, is for nobody.
    pub(crate) fn listen(&mut self, port: Option<u32>) {
        let Some(port) = port else { return };
        let listening = match &self.monitor {
            Some(monitor) => monitor.get_ref().ignore(port),
            None => Monitor::open(port)
                .and_then(sys::register)
                .map(|monitor| self.monitor = Some(monitor)),
        };
        if let Err(error) = listening {
            tracing::warn!(%error, "listening for changes of nftables; none will be repaired");
        }
    }

    /// A transaction was applied, or refused.
    pub(crate) fn settle(&mut self, outcome: Result<(), ApplyError>) {
        match outcome {
            Ok(()) => (self.needs_full, self.retry_at, self.backoff) = (false, None, None),
            Err(error) => {
                let wait = self.backoff.map_or(RETRY.0, |last| (last * 2).min(RETRY.1));
                tracing::warn!(
                    table = self.table,
                    error = &error as &dyn std::error::Error,
                    ?wait,
                    "replacing the table"
                );
                self.needs_full = true;
                (self.retry_at, self.backoff) = (Some(Instant::now() + wait), Some(wait));
            }
        }
    }
}
