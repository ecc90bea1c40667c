// SPDX-License-Identifier: Apache-2.0
//! What a WireGuard link should be, and the steps that make it so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::key::PublicKey;
use super::model::{PeerSpec, SeenPeer};
use crate::cidr::Cidr;
use crate::overlay::decide::{self, Taken, Work};
use crate::overlay::model::{PathRoute, Peer, Step};

/// A session is not used after this time (REJECT_AFTER_TIME of the protocol). A peer that has agreed
/// on keys since then is reached where its packets go now.
const ALIVE: Duration = Duration::from_secs(180);

/// Peers that are wanted, by their keys.
pub(crate) type Paths = BTreeMap<PublicKey, Wanted>;

pub(crate) struct Wanted {
    endpoint: SocketAddr,
    allowed: BTreeSet<Cidr>,
}

impl Work<'_> {
    /// The link's index, when peers and routes can be put on it. Otherwise what makes it so is
    /// decided.
    pub(in crate::overlay) fn wireguard_link(&mut self) -> Option<u32> {
        let mtu = self.inner_mtu()?;
        let Some(keys) = self.own.keys else {
            self.problem(None, "this node has no WireGuard key".into());
            return None;
        };
        let settings = &self.settings.wireguard;
        let Some(link) = &self.seen.wireguard else {
            self.step(Step::AddWireGuard(settings.link.clone(), mtu));
            return None;
        };
        let index = link.index;
        if link.kind != decide::WIREGUARD {
            let text = format!(
                "link {} is there already, and is not a WireGuard link but {:?}; rename it or remove it",
                link.name, link.kind
            );
            self.problem(None, text);
            return None;
        }
        // It went between two looks; the next one makes it.
        let device = self.seen.device.as_ref()?;
        if device.key != Some(keys.current) {
            self.step(Step::SetKey(index, keys.current));
        }
        if (device.port, device.mark) != (settings.port, 0) {
            self.step(Step::SetSocket(index, settings.port));
        }
        if link.mtu != mtu {
            self.step(Step::SetMtu(index, mtu));
        }
        if !link.up {
            self.step(Step::SetUp(index));
        }
        Some(index)
    }

    /// A node with its key, and with the one that it will have next. Only one of them has the node's
    /// ranges, so the kernel never has to choose.
    pub(in crate::overlay) fn add_wireguard_peer(
        &self,
        peer: &Peer,
        link: u32,
        taken: &mut Taken,
        paths: &mut decide::Paths,
    ) -> Result<(), String> {
        let said = &peer.announcement;
        let current: PublicKey = said.public_key.as_deref().unwrap_or("").parse()?;
        let next = said.next_public_key.as_deref();
        let next: Option<PublicKey> = next.map(str::parse).transpose()?;
        for key in [Some(current), next].into_iter().flatten() {
            if let Some(whose) = taken.keys.get(&key) {
                return Err(format!(
                    "its WireGuard key {key} is that of node {whose}; remove the key file of one of them and restart it"
                ));
            }
        }
        let port = said.port.filter(|port| *port != 0);
        let port = port.ok_or("says no port for WireGuard")?;
        let endpoint = SocketAddr::new(self.outer_address(peer)?, port);
        let active = match next {
            Some(next) if self.has_switched(next) => next,
            _ => current,
        };
        for key in [Some(current), next].into_iter().flatten() {
            taken.keys.insert(key, peer.name.clone());
            let ranges = peer.pod_cidrs.iter().map(Cidr::network);
            let allowed = ranges.filter(|_| key == active).collect();
            paths.peers.insert(key, Wanted { endpoint, allowed });
        }
        paths
            .routes
            .extend(peer.pod_cidrs.iter().map(|cidr| PathRoute {
                dst: cidr.network(),
                gateway: None,
                onlink: false,
                link,
                source: self.source(cidr.is_ipv4()),
            }));
        Ok(())
    }

    /// Does a node use its next key already? Nobody sends to that key before, and the node cannot
    /// answer for it before, so keys were agreed on only if it does.
    fn has_switched(&self, next: PublicKey) -> bool {
        let device = self.seen.device.as_ref();
        let peer = device.and_then(|device| device.peers.get(&next));
        peer.is_some_and(|peer| peer.handshake.is_some())
    }

    /// First what is added and what gets ranges, which takes them from others, then the rest.
    pub(in crate::overlay) fn wireguard_peers(&mut self, link: u32, paths: &Paths) {
        let empty = BTreeMap::new();
        let there = self.seen.device.as_ref().map_or(&empty, |d| &d.peers);
        let mut changes: Vec<PeerSpec> = paths
            .iter()
            .filter_map(|(key, wanted)| {
                change(*key, wanted, there.get(key), self.seen.told.get(key))
            })
            .collect();
        changes.sort_by_key(|change| change.allowed.as_ref().is_none_or(BTreeSet::is_empty));
        let gone = there.keys().filter(|key| !paths.contains_key(key));
        let gone: Vec<PublicKey> = gone.copied().collect();
        for spec in changes {
            self.step(Step::SetPeer(link, spec));
        }
        for key in gone {
            self.step(Step::DeletePeer(link, key));
        }
        let told = paths.iter().map(|(key, wanted)| (*key, wanted.endpoint));
        self.decision.told = told.collect();
    }
}

/// What makes a peer as it should be; `None` when it is.
fn change(
    key: PublicKey,
    wanted: &Wanted,
    there: Option<&SeenPeer>,
    told: Option<&SocketAddr>,
) -> Option<PeerSpec> {
    let Some(there) = there else {
        return Some(PeerSpec {
            key,
            endpoint: Some(wanted.endpoint),
            allowed: Some(wanted.allowed.clone()),
            plain: false,
        });
    };
    let spec = PeerSpec {
        key,
        endpoint: is_elsewhere(wanted.endpoint, there, told).then_some(wanted.endpoint),
        allowed: (there.allowed != wanted.allowed).then(|| wanted.allowed.clone()),
        plain: there.adorned,
    };
    let differs = spec.endpoint.is_some() || spec.allowed.is_some() || spec.plain;
    differs.then_some(spec)
}

/// Must a peer's endpoint be set? The kernel moves it to wherever the peer's last packet came from,
/// which is right for as long as the two have a session. It is set when the node announces another
/// than it did, and when nothing was agreed on for so long that there is no session.
fn is_elsewhere(wanted: SocketAddr, there: &SeenPeer, told: Option<&SocketAddr>) -> bool {
    let Some(now) = there.endpoint else {
        return true;
    };
    let announced_anew = told.is_some_and(|told| *told != wanted);
    let alive = there.handshake.is_some_and(|ago| ago < ALIVE);
    now != wanted && (announced_anew || !alive)
}
