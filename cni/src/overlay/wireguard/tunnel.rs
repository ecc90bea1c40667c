// SPDX-License-Identifier: Apache-2.0
//! What the kernel adapter needs beside rtnetlink when the back end is WireGuard.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Request;

use super::control::{Control, PEERS_PER_MESSAGE, PeerChange};
use super::key::{PrivateKey, PublicKey};
use super::keys::Keys;
use super::model::{PublicKeys, SeenDevice, WireGuard};
use crate::link::{LinkError, Route};
use crate::netns;
use crate::overlay::model::Step;
use crate::overlay::{OverlayError, messages};

/// Sessions need no more than this for a link that lives for milliseconds in a namespace of its own.
const SCRATCH: &str = "scratch";
const SCRATCH_MTU: u32 = 1420;

/// Keys, a socket to the link, and what it was told.
#[derive(Debug)]
pub(crate) struct Tunnel {
    keys: Keys,
    control: Control,
    /// Endpoints as they were last announced.
    pub(crate) told: BTreeMap<PublicKey, SocketAddr>,
}

impl Tunnel {
    /// Make this node's keys, if there are none. Blocks for some milliseconds.
    pub(crate) fn open(settings: &WireGuard) -> Result<Tunnel, OverlayError> {
        Ok(Tunnel {
            // First, because it makes a link, which has the kernel load its module.
            keys: Keys::open(settings, public_of)?,
            control: Control::open()?,
            told: BTreeMap::new(),
        })
    }

    pub(crate) fn public_keys(&self) -> PublicKeys {
        self.keys.public()
    }

    pub(crate) fn rotate(&mut self, announced: bool) -> Result<Option<String>, OverlayError> {
        self.keys.rotate(announced)
    }

    pub(crate) fn look(&mut self, link: u32) -> Result<Option<SeenDevice>, LinkError> {
        self.control.device(link)
    }

    /// How many of these steps, from the first one on, go to the kernel in one request. 0: the first
    /// is none of WireGuard's.
    pub(crate) fn takes(steps: &[Step]) -> usize {
        match steps.first() {
            Some(Step::SetKey(..) | Step::SetSocket(..)) => 1,
            _ => {
                let peers = steps.iter().map_while(as_change);
                peers.take(PEERS_PER_MESSAGE).count()
            }
        }
    }

    /// Carry out steps that [`Tunnel::takes`] counted.
    pub(crate) fn act(&mut self, steps: &[Step]) -> Result<(), LinkError> {
        match steps.first() {
            Some(Step::SetKey(link, key)) => match self.keys.private(*key) {
                Some(private) => self.control.set_key(*link, private),
                // Replaced since it was decided.
                None => Ok(()),
            },
            Some(Step::SetSocket(link, port)) => self.control.set_socket(*link, *port),
            _ => {
                let changes: Vec<(u32, PeerChange<'_>)> =
                    steps.iter().filter_map(as_change).collect();
                let Some(link) = changes.first().map(|(link, _)| *link) else {
                    return Ok(());
                };
                let changes: Vec<_> = changes.into_iter().map(|(_, change)| change).collect();
                self.control.change(link, &changes)
            }
        }
    }
}

fn as_change(step: &Step) -> Option<(u32, PeerChange<'_>)> {
    match step {
        Step::SetPeer(link, spec) => Some((*link, PeerChange::Set(spec))),
        Step::DeletePeer(link, key) => Some((*link, PeerChange::Delete(*key))),
        _ => None,
    }
}

/// Does this kernel have WireGuard? Tried with a link in a namespace that is gone afterwards. Blocks
/// for some milliseconds.
pub(crate) fn try_out() -> Result<(), OverlayError> {
    in_scratch(|_| Ok(()))
}

/// The public key that belongs to a private one. The kernel computes it, for a link in a namespace
/// that is gone afterwards.
fn public_of(key: &PrivateKey) -> Result<PublicKey, OverlayError> {
    let seen = in_scratch(|link| {
        let mut control = Control::open()?;
        control.set_key(link, key)?;
        Ok(control.device(link)?)
    })?;
    seen.and_then(|seen| seen.key)
        .ok_or(OverlayError::NoWireGuard)
}

fn in_scratch<T: Send>(
    work: impl FnOnce(u32) -> Result<T, OverlayError> + Send,
) -> Result<T, OverlayError> {
    let done = netns::in_new(|| {
        let mut route = Route::open().map_err(OverlayError::Socket)?;
        let message = messages::new_wireguard(SCRATCH, SCRATCH_MTU);
        let request = (NLM_F_CREATE | NLM_F_EXCL, Request::NewLink(message));
        let made = route.request(|| "making a WireGuard link".to_owned(), vec![request]);
        made.map_err(|error| match error.errno() {
            Some(libc::EOPNOTSUPP) => OverlayError::NoWireGuard,
            _ => error.into(),
        })?;
        let link = route.link(SCRATCH)?.ok_or(OverlayError::NoWireGuard)?;
        work(link.index)
    });
    done.map_err(OverlayError::Namespace)?
}
