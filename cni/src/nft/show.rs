// SPDX-License-Identifier: Apache-2.0
//! Transactions in words, close to the syntax of nft(8), for tests and error messages.

use std::fmt;

use super::expr::{Expr, Verdict};
use super::model::{Command, Data, Element, Family, Interval, MapData, SetSpec, Transaction};

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Bridge => "bridge",
        })
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.commands
            .iter()
            .try_for_each(|c| writeln!(f, "{}", Shown(self, c)))
    }
}

/// A command with the table it is for.
pub(super) struct Shown<'a>(pub(super) &'a Transaction, pub(super) &'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{} {}", self.0.family, self.0.table);
        match self.1 {
            Command::AddTable => write!(f, "add table {place}"),
            Command::AddOwnedTable => write!(f, "create table {place} {{ flags owner }}"),
            Command::DeleteTable => write!(f, "delete table {place}"),
            Command::AddChain { name, base: None } => write!(f, "add chain {place} {name}"),
            Command::AddChain {
                name,
                base: Some(base),
            } => write!(
                f,
                "add chain {place} {name} {{ type {:?} hook {:?} priority {} }}",
                base.kind, base.hook, base.priority
            ),
            Command::Flush { chain: None } => write!(f, "flush table {place}"),
            Command::Flush { chain: Some(chain) } => write!(f, "flush chain {place} {chain}"),
            Command::AddRule {
                chain,
                exprs,
                comment,
            } => {
                write!(f, "add rule {place} {chain}")?;
                exprs.iter().try_for_each(|e| write!(f, " {e}"))?;
                comment.map_or(Ok(()), |text| write!(f, " comment {text:?}"))
            }
            Command::AddSet(spec) => write!(f, "add {spec} in {place}"),
            Command::AddDynamicMap { spec, size } => {
                write!(f, "add dynamic {spec} size {size} in {place}")
            }
            Command::AddElements { set, elements } => {
                write!(f, "add element {place} {set} {{")?;
                elements.iter().try_for_each(|e| write!(f, " {e}"))?;
                f.write_str(" }")
            }
            Command::AddIntervalSet(spec) => write!(f, "add interval {spec} in {place}"),
            Command::AddIntervals { set, intervals } => {
                write!(f, "add element {place} {set} {{")?;
                intervals.iter().try_for_each(|i| write!(f, " {i}"))?;
                f.write_str(" }")
            }
            Command::DeleteIntervals { set, intervals } => {
                write!(f, "delete element {place} {set} {{")?;
                intervals.iter().try_for_each(|i| write!(f, " {i}"))?;
                f.write_str(" }")
            }
            Command::DeleteElements { set, keys } => {
                write!(f, "delete element {place} {set} {{")?;
                keys.iter().try_for_each(|k| write!(f, " {}", Hex(k)))?;
                f.write_str(" }")
            }
        }
    }
}

impl fmt::Display for SetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.data.is_some() { "map" } else { "set" };
        write!(f, "{kind} {} {:?}", self.name, self.key)?;
        match &self.data {
            None => Ok(()),
            Some(MapData::Verdict) => f.write_str(" : verdict"),
            Some(MapData::Fields(fields)) => write!(f, " : {fields:?}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Hex(&self.key))?;
        match &self.data {
            None => Ok(()),
            Some(Data::Value(value)) => write!(f, ":{}", Hex(value)),
            Some(Data::Verdict(verdict)) => write!(f, ":{verdict}"),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", Hex(&self.first), Hex(&self.last))?;
        match &self.data {
            Some(Data::Value(value)) => write!(f, ":{}", Hex(value)),
            _ => Ok(()),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Meta { key, dreg } => write!(f, "r{}=meta({key:?})", dreg.0),
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                write!(f, "r{}={base:?}[{offset}+{len}]", dreg.0)
            }
            Expr::Ct {
                key,
                direction,
                dreg,
            } => write!(f, "r{}=ct({key:?} {direction:?})", dreg.0),
            Expr::FibDaddrType { dreg } => write!(f, "r{}=fib(daddr type)", dreg.0),
            Expr::FibSaddrType { dreg } => write!(f, "r{}=fib(saddr type)", dreg.0),
            Expr::Dynamic {
                op,
                map,
                key,
                data,
                timeout,
            } => {
                write!(f, "{op:?} r{}", key.0)?;
                if let Some(data) = data {
                    write!(f, ":r{}", data.0)?;
                }
                if let Some(timeout) = timeout {
                    write!(f, " timeout {timeout}s")?;
                }
                write!(f, "@{map}")
            }
            Expr::Mask { sreg, dreg, mask } => write!(f, "r{}=r{}&{}", dreg.0, sreg.0, Hex(mask)),
            Expr::Cmp { op, sreg, data } => write!(f, "{op:?}(r{} {})", sreg.0, Hex(data)),
            Expr::InSet { set, sreg } => write!(f, "r{}@{set}", sreg.0),
            Expr::Map { map, sreg, dreg } => write!(f, "r{}=map r{}@{map}", dreg.0, sreg.0),
            Expr::VerdictMap { map, sreg } => write!(f, "vmap r{}@{map}", sreg.0),
            Expr::Random { modulus, dreg } => write!(f, "r{}=random({modulus})", dreg.0),
            Expr::Nat { addr, port, .. } => write!(f, "dnat r{} r{}", addr.0, port.0),
            Expr::Masquerade => f.write_str("masquerade"),
            Expr::Untracked => f.write_str("notrack"),
            Expr::Trace => f.write_str("trace"),
            Expr::Reject(how) => write!(f, "reject({how:?})"),
            Expr::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}
