// SPDX-License-Identifier: Apache-2.0
//! Addresses of pods that are gone, until the kernel has forgotten what it remembers of them.
//!
//! Looking through the connections of a host takes longer than a DEL may, so it is done after it, for
//! all pods that went meanwhile. A pod that gets one of the addresses earlier waits for it. A second
//! look, later, finds what others began before they had heard that the pod is gone. What a crash
//! interrupts, GC does.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Inner, Network, chain};
use crate::forget::{self, ForgetError};
use crate::link::Route;

/// Where one pod goes more will go; and what is on its way to a pod has come to its end.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two looks at the host's connections.
const PAUSE: Duration = Duration::from_secs(1);

/// From the first look to the second. By then Services lead elsewhere.
const LATER: Duration = Duration::from_secs(5);

/// Which look an address waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    /// Not before this.
    Second(Instant),
}

#[derive(Debug, Default)]
pub(super) struct Gone {
    waiting: Mutex<BTreeMap<IpAddr, Look>>,
    /// Held while the kernel is told to forget.
    turn: Mutex<()>,
    more: Notify,
}

impl Gone {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Look>> {
        // A map is whole after any panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These addresses are about to be given back. To be said before somebody else can have them.
    pub(super) fn note(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let first = addresses.into_iter().map(|address| (address, Look::First));
        self.waiting().extend(first);
    }

    /// Nobody has them any more.
    pub(super) fn wake(&self) {
        self.more.notify_one();
    }

    /// Has the kernel forget the waiting addresses that `wanted` picks. While it does they wait on,
    /// so whoever gets one of them comes here too, and waits for the turn.
    fn forget(&self, wanted: impl Fn(&IpAddr, Look) -> bool) -> Result<(), ForgetError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.waiting();
        let picked = waiting.iter().filter(|(ip, look)| wanted(ip, **look));
        let picked: BTreeMap<IpAddr, Look> = picked.map(|(ip, look)| (*ip, *look)).collect();
        drop(waiting);
        if picked.is_empty() {
            return Ok(());
        }
        forget::addresses(|address| picked.contains_key(&address))?;
        let later = Instant::now() + LATER;
        self.waiting()
            .retain(|address, look| match picked.get(address) {
                None => true,
                Some(Look::Second(_)) => false,
                Some(Look::First) => {
                    *look = Look::Second(later);
                    true
                }
            });
        Ok(())
    }

    /// Ends when a look is due.
    async fn due(&self) {
        let second = |look: &Look| match look {
            Look::First => None,
            Look::Second(due) => Some(*due),
        };
        let next = self.waiting().values().filter_map(second).min();
        let Some(next) = next else {
            return self.more.notified().await;
        };
        tokio::select! {
            () = self.more.notified() => {}
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }
}

impl Inner {
    /// A new pod has these addresses: it must not inherit anything of who had them before.
    pub(super) fn forget_before(&self, addresses: &[IpAddr]) {
        let waits = |address: &IpAddr| self.gone.waiting().contains_key(address);
        if !addresses.iter().any(waits) {
            return;
        }
        if let Err(error) = self.gone.forget(|address, _| addresses.contains(address)) {
            let error = chain(&error);
            tracing::warn!(error, "a pod may inherit connections of one that is gone");
        }
        // From now on they are the new pod's.
        self.gone
            .waiting()
            .retain(|address, _| !addresses.contains(address));
    }

    /// What is gone now, but for addresses that somebody has (a DEL has not come to its end, or has
    /// failed), and that are the host's own.
    fn forget_all(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut kept = HashSet::new();
        for record in self.records().readable()? {
            kept.extend(super::operations::addresses(&record));
        }
        let own = Route::open()?.addresses()?.into_iter();
        let own: HashSet<IpAddr> = own.map(|(_, address)| address.addr).collect();
        self.gone
            .waiting()
            .retain(|address, _| !own.contains(address));
        let now = Instant::now();
        let due = |look| match look {
            Look::First => true,
            Look::Second(due) => due <= now,
        };
        Ok(self
            .gone
            .forget(|address, look| due(look) && !kept.contains(address))?)
    }
}

impl Network {
    /// Never ends.
    pub(super) async fn forget_the_gone(&self) {
        loop {
            self.inner.gone.due().await;
            tokio::time::sleep(SETTLE).await;
            let forgotten = self.in_thread(|inner| Ok(inner.forget_all())).await;
            let failed = match forgotten {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(&*error)),
                Err(error) => Some(chain(&error)),
            };
            if let Some(error) = failed {
                // GC tries again.
                tracing::warn!(error, "connections of pods that are gone are still tracked");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn addresses_wait_until_they_are_forgotten_twice() {
        let gone = Gone::default();
        let address = |last| IpAddr::from([198, 51, 100, last]);
        gone.note([address(1), address(2)]);
        gone.forget(|a, _| *a == address(3)).expect("nothing to do");
        assert_eq!(gone.waiting().len(), 2);
        // In a namespace of its own: nobody else's connections are looked at.
        let looks = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            gone.forget(|a, _| *a == address(1))
                .expect("the first look");
            assert_eq!(gone.waiting()[&address(2)], Look::First);
            let second = |look| matches!(look, Look::Second(_));
            assert!(second(gone.waiting()[&address(1)]));
            gone.forget(|_, look| second(look))
                .expect("the second look");
            let left: Vec<IpAddr> = gone.waiting().keys().copied().collect();
            assert_eq!(left, [address(2)]);
        };
        std::thread::spawn(looks).join().expect("the thread");
    }
}
