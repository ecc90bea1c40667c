// SPDX-License-Identifier: Apache-2.0
//! Address ranges, and the subnets of a range that are still free.

use std::collections::HashSet;
use std::net::IpAddr;
use std::str::FromStr;

/// An address range in prefix notation. The host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cidr {
    network: u128,
    prefix: u8,
    v6: bool,
}

/// The text is not a range, or its prefix does not fit.
#[derive(Debug, thiserror::Error)]
pub enum CidrError {
    /// Not of the form `address/prefix`.
    #[error("{0:?} is not a range of the form address/prefix, such as 10.42.0.0/16")]
    Syntax(String),
    /// The prefix is longer than the address.
    #[error("prefix length {prefix} of {text:?} is longer than {max}")]
    Prefix {
        /// The range as written.
        text: String,
        /// The length as written.
        prefix: u8,
        /// The longest possible.
        max: u8,
    },
    /// More than one range of a family.
    #[error("{0:?} has two ranges of one family; give one of IPv4, one of IPv6, or one of each")]
    Family(String),
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        let (bits, v6) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), false),
            IpAddr::V6(v6) => (v6.to_bits(), true),
        };
        let max = if v6 { 128 } else { 32 };
        if prefix > max {
            return Err(CidrError::Prefix {
                text: text.to_owned(),
                prefix,
                max,
            });
        }
        Ok(Self {
            network: bits & !low_bits(max - prefix),
            prefix,
            v6,
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = if self.v6 {
            IpAddr::V6(self.network.into())
        } else {
            // A v4 network was made from 32 bits.
            IpAddr::V4(u32::try_from(self.network).unwrap_or(0).into())
        };
        write!(f, "{address}/{}", self.prefix)
    }
}

fn low_bits(count: u8) -> u128 {
    if count >= 128 {
        u128::MAX
    } else {
        (1 << count) - 1
    }
}

impl Cidr {
    fn width(self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// Is it of IPv6?
    pub(crate) fn is_v6(self) -> bool {
        self.v6
    }

    /// The prefix length of a node's range, where `wanted` is asked for. A cluster range that is
    /// smaller than that gives all of itself to its only node.
    pub(crate) fn node_prefix(self, wanted: u8) -> u8 {
        self.prefix.max(wanted.min(self.width()))
    }

    /// True if the two ranges share an address.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let host_bits = self.width() - self.prefix.min(other.prefix);
        self.v6 == other.v6
            && self.network | low_bits(host_bits) == other.network | low_bits(host_bits)
    }

    /// The first subnet of `prefix` length that overlaps none of `taken`; `None` when full.
    pub(crate) fn first_free(self, prefix: u8, taken: &[Self]) -> Option<Self> {
        let exact: HashSet<Self> = taken
            .iter()
            .copied()
            .filter(|c| c.prefix == prefix)
            .collect();
        let others: Vec<Self> = taken
            .iter()
            .copied()
            .filter(|c| c.prefix != prefix)
            .collect();
        let count = 1_u128.checked_shl(u32::from(prefix.checked_sub(self.prefix)?))?;
        let step = 1_u128
            .checked_shl(u32::from(self.width() - prefix))
            .unwrap_or(0);
        (0..count)
            .map(|index| Self {
                network: self.network + index * step,
                prefix,
                v6: self.v6,
            })
            .find(|subnet| !exact.contains(subnet) && !others.iter().any(|o| o.overlaps(*subnet)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a valid range")
    }

    #[test]
    fn the_first_free_subnet_is_given() {
        let cluster = cidr("10.42.0.0/16");
        let free = |taken: &[&str]| {
            let taken: Vec<_> = taken.iter().map(|t| cidr(t)).collect();
            cluster.first_free(24, &taken).map(|c| c.to_string())
        };
        assert_eq!(free(&[]).as_deref(), Some("10.42.0.0/24"));
        assert_eq!(
            free(&["10.42.0.0/24", "10.42.2.0/24"]).as_deref(),
            Some("10.42.1.0/24")
        );
        assert_eq!(free(&["10.42.0.0/23"]).as_deref(), Some("10.42.2.0/24"));
    }

    #[test]
    fn a_full_range_gives_nothing() {
        let taken = [cidr("10.0.0.0/25"), cidr("10.0.0.128/25")];
        assert_eq!(cidr("10.0.0.0/24").first_free(25, &taken), None);
    }

    #[test]
    fn ipv6_ranges_work_alike() {
        let free = cidr("fd00::/48").first_free(64, &[cidr("fd00::/64")]);
        assert_eq!(
            free.map(|c| c.to_string()).as_deref(),
            Some("fd00:0:0:1::/64")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!("10.0.0.0".parse::<Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
        assert!("x/8".parse::<Cidr>().is_err());
    }
}
