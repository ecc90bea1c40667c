// SPDX-License-Identifier: Apache-2.0
//! Address blocks that overlap, as intervals that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::cidr::{Cidr, from_bits, to_bits};

/// A policy's `ipBlock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The block, without host bits.
    pub cidr: Cidr,
    /// What is not of it.
    pub except: Box<[Cidr]>,
}

impl Block {
    /// Is this address of the block?
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.cidr.contains(addr) && !self.except.iter().any(|e| e.contains(addr))
    }

    /// The intervals that it consists of.
    fn ranges(&self) -> Vec<(u128, u128)> {
        let ends = |cidr: &Cidr| (to_bits(cidr.network().addr), to_bits(cidr.last()));
        let (first, last) = ends(&self.cidr);
        let mut holes: Vec<(u128, u128)> = self
            .except
            .iter()
            .filter(|e| e.is_ipv4() == self.cidr.is_ipv4())
            .map(ends)
            .collect();
        holes.sort_unstable();
        let mut ranges = Vec::new();
        let mut next = Some(first);
        for (from, to) in holes {
            let Some(at) = next else { break };
            if from > at {
                ranges.push((at, (from - 1).min(last)));
            }
            next = Some(at.max(to.saturating_add(1)));
            if to >= last {
                next = None;
            }
        }
        ranges.extend(next.filter(|at| *at <= last).map(|at| (at, last)));
        ranges.retain(|(from, to)| from <= to);
        ranges
    }
}

/// An interval of addresses, both ends included, and the blocks it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest.
    pub last: IpAddr,
    /// At least one.
    pub blocks: BTreeSet<u32>,
}

/// Cut the addresses of one family into intervals that are in the same blocks throughout, and leave
/// out what is in none.
pub fn pieces(ipv4: bool, blocks: &[(u32, &Block)]) -> Vec<Piece> {
    // At an address: blocks that begin there, and blocks that have ended before it.
    let mut turns: BTreeMap<u128, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
    let of_family = blocks.iter().filter(|(_, b)| b.cidr.is_ipv4() == ipv4);
    for (id, block) in of_family {
        for (first, last) in block.ranges() {
            turns.entry(first).or_default().0.push(*id);
            if let Some(after) = last.checked_add(1) {
                turns.entry(after).or_default().1.push(*id);
            }
        }
    }
    let highest = if ipv4 {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    };
    let starts: Vec<u128> = turns.keys().copied().collect();
    let mut inside = BTreeSet::new();
    let mut pieces: Vec<Piece> = Vec::new();
    for (index, (first, (begun, ended))) in turns.into_iter().enumerate() {
        inside.retain(|id| !ended.contains(id));
        inside.extend(begun);
        if inside.is_empty() || first > highest {
            continue;
        }
        let last = starts.get(index + 1).map_or(highest, |next| next - 1);
        pieces.push(Piece {
            first: from_bits(first, ipv4),
            last: from_bits(last, ipv4),
            blocks: inside.clone(),
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Block {
        let parse = |text: &str| text.parse::<Cidr>().expect(text);
        Block {
            cidr: parse(cidr),
            except: except.iter().map(|e| parse(e)).collect(),
        }
    }

    #[test]
    fn every_address_is_in_the_pieces_of_its_blocks() {
        let blocks = [
            block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24", "10.3.0.0/24"]),
            block("10.1.2.0/24", &[]),
            block("0.0.0.0/0", &["255.255.255.255/32", "0.0.0.0/32"]),
            block("10.0.0.0/30", &["10.0.0.0/30"]),
            block("fd00::/8", &["fd00::/128"]),
            block("::/0", &["ffff::/16"]),
        ];
        let numbered: Vec<(u32, &Block)> = (0..).zip(&blocks).collect();
        for (text, of) in [
            ("10.0.0.1", &[0, 2][..]),
            ("10.1.0.1", &[2]),
            ("10.1.2.9", &[1, 2]),
            ("10.2.255.255", &[0, 2]),
            ("10.3.0.7", &[2]),
            ("10.255.255.255", &[0, 2]),
            ("11.0.0.0", &[2]),
            ("255.255.255.255", &[]),
            ("0.0.0.0", &[]),
            ("255.255.255.254", &[2]),
            ("fd00::", &[5]),
            ("fd00::1", &[4, 5]),
            ("::", &[5]),
            ("ffff::", &[]),
        ] {
            let addr: IpAddr = text.parse().expect(text);
            let found: Vec<Piece> = pieces(addr.is_ipv4(), &numbered)
                .into_iter()
                .filter(|p| p.first <= addr && addr <= p.last)
                .collect();
            assert!(found.len() <= 1, "{text}: {found:?}");
            let ids: Vec<u32> = found.iter().flat_map(|p| p.blocks.clone()).collect();
            assert_eq!(ids, of, "{text}");
            let meant = numbered.iter().filter(|(_, b)| b.contains(addr));
            assert_eq!(ids, meant.map(|(id, _)| *id).collect::<Vec<_>>(), "{text}");
        }
        assert_eq!(pieces(true, &[]), []);
        let all = block("::/0", &[]);
        assert_eq!(pieces(false, &[(0, &all)]).len(), 1);
    }
}
