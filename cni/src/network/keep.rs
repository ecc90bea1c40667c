// SPDX-License-Identifier: Apache-2.0
//! Keeps what pods need on the host: hears when somebody takes a bridge or rules away, and has them
//! restored.

use std::io;
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use tokio::io::unix::AsyncFd;

use super::repair::Owned;
use super::{Network, chain, losses};
use crate::netlink::{Heard, Socket};
use crate::nft::pool;
use crate::sys;

const RTNLGRP_LINK: libc::c_int = 1;
const RTNLGRP_IPV4_IFADDR: libc::c_int = 5;
const RTNLGRP_IPV6_IFADDR: libc::c_int = 9;
const NFNLGRP_NFTABLES: libc::c_int = 7;
/// Who deletes one thing deletes more: wait for the rest.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two repairs, if somebody goes on and on; and until pods that somebody works on are looked
/// at again.
const PAUSE: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(3);

/// Why it is time to look.
#[derive(Debug, Clone, Copy)]
enum Lost {
    /// Of what pods need.
    Something,
    /// Of what the kernel told.
    Messages,
}

/// What the kernel tells.
struct Ears {
    links: AsyncFd<Socket>,
    rules: AsyncFd<Socket>,
}

impl Ears {
    fn open() -> io::Result<Ears> {
        let links = Socket::open(SockProtocol::NetlinkRoute)?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            links.join(group)?;
        }
        let rules = Socket::open(SockProtocol::NetlinkNetFilter)?;
        rules.join(NFNLGRP_NFTABLES)?;
        Ok(Ears {
            links: sys::register(links)?,
            rules: sys::register(rules)?,
        })
    }

    /// Waits until somebody took something away, or may have.
    async fn loss(&self, network: &Network) -> io::Result<Lost> {
        loop {
            let found = tokio::select! {
                found = heard(&self.links, |heard| {
                    losses::of_link(heard, &network.kept(), link_name)
                }) => found?,
                found = heard(&self.rules, |heard| {
                    losses::of_rules(heard, &network.kept(), pool::is_own)
                }) => found?,
            };
            if let Some(lost) = found {
                return Ok(lost);
            }
        }
    }
}

/// Reads once what is there. What is too much for the socket's buffer may have been anything: so it is
/// when tables are written anew on a machine that is busy.
async fn heard(
    socket: &AsyncFd<Socket>,
    is_loss: impl Fn(&Heard) -> bool,
) -> io::Result<Option<Lost>> {
    let mut ready = socket.readable().await?;
    let mut lost = None;
    loop {
        match socket.get_ref().hear_whom(Duration::ZERO) {
            Ok(some) if some.is_empty() => break,
            Ok(some) if some.iter().any(&is_loss) => lost = Some(Lost::Something),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                lost = lost.or(Some(Lost::Messages));
            }
            Err(error) => return Err(error),
        }
    }
    ready.clear_ready();
    Ok(lost)
}

fn link_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}

impl Network {
    /// Restores the host's side of attached pods when somebody takes it away: at once, and within
    /// two seconds of a change. And has the kernel forget what it remembers of pods that are gone,
    /// within two seconds. Never ends; dropping it stops it between two of these, and one that has
    /// begun runs to its end.
    pub async fn keep(&self) {
        tokio::join!(self.repair_forever(), self.forget_the_gone());
    }

    async fn repair_forever(&self) {
        loop {
            if let Err(error) = self.keep_once().await {
                tracing::warn!(error = %chain(&*error), "keeping the pod network");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn keep_once(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // Before the first look, so that nothing falls in between.
        let ears = Ears::open()?;
        let known = self.in_thread(|inner| inner.owned()).await?;
        self.note(known);
        loop {
            let busy = self.repair().await?;
            tokio::time::sleep(PAUSE).await;
            if busy > 0 {
                continue;
            }
            match ears.loss(self).await? {
                Lost::Something => {
                    tracing::warn!("somebody took a bridge or rules of pods away; restoring them");
                }
                Lost::Messages => {
                    tracing::info!(
                        "more changed than could be heard; looking after the pod network"
                    );
                }
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// What is to be kept.
    fn kept(&self) -> Owned {
        let kept = self.inner.kept.lock();
        kept.unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn note(&self, owned: Owned) {
        self.inner.note(owned);
    }
}

impl super::Inner {
    /// From now on these are kept, too. Nothing is ever taken off: a repair goes by what is attached.
    pub(super) fn note(&self, owned: Owned) {
        let kept = self.kept.lock();
        let mut kept = kept.unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.bridges.extend(owned.bridges);
        kept.tables.extend(owned.tables);
    }
}
