// SPDX-License-Identifier: Apache-2.0
//! Ranges of addresses, and which address is next.

use std::net::IpAddr;

use serde_json::Value;

use crate::cidr::{Cidr, from_bits, to_bits};
use crate::fields::{FieldError, Fields};
use crate::types::IpConfig;

/// A choice of ranges, all of one family: a pod gets one address out of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RangeSet(Vec<Range>);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Range {
    subnet: Cidr,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl RangeSet {
    pub(super) fn of(range: Range) -> RangeSet {
        RangeSet(vec![range])
    }

    /// A list of lists of ranges, which stands at `path`.
    pub(super) fn parse(path: &str, listed: Vec<Vec<Value>>) -> Result<Vec<RangeSet>, FieldError> {
        let mut sets = Vec::new();
        for (i, set) in listed.into_iter().enumerate() {
            let mut ranges: Vec<Range> = Vec::new();
            for (j, range) in set.into_iter().enumerate() {
                let path = format!("{path}[{i}][{j}]");
                let mut fields = Fields::new(path.clone(), range)?;
                let Some(range) = Range::parse(&mut fields, true)? else {
                    continue;
                };
                fields.finish()?;
                if let Some(other) = ranges.iter().find(|other| range.overlaps(other)) {
                    return Err(overlap(path, &range, other));
                }
                if ranges
                    .iter()
                    .any(|r| r.subnet.is_ipv4() != range.subnet.is_ipv4())
                {
                    let text = "is of another family than those before it in its list";
                    return Err(FieldError::new(path, text));
                }
                ranges.push(range);
            }
            if ranges.is_empty() {
                let text = "must have at least one range";
                return Err(FieldError::new(format!("{path}[{i}]"), text));
            }
            sets.push(RangeSet(ranges));
        }
        Ok(sets)
    }

    /// Two sets with the same address would lead to it being given to one pod twice.
    pub(super) fn check_disjoint(path: &str, sets: &[RangeSet]) -> Result<(), FieldError> {
        for (i, set) in sets.iter().enumerate() {
            for (range, other) in set.0.iter().flat_map(|range| {
                let others = sets[..i].iter().flat_map(|set| &set.0);
                others.map(move |other| (range, other))
            }) {
                if range.overlaps(other) {
                    return Err(overlap(path.to_owned(), range, other));
                }
            }
        }
        Ok(())
    }

    /// The range that an address is in.
    fn of_address(&self, addr: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(addr))
    }

    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.of_address(addr).is_some()
    }

    /// An address that somebody asked for, unless it is a gateway or of no range here.
    pub(super) fn requested(&self, addr: IpAddr) -> Option<IpConfig> {
        self.of_address(addr)
            .filter(|_| !self.is_gateway(addr))
            .map(|range| range.config(addr))
    }

    pub(super) fn is_gateway(&self, addr: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == addr)
    }

    /// Every range in turn, beginning with that of `last`, which comes twice: what is after it
    /// first, what is before it at the end.
    fn in_turn(&self, last: Option<IpAddr>) -> impl Iterator<Item = &Range> {
        let begin = last
            .and_then(|last| self.0.iter().position(|r| r.contains(last)))
            .unwrap_or(0);
        (0..=self.0.len()).map(move |i| &self.0[(begin + i) % self.0.len()])
    }

    /// The address after `last` that nobody has; never a gateway.
    pub(super) fn pick(
        &self,
        last: Option<IpAddr>,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpConfig> {
        for (round, range) in self.in_turn(last).enumerate() {
            let after = last.filter(|last| round == 0 && range.contains(*last));
            let first = after.map_or(to_bits(range.start), |last| to_bits(last) + 1);
            for bits in first..=to_bits(range.end) {
                let addr = from_bits(bits, range.subnet.is_ipv4());
                if !self.is_gateway(addr) && !taken(addr) {
                    return Some(range.config(addr));
                }
            }
        }
        None
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}-{}", range.start, range.end)?;
        }
        Ok(())
    }
}

fn overlap(path: String, range: &Range, other: &Range) -> FieldError {
    let (a, b) = (range.subnet, other.subnet);
    FieldError::new(path, format!("a range of {a} overlaps with one of {b}"))
}

impl Range {
    /// Take the fields of a range out of an object. Nothing, if there is no subnet and none is
    /// `required`.
    pub(super) fn parse(from: &mut Fields, required: bool) -> Result<Option<Range>, FieldError> {
        let path = from.path_of("subnet");
        let subnet: Option<Cidr> = if required {
            Some(from.require("subnet")?)
        } else {
            from.take("subnet")?
        };
        let start: Option<IpAddr> = from.take("rangeStart")?;
        let end: Option<IpAddr> = from.take("rangeEnd")?;
        let gateway: Option<IpAddr> = from.take("gateway")?;
        let Some(subnet) = subnet else {
            if start.is_some() || end.is_some() || gateway.is_some() {
                return Err(FieldError::new(path, "is missing"));
            }
            return Ok(None);
        };
        check_subnet(path, subnet)?;
        let (first, last) = bounds(subnet);
        let range = Range {
            subnet,
            start: start.unwrap_or(first),
            end: end.unwrap_or(last),
            gateway: gateway.unwrap_or(first),
        };
        for (name, addr) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if !subnet.contains(addr) {
                return Err(FieldError::new(
                    from.path_of(name),
                    format!("{addr} is not in {subnet}"),
                ));
            }
        }
        if to_bits(range.start) > to_bits(range.end) {
            let text = format!("{} comes after rangeEnd {}", range.start, range.end);
            return Err(FieldError::new(from.path_of("rangeStart"), text));
        }
        Ok(Some(range))
    }

    fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.subnet.is_ipv4()
            && (to_bits(self.start)..=to_bits(self.end)).contains(&to_bits(addr))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    fn config(&self, addr: IpAddr) -> IpConfig {
        IpConfig {
            address: Cidr::new(addr, self.subnet.prefix).expect("of the same family"),
            gateway: Some(self.gateway),
            interface: None,
        }
    }
}

fn check_subnet(path: String, subnet: Cidr) -> Result<(), FieldError> {
    let width = if subnet.is_ipv4() { 32 } else { 128 };
    if subnet.prefix > width - 2 {
        let text = format!("{subnet} is too small to allocate from");
        return Err(FieldError::new(path, text));
    }
    let network = subnet.network();
    if network != subnet {
        let text = format!("{subnet} has host bits set; the network is {network}");
        return Err(FieldError::new(path, text));
    }
    Ok(())
}

/// The first and the last address of a subnet that a host can have.
fn bounds(subnet: Cidr) -> (IpAddr, IpAddr) {
    let first = from_bits(to_bits(subnet.addr) + 1, subnet.is_ipv4());
    let last = match subnet.last() {
        IpAddr::V4(broadcast) => from_bits(u128::from(broadcast.to_bits()) - 1, true),
        v6 => v6,
    };
    (first, last)
}
