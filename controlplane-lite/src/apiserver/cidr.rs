// SPDX-License-Identifier: Apache-2.0
//! An address range.

use std::{fmt, net::IpAddr};

/// A range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: u128,
    prefix: u32,
    bits: u32,
}

impl Cidr {
    /// Parses `10.43.0.0/16` or `fd00::/108`. Bits of the host part are ignored.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u32 = prefix.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits || prefix == 0 {
            return None;
        }
        let mut cidr = Self {
            base: 0,
            prefix,
            bits,
        };
        cidr.base = to_number(address) & !(cidr.size() - 1);
        Some(cidr)
    }

    /// Number of addresses.
    fn size(self) -> u128 {
        1 << (self.bits - self.prefix)
    }

    /// Addresses that may be given away: not the first, and in IPv4 not the last.
    pub(crate) fn usable(self) -> u128 {
        let last = u128::from(self.bits == 32);
        self.size().saturating_sub(1 + last)
    }

    /// The n-th usable address, from 0.
    pub(crate) fn nth(self, n: u128) -> IpAddr {
        self.address(self.base + 1 + n)
    }

    fn address(self, number: u128) -> IpAddr {
        if self.bits == 32 {
            IpAddr::from(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes())
        } else {
            IpAddr::from(number.to_be_bytes())
        }
    }

    /// Whether an address may be given away.
    pub(crate) fn has_usable(self, address: IpAddr) -> bool {
        if address.is_ipv4() != (self.bits == 32) {
            return false;
        }
        let offset = to_number(address).checked_sub(self.base);
        offset.is_some_and(|o| (1..=self.usable()).contains(&o))
    }

    /// `IPv4` or `IPv6`.
    pub(crate) fn family(self) -> &'static str {
        if self.bits == 32 { "IPv4" } else { "IPv6" }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(self.base), self.prefix)
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from_be_bytes(v4.octets())),
        IpAddr::V6(v6) => u128::from_be_bytes(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_what_they_may_give_away() {
        let range = Cidr::parse("10.43.0.0/29").expect("a range");
        assert_eq!(range.usable(), 6);
        assert_eq!(range.to_string(), "10.43.0.0/29");
        assert_eq!(range.nth(0).to_string(), "10.43.0.1");
        assert!(range.has_usable("10.43.0.6".parse().expect("address")));
        for bad in ["10.43.0.0", "10.43.0.7", "10.44.0.1", "::1"] {
            assert!(!range.has_usable(bad.parse().expect("address")), "{bad}");
        }
        assert_eq!(
            Cidr::parse("fd00::/108").expect("range").nth(0).to_string(),
            "fd00::1"
        );
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/0"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
