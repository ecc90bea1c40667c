// SPDX-License-Identifier: Apache-2.0
//! Pods leave the cluster with the node's address.
//!
//! Each pod address maps to a chain; there is one chain per list of networks that are not
//! masqueraded, named by a hash of the list.

use std::net::IpAddr;

use super::table::{octets, sets, suffix};
use crate::cidr::Cidr;
use crate::nft::{CmpOp, Command, Data, Element, Expr, Register, Verdict, match_prefix};
use crate::types::PluginError;

/// Masquerade what pods send from `addresses`, except to `inside`, multicast and the pods' own
/// subnets. Idempotent.
pub(crate) fn add(name: &str, addresses: &[Cidr], inside: &[Cidr]) -> Result<(), PluginError> {
    let (chains, elements) = commands(addresses, inside);
    sets(name).add(&chains, &elements)
}

/// The same, when the rules may have been taken away but not the table.
pub(crate) fn restore(name: &str, addresses: &[Cidr], inside: &[Cidr]) -> Result<(), PluginError> {
    let (chains, elements) = commands(addresses, inside);
    sets(name).restore(&chains, &elements)
}

fn commands(addresses: &[Cidr], inside: &[Cidr]) -> (Vec<Command>, Vec<Command>) {
    let mut not: Vec<Cidr> = inside.iter().map(Cidr::network).collect();
    not.extend(addresses.iter().map(Cidr::network));
    not.extend(["224.0.0.0/4", "ff00::/8"].map(|c| c.parse::<Cidr>().expect("a constant")));
    not.sort();
    not.dedup();
    let chain = chain_name(&not);
    let mut chains = vec![Command::AddChain {
        name: chain.clone(),
        base: None,
    }];
    // Rewritten as a whole, so that it does not matter whether it was there.
    chains.push(Command::Flush {
        chain: Some(chain.clone()),
    });
    chains.extend(rules(&chain, &not));
    let element = |address: &Cidr| Command::AddElements {
        set: format!("masquerade{}", suffix(address.is_ipv4())),
        elements: vec![Element {
            key: octets(address.addr),
            data: Some(Data::Verdict(Verdict::Goto(chain.clone()))),
        }],
    };
    let elements = addresses.iter().map(element).collect();
    (chains, elements)
}

/// Forget pods' addresses. Idempotent.
pub(crate) fn delete(name: &str, addresses: &[IpAddr]) -> Result<(), PluginError> {
    let elements: Vec<_> = addresses
        .iter()
        .map(|a| (format!("masquerade{}", suffix(a.is_ipv4())), octets(*a)))
        .collect();
    sets(name).delete(&elements)
}

/// Is an address masqueraded?
pub(crate) fn has(name: &str, address: IpAddr) -> Result<bool, PluginError> {
    let set = format!("masquerade{}", suffix(address.is_ipv4()));
    sets(name)
        .get(&set, &octets(address))
        .map(|found| found.is_some())
}

fn chain_name(not: &[Cidr]) -> String {
    let list: Vec<String> = not.iter().map(Cidr::to_string).collect();
    format!("masq-{:08x}", crate::hash::fnv32(list.join(" ").as_bytes()))
}

fn rules(chain: &str, not: &[Cidr]) -> Vec<Command> {
    let rule = |comment, exprs| Command::AddRule {
        chain: chain.to_owned(),
        exprs,
        comment: Some(comment),
    };
    let mut rules: Vec<Command> = not
        .iter()
        .map(|cidr| {
            let mut exprs = Expr::family(cidr.is_ipv4()).to_vec();
            exprs.push(Expr::daddr(cidr.is_ipv4(), Register(0)));
            exprs.extend(match_prefix(CmpOp::Eq, *cidr));
            exprs.push(Expr::Verdict(Verdict::Return));
            rule("to the cluster: a pod keeps its address", exprs)
        })
        .collect();
    let outward = "out of the cluster: the node's address replaces the pod's";
    rules.push(rule(outward, vec![Expr::Masquerade]));
    rules
}
