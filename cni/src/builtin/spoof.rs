// SPDX-License-Identifier: Apache-2.0
//! Pods on a bridge send from their own hardware address only (`macspoofchk`).
//!
//! A table of the bridge family with one chain: a link that is in `guarded` may send what is in
//! `senders` as a pair of link and address.

use super::table::Sets;
use super::veth::open_route;
use super::{internal, wrong};
use crate::hash;
use crate::nft::{
    ChainKind, Command, DataType, Element, Expr, Family, Hook, MetaKey, PayloadBase, Register,
    SetSpec, Transaction, Verdict,
};
use crate::types::PluginError;

const GUARDED: &str = "guarded";
const SENDERS: &str = "senders";
/// Before everything else, as the reference plugin.
const PRIORITY: i32 = -300;
/// Bytes of a link's name in a key.
const NAME_BYTES: usize = 16;

/// The hardware address of a pod that nobody chose one for.
pub(super) fn mac_of(container_id: &str, ifname: &str) -> [u8; 6] {
    let of = |text: String| hash::fnv32(text.as_bytes()).to_be_bytes();
    let high = of(format!("{container_id}/{ifname}"));
    let low = of(format!("mac of {container_id}/{ifname}"));
    // 0x02: locally administered, unicast.
    [0x02, high[0], high[1], high[2], high[3], low[0]]
}

fn name_key(link: &str) -> Vec<u8> {
    let mut key = link.as_bytes().to_vec();
    key.resize(NAME_BYTES, 0);
    key
}

fn pair_key(link: &str, mac: [u8; 6]) -> Vec<u8> {
    let mut key = name_key(link);
    key.extend(mac);
    key.extend([0; 2]);
    key
}

fn sets(table: &str) -> Sets<'_> {
    Sets {
        family: Family::Bridge,
        table,
        base,
    }
}

/// Guard a link. Idempotent.
pub(super) fn add(table: &str, link: &str, mac: [u8; 6]) -> Result<(), PluginError> {
    let element = |set: &str, key| Command::AddElements {
        set: set.to_owned(),
        elements: vec![Element { key, data: None }],
    };
    // Who may send comes first: nothing of the pod is dropped in between.
    let elements = [
        element(SENDERS, pair_key(link, mac)),
        element(GUARDED, name_key(link)),
    ];
    sets(table).add(&[], &elements)
}

/// Idempotent.
pub(super) fn delete(table: &str, link: &str, mac: Option<[u8; 6]>) -> Result<(), PluginError> {
    let mut elements = vec![(GUARDED.to_owned(), name_key(link))];
    elements.extend(mac.map(|mac| (SENDERS.to_owned(), pair_key(link, mac))));
    sets(table).delete(&elements)
}

pub(super) fn check(table: &str, link: &str, mac: [u8; 6]) -> Result<(), PluginError> {
    let has = |set, key: Vec<u8>| sets(table).get(set, &key).map(|found| found.is_some());
    if has(GUARDED, name_key(link))? && has(SENDERS, pair_key(link, mac))? {
        return Ok(());
    }
    Err(wrong(format!(
        "link {link} is not guarded against false senders"
    )))
}

/// GC: forget links that are gone.
pub(super) fn collect(table: &str) -> Result<(), PluginError> {
    let mut route = open_route()?;
    let mut gone = Vec::new();
    for set in [GUARDED, SENDERS] {
        for key in sets(table).keys(set)? {
            let name = key.get(..NAME_BYTES).unwrap_or_default();
            let name: Vec<u8> = name.iter().copied().take_while(|b| *b != 0).collect();
            let name = String::from_utf8_lossy(&name);
            if route.link(&name).map_err(internal)?.is_none() {
                gone.push((set.to_owned(), key));
            }
        }
    }
    sets(table).delete(&gone)
}

fn base(table: &str) -> Transaction {
    use DataType::{EtherAddr, IfName};
    let mut t = Transaction::new(Family::Bridge, table);
    t.commands.push(Command::AddTable);
    t.base_chain("senders", ChainKind::Filter, Hook::Prerouting, PRIORITY);
    t.commands.push(Command::Flush {
        chain: Some("senders".to_owned()),
    });
    for (name, key) in [(GUARDED, vec![IfName]), (SENDERS, vec![IfName, EtherAddr])] {
        t.commands.push(Command::AddSet(SetSpec {
            name: name.to_owned(),
            key,
            data: None,
        }));
    }
    let link = Expr::Meta {
        key: MetaKey::IifName,
        dreg: Register(0),
    };
    let in_set = |set: &str| Expr::InSet {
        set: set.to_owned(),
        sreg: Register(0),
    };
    let sender = Expr::Payload {
        base: PayloadBase::Link,
        offset: 6,
        len: 6,
        dreg: Register(4),
    };
    let comment = "a pod with its own hardware address";
    let own = vec![
        link.clone(),
        sender,
        in_set(SENDERS),
        Expr::Verdict(Verdict::Accept),
    ];
    t.commented_rule("senders", comment, own);
    let comment = "a pod with another (macspoofchk)";
    let other = vec![link, in_set(GUARDED), Expr::Verdict(Verdict::Drop)];
    t.commented_rule("senders", comment, other);
    t
}
