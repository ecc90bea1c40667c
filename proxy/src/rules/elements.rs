// SPDX-License-Identifier: Apache-2.0
//! A Service's elements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::nft::Data;

use super::chains::Pick;
use super::layout::{Map, SetName, backend_bytes, frontend_key, numbers, octets};
use crate::service::{Backend, Frontend, Masquerade, Refuse, Target};

/// Elements by set and key. A plain set's elements have no data.
pub type Elements = BTreeMap<(SetName, Vec<u8>), Option<Data>>;

/// The chain that leads clients from inside and outside to different endpoints, by family and by
/// whether the frontend is a node port. They are always there.
pub const SPLIT: [(bool, bool, u32); 4] = [
    (true, false, 1),
    (true, true, 2),
    (false, false, 3),
    (false, true, 4),
];
/// No chain.
const NOTHING: u32 = 0;

/// Numbers of chains, which the caller makes as they are asked for.
pub trait Numbers {
    /// Of a chain that picks an endpoint.
    fn pick(&mut self, pick: Pick) -> u32;
    /// Of the chain that lets a frontend's sources pass.
    fn sources(&mut self, frontend: &Frontend, target: &Target) -> Option<u32>;
}

/// What is done with a packet beside choosing its endpoint, as a number.
pub(super) fn policy(masquerade: Masquerade, refuse: Option<Refuse>) -> u32 {
    let masquerade = match masquerade {
        Masquerade::All => 1,
        Masquerade::Outside => 2,
        Masquerade::Host => 3,
    };
    let refuse = match refuse {
        None => 0,
        Some(Refuse::Reject) => 1,
        Some(Refuse::Drop) => 2,
    };
    masquerade | refuse << 4
}

/// An address alone in a set, or twice in the set of those that can meet themselves.
pub fn address_element(map: Map, ip: IpAddr) -> (SetName, Vec<u8>) {
    let times = if map == Map::Loop { 2 } else { 1 };
    (map.of(ip.is_ipv4()), octets(ip).repeat(times))
}

/// The elements of one frontend.
pub fn target_elements(
    frontend: &Frontend,
    target: &Target,
    chains: &mut impl Numbers,
) -> Elements {
    let mut elements = Elements::new();
    let (ipv4, key) = (frontend.is_ipv4(), frontend_key(frontend));
    let mut number_of = |pool: &[Backend], local: bool| {
        let count = u32::try_from(pool.len()).expect("fewer endpoints than addresses");
        let affinity = target.affinity;
        let node_port = frontend.is_node_port();
        let pick = Pick {
            ipv4,
            node_port,
            local,
            count,
            affinity,
        };
        if count == 0 {
            NOTHING
        } else {
            chains.pick(pick)
        }
    };
    let inside = number_of(&target.cluster, false);
    let entry = match &target.local {
        None => inside,
        Some(local) => {
            let outside = number_of(local, true);
            let data = numbers(local.len(), inside, outside);
            elements.insert((Map::Split.of(ipv4), key.clone()), data);
            pool_elements(&mut elements, &key, local, target, true);
            split_number(ipv4, frontend.is_node_port())
        }
    };
    let policy = policy(target.masquerade, target.refuse);
    let data = numbers(target.cluster.len(), entry, policy);
    elements.insert((Map::Services.of(ipv4), key.clone()), data);
    pool_elements(&mut elements, &key, &target.cluster, target, false);
    if let Some(list) = chains.sources(frontend, target) {
        let count = target.sources.as_deref().map_or(0, <[_]>::len);
        let list = numbers(count, list, 0);
        elements.insert((Map::Firewall.of(ipv4), key), list);
    }
    elements
}

fn split_number(ipv4: bool, node_port: bool) -> u32 {
    let of = |(v4, at_node, _): &&(bool, bool, u32)| (*v4, *at_node) == (ipv4, node_port);
    SPLIT.iter().find(of).map_or(NOTHING, |split| split.2)
}

/// A longer key: that of a frontend, and a slot or token.
pub(crate) fn with(key: &[u8], number: u32) -> Vec<u8> {
    let mut longer = key.to_vec();
    longer.extend(number.to_ne_bytes());
    longer
}

/// Where each slot leads; and where clients keep their endpoint, the token of each slot, and where
/// that leads. A slot has another endpoint when one goes, a token never has.
fn pool_elements(
    elements: &mut Elements,
    key: &[u8],
    pool: &[Backend],
    target: &Target,
    local: bool,
) {
    let (endpoints, slots, members) = if local {
        (Map::LocalEndpoints, Map::LocalSlots, Map::LocalMembers)
    } else {
        (Map::Endpoints, Map::Slots, Map::Members)
    };
    let mut tokens = BTreeSet::new();
    for (slot, backend) in (0_u32..).zip(pool) {
        let ipv4 = backend.addr.is_ipv4();
        let data = Some(Data::Value(backend_bytes(backend)));
        elements.insert((endpoints.of(ipv4), with(key, slot)), data.clone());
        if target.affinity.is_none() {
            continue;
        }
        let mut token = token(backend);
        while !tokens.insert(token) {
            token = token.wrapping_add(1);
        }
        let mut row = vec![0; octets(backend.addr).len()];
        row.extend(with(key, token));
        let row = Some(Data::Value(row));
        elements.insert((slots.of(ipv4), with(key, slot)), row);
        elements.insert((members.of(ipv4), with(key, token)), data);
    }
}

/// A number that a backend has wherever it stands in a pool (FNV-1a).
fn token(backend: &Backend) -> u32 {
    let bytes = backend_bytes(backend);
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}
