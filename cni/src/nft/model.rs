// SPDX-License-Identifier: Apache-2.0
//! Tables, chains, sets, elements, and commands on them, as plain data.

use super::expr::{Expr, Verdict};

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 in one.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames on a bridge.
    Bridge,
}

impl Family {
    /// The kernel's number of it.
    pub(super) fn number(self) -> u8 {
        let number = match self {
            Family::Inet => libc::NFPROTO_INET,
            Family::Ip => libc::NFPROTO_IPV4,
            Family::Ip6 => libc::NFPROTO_IPV6,
            Family::Bridge => libc::NFPROTO_BRIDGE,
        };
        u8::try_from(number).expect("a small number")
    }

    pub(super) fn of_number(number: u8) -> Option<Family> {
        let all = [Family::Inet, Family::Ip, Family::Ip6];
        all.into_iter().find(|family| family.number() == number)
    }
}

/// Commands on one table, applied as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// In this order.
    pub commands: Vec<Command>,
}

impl Transaction {
    /// One without commands.
    pub fn new(family: Family, table: &str) -> Transaction {
        Transaction {
            family,
            table: table.to_owned(),
            commands: Vec::new(),
        }
    }

    /// Add a rule at the end of a chain.
    pub fn rule(&mut self, chain: &str, exprs: Vec<Expr>) {
        self.commands.push(Command::AddRule {
            chain: chain.to_owned(),
            exprs,
            comment: None,
        });
    }

    /// The same with a comment, which nft(8) and `podwright network` show.
    pub fn commented_rule(&mut self, chain: &str, comment: &'static str, exprs: Vec<Expr>) {
        self.commands.push(Command::AddRule {
            chain: chain.to_owned(),
            exprs,
            comment: Some(comment),
        });
    }

    /// Add a chain that is reached by jumps only.
    pub fn chain(&mut self, name: &str) {
        self.commands.push(Command::AddChain {
            name: name.to_owned(),
            base: None,
        });
    }

    /// Add a chain at a hook. Its policy is to accept.
    pub fn base_chain(&mut self, name: &str, kind: ChainKind, hook: Hook, priority: i32) {
        let base = Some(Base {
            kind,
            hook,
            priority,
        });
        self.commands.push(Command::AddChain {
            name: name.to_owned(),
            base,
        });
    }

    /// Add elements to a set or map. Nothing is added to the transaction when there are none.
    pub fn add(&mut self, set: &str, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.commands.push(Command::AddElements {
                set: set.to_owned(),
                elements,
            });
        }
    }

    /// Add intervals to a set or map. Nothing is added to the transaction when there are none.
    pub fn add_intervals(&mut self, set: &str, intervals: Vec<Interval>) {
        if !intervals.is_empty() {
            self.commands.push(Command::AddIntervals {
                set: set.to_owned(),
                intervals,
            });
        }
    }

    /// Delete intervals. Nothing is added to the transaction when there are none.
    pub fn delete_intervals(&mut self, set: &str, intervals: Vec<Interval>) {
        if !intervals.is_empty() {
            self.commands.push(Command::DeleteIntervals {
                set: set.to_owned(),
                intervals,
            });
        }
    }

    /// Delete elements by key. Nothing is added to the transaction when there are none.
    pub fn delete(&mut self, set: &str, keys: Vec<Vec<u8>>) {
        if !keys.is_empty() {
            self.commands.push(Command::DeleteElements {
                set: set.to_owned(),
                keys,
            });
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make the table; nothing happens when it is there.
    AddTable,
    /// Make a table that goes when the socket is closed, however its process ends (Linux 5.12);
    /// `EEXIST` or `EPERM` when it is there.
    AddOwnedTable,
    /// Delete the table and all in it; `ENOENT` when it is not there.
    DeleteTable,
    /// Make a chain; nothing happens when the same one is there.
    AddChain {
        /// Its name.
        name: String,
        /// Where it hooks in; `None` for a chain that is jumped to.
        base: Option<Base>,
    },
    /// Delete the rules of one chain, or of the whole table.
    Flush {
        /// Which chain; `None`: every chain of the table.
        chain: Option<String>,
    },
    /// Append a rule.
    AddRule {
        /// To which chain.
        chain: String,
        /// What it does.
        exprs: Vec<Expr>,
        /// What it is for, in at most 128 bytes.
        comment: Option<&'static str>,
    },
    /// Make a set or map; nothing happens when the same one is there.
    AddSet(SetSpec),
    /// Make a map that rules add elements to as packets pass ([`Expr::Dynamic`]), each with a
    /// timeout; nothing happens when the same one is there.
    AddDynamicMap {
        /// Name, key and data, which are no verdicts.
        spec: SetSpec,
        /// How many elements it can have.
        size: u32,
    },
    /// Add elements. One that is there with the same data stays; with other data: `EEXIST`.
    AddElements {
        /// To which set or map.
        set: String,
        /// Which ones.
        elements: Vec<Element>,
    },
    /// Make a set or map of intervals; nothing happens when the same one is there. A key of several
    /// fields needs Linux 5.6.
    AddIntervalSet(SetSpec),
    /// Add intervals, which must not overlap what is there.
    AddIntervals {
        /// To which set or map.
        set: String,
        /// Which ones.
        intervals: Vec<Interval>,
    },
    /// Delete intervals; `ENOENT` if one is not there.
    DeleteIntervals {
        /// Of which set or map.
        set: String,
        /// Which ones; their data does not matter.
        intervals: Vec<Interval>,
    },
    /// Delete elements; `ENOENT` if one is not there.
    DeleteElements {
        /// Of which set or map.
        set: String,
        /// Their keys.
        keys: Vec<Vec<u8>>,
    },
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// At which hook.
    pub hook: Hook,
    /// Order among the chains of a hook; lower runs first.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection and may translate its addresses.
    Nat,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// Type of a field in a key or in data. Integers are 4 bytes in host order (nft's `mark`), the
/// rest is in network order; in a concatenation each field is padded to 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Ipv4Addr,
    Ipv6Addr,
    InetProto,
    InetService,
    Mark,
    /// Name of a link, 16 bytes; the rest of a shorter one is zero.
    IfName,
    EtherAddr,
}

impl DataType {
    /// Bytes of the field itself.
    pub fn width(self) -> u32 {
        match self {
            DataType::Ipv4Addr | DataType::Mark => 4,
            DataType::Ipv6Addr | DataType::IfName => 16,
            DataType::EtherAddr => 6,
            DataType::InetProto => 1,
            DataType::InetService => 2,
        }
    }
}

/// What a map maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapData {
    /// A verdict.
    Verdict,
    /// Fields.
    Fields(Vec<DataType>),
}

/// A set, or with `data` a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: String,
    /// Fields of the key.
    pub key: Vec<DataType>,
    /// What a key maps to; `None` for a plain set.
    pub data: Option<MapData>,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Fields, each padded to 4 bytes when there are several.
    pub key: Vec<u8>,
    /// What it maps to, if the set is a map.
    pub data: Option<Data>,
}

/// An element of a set or map of intervals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// The lowest key: fields in network order (a mark only where both ends have the same).
    pub first: Vec<u8>,
    /// The highest key, itself included. Of several fields each has a range of its own.
    pub last: Vec<u8>,
    /// Does the key have several fields?
    pub concatenated: bool,
    /// A value that it maps to, if the set is a map.
    pub data: Option<Data>,
}

/// Data of a map's element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Fields, padded as in a key.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}
