// SPDX-License-Identifier: Apache-2.0
//! What is wanted, what the kernel has, and the steps between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::announce::mac_of;
use super::model::{
    Backend, Decision, ForwardEntry, Mac, Neighbour, Own, PathRoute, Peer, Problem, Seen, SeenLink,
    Settings, Step, VxlanSpec,
};
use super::wireguard::{self, PublicKey};
use super::{mtu, untracked};
use crate::cidr::Cidr;

/// The steps that lead from what was seen to what is wanted, and what stands in their way. Whoever
/// carries them out may stop after any of them, and ask again.
pub fn decide(settings: &Settings, own: &Own, peers: &[Peer], seen: &Seen) -> Decision {
    let mut work = Work {
        settings,
        own,
        seen,
        decision: Decision::default(),
    };
    if settings.backend == Backend::WireGuard {
        work.decision.told.clone_from(&seen.told);
    }
    work.no_other_link();
    let link = match settings.backend {
        Backend::Vxlan => work.vxlan_link(),
        Backend::WireGuard => work.wireguard_link(),
        Backend::HostGw | Backend::None => None,
    };
    let has_link = matches!(settings.backend, Backend::Vxlan | Backend::WireGuard);
    if has_link && link.is_none() {
        return work.decision;
    }
    work.untracked();
    work.bridge();
    let mut paths = Paths::default();
    if settings.backend != Backend::None {
        let mut peers: Vec<&Peer> = peers.iter().collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let mut taken = Taken::of(own);
        for peer in peers {
            if let Err(text) = work.add_peer(peer, link, &mut taken, &mut paths) {
                work.problem(Some(&peer.name), text);
            }
        }
    }
    if let Some(link) = link {
        work.addresses(link);
        if settings.backend == Backend::WireGuard {
            work.wireguard_peers(link, &paths.peers);
        } else {
            work.neighbours(link, &paths);
            work.forward(link, &paths);
        }
    }
    work.routes(&paths);
    work.decision
}

/// Drivers of the links that back ends make.
pub(super) const VXLAN: &str = "vxlan";
pub(super) const WIREGUARD: &str = "wireguard";

pub(super) struct Work<'a> {
    pub(super) settings: &'a Settings,
    pub(super) own: &'a Own,
    pub(super) seen: &'a Seen,
    pub(super) decision: Decision,
}

/// What leads to the other nodes.
#[derive(Default)]
pub(super) struct Paths {
    pub(super) routes: BTreeSet<PathRoute>,
    neighbours: BTreeMap<IpAddr, Mac>,
    forward: BTreeMap<Mac, IpAddr>,
    pub(super) peers: wireguard::Paths,
}

/// What nobody else may claim any more.
pub(super) struct Taken {
    cidrs: Vec<(Cidr, String)>,
    macs: BTreeMap<Mac, String>,
    pub(super) keys: BTreeMap<PublicKey, String>,
}

impl Taken {
    fn of(own: &Own) -> Taken {
        let cidrs = own.pod_cidrs.iter().map(|c| (*c, own.name.clone()));
        let keys = own.keys.iter();
        let keys = keys.flat_map(|keys| [Some(keys.current), keys.next]);
        let keys = keys.flatten().map(|key| (key, own.name.clone()));
        Taken {
            cidrs: cidrs.collect(),
            keys: keys.collect(),
            macs: BTreeMap::from([(mac_of(&own.name), own.name.clone())]),
        }
    }
}

impl Work<'_> {
    pub(super) fn step(&mut self, step: Step) {
        self.decision.steps.push(step);
    }

    pub(super) fn problem(&mut self, peer: Option<&str>, text: String) {
        self.decision.problems.push(Problem {
            peer: peer.map(str::to_owned),
            text,
        });
    }

    /// The address that encapsulated packets come to.
    fn outer(&self) -> Option<IpAddr> {
        self.own.addresses.first().copied()
    }

    /// The largest packet of pods; none, and a problem, if the uplink is not known.
    pub(super) fn inner_mtu(&mut self) -> Option<u32> {
        let (Some(local), Some(uplink)) = (self.outer(), &self.seen.uplink) else {
            let address = self.outer().map_or_else(String::new, |a| format!(" {a}"));
            let text = format!("no link has this node's address{address}; see --node-ip");
            self.problem(None, text);
            return None;
        };
        let backend = self.settings.backend;
        Some(mtu::inner(backend, uplink.mtu, local.is_ipv4()))
    }

    /// The VXLAN link's index, when the rest can be put on it. Otherwise what makes it so is decided.
    fn vxlan_link(&mut self) -> Option<u32> {
        let mtu = self.inner_mtu()?;
        let local = self.outer()?;
        let spec = VxlanSpec {
            name: self.settings.link.clone(),
            vni: self.settings.vni,
            port: self.settings.port,
            local,
            mac: mac_of(&self.own.name),
            mtu,
        };
        let Some(link) = &self.seen.own else {
            self.step(Step::AddVxlan(spec));
            return None;
        };
        let index = link.index;
        if link.kind != VXLAN {
            let text = format!(
                "link {} is there already, and is not a VXLAN link but {:?}; rename it or remove it",
                link.name, link.kind
            );
            self.problem(None, text);
            return None;
        }
        if let Some(why) = differs(link, &spec) {
            self.step(Step::DeleteLink(index, why));
            self.step(Step::AddVxlan(spec));
            return None;
        }
        if link.mac != Some(spec.mac) {
            self.step(Step::SetMac(index, spec.mac));
        }
        if link.mtu != spec.mtu {
            self.step(Step::SetMtu(index, spec.mtu));
        }
        if !link.up {
            self.step(Step::SetUp(index));
        }
        Some(index)
    }

    /// Take away what other back ends left.
    fn no_other_link(&mut self) {
        let backend = self.settings.backend;
        for (link, kind, of) in [
            (&self.seen.own, VXLAN, Backend::Vxlan),
            (&self.seen.wireguard, WIREGUARD, Backend::WireGuard),
        ] {
            let link = link.as_ref().filter(|link| link.kind == kind);
            if let Some(link) = link.filter(|_| of != backend) {
                let step = Step::DeleteLink(link.index, "another back end is used");
                self.step(step);
            }
        }
    }

    /// What is around pods' packets is not tracked.
    fn untracked(&mut self) {
        let port = (self.settings.backend == Backend::Vxlan).then_some(self.settings.port);
        if self.seen.untracked != port.map(untracked::chains).unwrap_or_default() {
            self.step(Step::SetUntracked(port));
        }
    }

    /// A bridge keeps the MTU that it was made with, and refuses larger packets.
    fn bridge(&mut self) {
        let (Some(bridge), Some(uplink), Some(outer)) =
            (&self.seen.bridge, &self.seen.uplink, self.outer())
        else {
            return;
        };
        let mtu = mtu::inner(self.settings.backend, uplink.mtu, outer.is_ipv4());
        let settled = self.settings.backend == Backend::None || bridge.mtu == mtu;
        if bridge.kind == "bridge" && !settled {
            let step = Step::SetMtu(bridge.index, mtu);
            self.step(step);
        }
    }

    fn add_peer(
        &mut self,
        peer: &Peer,
        link: Option<u32>,
        taken: &mut Taken,
        paths: &mut Paths,
    ) -> Result<(), String> {
        let said = &peer.announcement;
        if said.backend != self.settings.backend.name() {
            return Err(format!(
                "uses the back end {:?} and this node {:?}; give every node the same",
                said.backend,
                self.settings.backend.name()
            ));
        }
        for cidr in &peer.pod_cidrs {
            self.check_range(*cidr, said.addresses.as_slice(), taken)?;
        }
        match link {
            Some(link) if self.settings.backend == Backend::WireGuard => {
                self.add_wireguard_peer(peer, link, taken, paths)?;
            }
            Some(link) => self.add_vxlan_peer(peer, link, taken, paths)?,
            None => self.add_direct_peer(peer, paths),
        }
        let cidrs = peer.pod_cidrs.iter().map(|c| (*c, peer.name.clone()));
        taken.cidrs.extend(cidrs);
        Ok(())
    }

    /// A range that is not for this node's own pods, nor another's, and leads nobody's packets
    /// astray.
    fn check_range(&self, cidr: Cidr, nodes: &[IpAddr], taken: &Taken) -> Result<(), String> {
        let inside = |all: &Cidr| all.prefix <= cidr.prefix && all.contains(cidr.addr);
        if !self.settings.cluster.is_empty() && !self.settings.cluster.iter().any(inside) {
            return Err(format!(
                "its pod range {cidr} is in none of the cluster's; see --cluster-cidr"
            ));
        }
        let overlap = |(other, _): &&(Cidr, String)| overlaps(*other, cidr);
        if let Some((other, whose)) = taken.cidrs.iter().find(overlap) {
            return Err(format!(
                "its pod range {cidr} overlaps {other} of node {whose}"
            ));
        }
        let nodes = nodes.iter().chain(&self.own.addresses);
        if let Some(node) = nodes.copied().find(|node| cidr.contains(*node)) {
            return Err(format!("its pod range {cidr} contains node address {node}"));
        }
        Ok(())
    }

    fn add_vxlan_peer(
        &self,
        peer: &Peer,
        link: u32,
        taken: &mut Taken,
        paths: &mut Paths,
    ) -> Result<(), String> {
        let said = &peer.announcement;
        let ours = (Some(self.settings.vni), Some(self.settings.port));
        if (said.vni, said.port) != ours {
            return Err(format!(
                "uses vni {} on port {}, and this node vni {} on port {}; give every node the same",
                said.vni.unwrap_or_default(),
                said.port.unwrap_or_default(),
                self.settings.vni,
                self.settings.port
            ));
        }
        let mac: Mac = said.mac.as_deref().unwrap_or("").parse()?;
        if let Some(whose) = taken.macs.get(&mac) {
            return Err(format!(
                "its hardware address {mac} is that of node {whose}; give one of them another name"
            ));
        }
        let node = self.outer_address(peer)?;
        taken.macs.insert(mac, peer.name.clone());
        paths.forward.insert(mac, node);
        for cidr in &peer.pod_cidrs {
            let gateway = cidr.network().addr;
            paths.neighbours.insert(gateway, mac);
            paths.routes.insert(PathRoute {
                dst: cidr.network(),
                gateway: Some(gateway),
                onlink: true,
                link,
                source: self.source(cidr.is_ipv4()),
            });
        }
        Ok(())
    }

    /// Where encapsulated packets for a node go.
    pub(super) fn outer_address(&self, peer: &Peer) -> Result<IpAddr, String> {
        let ipv4 = self.outer().is_none_or(|a| a.is_ipv4());
        let node = peer.announcement.address(ipv4).ok_or_else(|| {
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            format!("has no {family} address, and this node's first one is {family}")
        })?;
        self.check_address(node)?;
        Ok(node)
    }

    /// One family may work where the other does not, so each range is for itself.
    fn add_direct_peer(&mut self, peer: &Peer, paths: &mut Paths) {
        for cidr in &peer.pod_cidrs {
            match self.direct(peer, *cidr) {
                Ok(route) => drop(paths.routes.insert(route)),
                Err(text) => self.problem(Some(&peer.name), text),
            }
        }
    }

    fn direct(&self, peer: &Peer, cidr: Cidr) -> Result<PathRoute, String> {
        let family = if cidr.is_ipv4() { "IPv4" } else { "IPv6" };
        let node = peer.announcement.address(cidr.is_ipv4());
        let node = node.ok_or_else(|| format!("has no {family} address for its range {cidr}"))?;
        self.check_address(node)?;
        let near = self.seen.addresses.iter().filter(|(link, subnet)| {
            let pods = [&self.seen.own, &self.seen.wireguard, &self.seen.bridge];
            let pods = pods
                .iter()
                .any(|l| l.as_ref().is_some_and(|l| l.index == *link));
            !pods && subnet.contains(node) && *subnet != Cidr::host(subnet.addr)
        });
        let (link, _) = near.max_by_key(|(_, subnet)| subnet.prefix).ok_or_else(|| {
            format!(
                "its address {node} is on none of this node's subnets; host-gw needs a common one, vxlan and wireguard do not"
            )
        })?;
        Ok(PathRoute {
            dst: cidr.network(),
            gateway: Some(node),
            onlink: false,
            link: *link,
            source: None,
        })
    }

    fn check_address(&self, node: IpAddr) -> Result<(), String> {
        let bad = node.is_unspecified() || node.is_loopback() || node.is_multicast();
        if bad || self.own.addresses.contains(&node) {
            let whose = if bad { "no node's" } else { "this node's own" };
            return Err(format!("says that its address is {node}, which is {whose}"));
        }
        Ok(())
    }

    /// What this node's own packets come from, so that answers take the same way back. The kernel
    /// chooses it by itself for IPv6: the address on the link.
    pub(super) fn source(&self, ipv4: bool) -> Option<IpAddr> {
        let mut own = self.own.pod_cidrs.iter().filter(|c| c.is_ipv4() && ipv4);
        own.next().map(|c| c.network().addr)
    }

    fn addresses(&mut self, link: u32) {
        let wanted: BTreeSet<Cidr> = self
            .own
            .pod_cidrs
            .iter()
            .map(|cidr| Cidr::host(cidr.network().addr))
            .collect();
        let there = self.seen.addresses.iter().filter(|(at, _)| *at == link);
        let there: BTreeSet<Cidr> = there.map(|(_, cidr)| *cidr).collect();
        for cidr in there.difference(&wanted).filter(|c| !is_link_local(c.addr)) {
            self.step(Step::DeleteAddress(link, *cidr));
        }
        for cidr in wanted.difference(&there) {
            self.step(Step::AddAddress(link, *cidr));
        }
    }

    fn neighbours(&mut self, link: u32, paths: &Paths) {
        let there: BTreeSet<Neighbour> = self.seen.neighbours.iter().copied().collect();
        for old in &there {
            // One that is replaced below needs no deleting.
            if !paths.neighbours.contains_key(&old.address) {
                self.step(Step::DeleteNeighbour(link, *old));
            }
        }
        for (address, mac) in &paths.neighbours {
            let (address, mac) = (*address, *mac);
            let wanted = Neighbour { address, mac };
            if !there.contains(&wanted) {
                self.step(Step::SetNeighbour(link, wanted));
            }
        }
    }

    fn forward(&mut self, link: u32, paths: &Paths) {
        let there: BTreeSet<ForwardEntry> = self.seen.forward.iter().copied().collect();
        let wanted = paths.forward.iter().map(|(mac, node)| ForwardEntry {
            mac: *mac,
            node: *node,
        });
        let missing: BTreeMap<Mac, ForwardEntry> = wanted
            .filter(|wanted| !there.contains(wanted))
            .map(|wanted| (wanted.mac, wanted))
            .collect();
        for old in &there {
            let right = paths.forward.get(&old.mac) == Some(&old.node);
            if !right && !missing.contains_key(&old.mac) {
                self.step(Step::DeleteForward(link, *old));
            }
        }
        for entry in missing.into_values() {
            self.step(Step::SetForward(link, entry));
        }
    }

    fn routes(&mut self, paths: &Paths) {
        let there: BTreeSet<PathRoute> = self.seen.routes.iter().copied().collect();
        for route in there.difference(&paths.routes) {
            self.step(Step::DeleteRoute(*route));
        }
        for route in paths.routes.difference(&there) {
            self.step(Step::AddRoute(*route));
        }
    }
}

/// Why a VXLAN link must be made anew: the kernel changes none of this afterwards.
fn differs(link: &SeenLink, spec: &VxlanSpec) -> Option<&'static str> {
    let Some(there) = link.vxlan else {
        return Some("its parameters cannot be read");
    };
    [
        (there.vni != spec.vni, "it has another vni"),
        (there.port != spec.port, "it has another port"),
        (
            there.local != Some(spec.local),
            "it has another local address",
        ),
        (there.learning, "it learns from what it receives"),
    ]
    .into_iter()
    .find_map(|(wrong, why)| wrong.then_some(why))
}

fn overlaps(a: Cidr, b: Cidr) -> bool {
    if a.prefix <= b.prefix {
        a.contains(b.addr)
    } else {
        b.contains(a.addr)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
