// SPDX-License-Identifier: Apache-2.0
//! Sets of ports, in one form for each set.

use crate::service::Protocol;

/// Ports of one protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// What may be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Everything, with whatever protocol.
    All,
    /// These ports: in order, none next to another.
    Some(Vec<Range>),
}

impl Ports {
    /// Nothing.
    pub fn none() -> Ports {
        Ports::Some(Vec::new())
    }

    /// The ports of some ranges.
    pub fn of(mut ranges: Vec<Range>) -> Ports {
        ranges.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(before)
                    if before.protocol == range.protocol
                        && range.first <= before.last.saturating_add(1) =>
                {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Ports::Some(merged)
    }

    /// Take those of another set in as well.
    pub fn add(&mut self, other: &Ports) {
        match (&mut *self, other) {
            (Ports::All, _) => {}
            (_, Ports::All) => *self = Ports::All,
            (Ports::Some(_), Ports::Some(more)) if more.is_empty() => {}
            (Ports::Some(ranges), Ports::Some(more)) => {
                let mut all = std::mem::take(ranges);
                all.extend_from_slice(more);
                *self = Ports::of(all);
            }
        }
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        matches!(self, Ports::Some(ranges) if ranges.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(protocol: Protocol, first: u16, last: u16) -> Range {
        Range {
            protocol,
            first,
            last,
        }
    }

    #[test]
    fn the_same_ports_have_one_form() {
        use Protocol::{Tcp, Udp};
        let mut ports = Ports::of(vec![range(Tcp, 443, 443), range(Tcp, 80, 80)]);
        let whole = Ports::Some(vec![range(Tcp, 80, 90), range(Tcp, 443, 443)]);
        ports.add(&Ports::of(vec![range(Tcp, 81, 90), range(Tcp, 85, 88)]));
        assert_eq!(ports, whole);
        ports.add(&Ports::none());
        assert_eq!(ports, whole);
        ports.add(&Ports::of(vec![range(Udp, 0, u16::MAX), range(Udp, 9, 9)]));
        let Ports::Some(ranges) = &ports else {
            panic!("some")
        };
        assert_eq!(ranges.len(), 3);
        ports.add(&Ports::All);
        assert_eq!(ports, Ports::All);
    }
}
