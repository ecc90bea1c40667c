// SPDX-License-Identifier: Apache-2.0
//! The rules that keep encapsulated packets from being tracked: a table of the overlay's own.
//!
//! What is inside of them is tracked when it is routed to or from the pod. To track what is around it as
//! well costs each packet a second search on either node, and an entry for each flow of each pod, since
//! VXLAN takes its source port from the flow inside. It tells nothing: all packets go to the same
//! port, in both directions, so none is ever an answer to another.

use super::model::Settings;
use crate::nft::{
    ChainKind, CmpOp, Command, Expr, Family, Hook, NftError, Register, Socket, Transaction,
};

/// Before connection tracking (-200).
const PRIORITY: i32 = -300;

/// The names of the chains, one rule in each: the table is right when it has these.
pub(super) fn chains(port: u16) -> Vec<String> {
    vec![format!("to-{port}"), format!("from-{port}")]
}

/// The table's name.
fn name(settings: &Settings) -> String {
    format!("{}-overlay", settings.nft_table)
}

/// The chains whose rules are there.
pub(super) fn look(socket: &mut Socket, settings: &Settings) -> Result<Vec<String>, NftError> {
    let rules = socket.rules(Family::Inet, &name(settings))?;
    Ok(rules.into_iter().map(|rule| rule.chain).collect())
}

/// Make the table for a port, whatever it is like, or take it away.
pub(super) fn set(
    socket: &mut Socket,
    settings: &Settings,
    port: Option<u16>,
) -> Result<(), NftError> {
    let name = name(settings);
    match port {
        Some(port) => socket.apply(&table(&name, port)),
        None => socket.delete_table(Family::Inet, &name),
    }
}

fn table(name: &str, port: u16) -> Transaction {
    let mut t = Transaction::new(Family::Inet, name);
    // Made anew: a chain that is there may hang on another hook.
    t.commands
        .extend([Command::AddTable, Command::DeleteTable, Command::AddTable]);
    const COMMENT: &str = "VXLAN: the packet inside is tracked, not what is around it";
    for (hook, chain) in [Hook::Prerouting, Hook::Output]
        .into_iter()
        .zip(chains(port))
    {
        t.base_chain(&chain, ChainKind::Filter, hook, PRIORITY);
        let mut rule = to_port(port);
        if hook == Hook::Prerouting {
            // What a pod sends to such a port elsewhere is its own business, and tracked.
            rule.extend(Expr::to_local());
        }
        rule.push(Expr::Untracked);
        t.commented_rule(&chain, COMMENT, rule);
    }
    t
}

/// Match UDP packets to a port.
fn to_port(port: u16) -> Vec<Expr> {
    let equals = |data: Vec<u8>| Expr::Cmp {
        op: CmpOp::Eq,
        sreg: Register(0),
        data,
    };
    let udp = u8::try_from(libc::IPPROTO_UDP).expect("a small number");
    vec![
        Expr::l4proto(Register(0)),
        equals(vec![udp]),
        Expr::dport(Register(0)),
        equals(port.to_be_bytes().to_vec()),
    ]
}
