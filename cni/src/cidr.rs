// SPDX-License-Identifier: Apache-2.0
//! An address with a prefix length, as CNI and Kubernetes write it: `10.42.0.5/24`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address and the length of its network prefix. The host bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The address, host bits included.
    pub addr: IpAddr,
    /// Number of leading bits that name the network: at most 32 or 128.
    pub prefix: u8,
}

/// Why a text is not an address with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length, such as 10.42.0.0/24")]
pub struct ParseCidrError(pub String);

impl Cidr {
    /// Make one; `None` when the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Cidr> {
        (prefix <= width(addr)).then_some(Cidr { addr, prefix })
    }

    /// The address alone, as /32 or /128.
    pub fn host(addr: IpAddr) -> Cidr {
        Cidr {
            addr,
            prefix: width(addr),
        }
    }

    /// Is this an IPv4 one?
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// The same prefix with all host bits zero.
    pub fn network(&self) -> Cidr {
        let bits = to_bits(self.addr) & self.mask();
        Cidr {
            addr: from_bits(bits, self.is_ipv4()),
            prefix: self.prefix,
        }
    }

    /// The last address of the network (IPv4: the broadcast address).
    pub fn last(&self) -> IpAddr {
        let all = if self.is_ipv4() {
            u128::from(u32::MAX)
        } else {
            u128::MAX
        };
        from_bits(
            (to_bits(self.addr) & self.mask()) | (all & !self.mask()),
            self.is_ipv4(),
        )
    }

    /// Does the network contain this address? Never for the other family.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.is_ipv4()
            && to_bits(addr) & self.mask() == to_bits(self.addr) & self.mask()
    }

    fn mask(&self) -> u128 {
        let width = width(self.addr);
        let all = if width == 32 {
            u128::from(u32::MAX)
        } else {
            u128::MAX
        };
        match width - self.prefix {
            128 => 0,
            shift => (all >> shift) << shift,
        }
    }
}

/// A list of networks separated by commas; their host bits are dropped.
pub fn list(text: &str) -> Result<Vec<Cidr>, ParseCidrError> {
    let parts = text.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(|part| part.parse::<Cidr>().map(|cidr| cidr.network()))
        .collect()
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// An address as a number; IPv4 in the low 32 bits.
pub fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with this number; for IPv4 only the low 32 bits count.
pub fn from_bits(bits: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        let low = u32::try_from(bits & u128::from(u32::MAX)).expect("masked to 32 bits");
        Ipv4Addr::from_bits(low).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Cidr, ParseCidrError> {
        let wrong = || ParseCidrError(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let addr = addr.parse().map_err(|_| wrong())?;
        Cidr::new(addr, prefix.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect(text)
    }

    #[test]
    fn network_and_last_frame_the_prefix() {
        for (text, network, last) in [
            ("10.42.3.7/24", "10.42.3.0/24", "10.42.3.255"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255"),
            ("10.0.0.1/32", "10.0.0.1/32", "10.0.0.1"),
            ("fd00::5/64", "fd00::/64", "fd00::ffff:ffff:ffff:ffff"),
            ("::/0", "::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(cidr(text).network().to_string(), network);
            assert_eq!(cidr(text).last().to_string(), last);
        }
    }

    #[test]
    fn contains_never_mixes_families() {
        assert!(cidr("10.42.0.0/16").contains("10.42.9.1".parse().expect("an address")));
        assert!(!cidr("10.42.0.0/16").contains("10.43.0.0".parse().expect("an address")));
        assert!(!cidr("0.0.0.0/0").contains("::".parse().expect("an address")));
    }

    #[test]
    fn what_is_not_a_cidr_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "x/8",
            "fd00::/129",
            "1.2.3.4/",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
