// SPDX-License-Identifier: Apache-2.0
//! nftables over netlink: a small typed model of tables, chains, sets and rules, and transactions
//! that the kernel applies whole or not at all.
//!
//! A [`Transaction`] is plain data. It can be printed (its `Display` is close to what nft(8)
//! prints), interpreted in a test, or given to a [`Socket`]. The
//! owner of a table knows what it put there, so nothing lists a large ruleset; [`Socket::rules`] is for
//! people, and for tables of few rules.

mod encode;
mod expr;
mod model;
mod monitor;
pub(crate) mod pool;
mod query;
mod read;
mod show;
mod trace;

use std::io;

use nix::sys::socket::SockProtocol;

pub use expr::{
    CmpOp, CtDirection, CtKey, DynamicOp, Expr, MetaKey, NatKind, PayloadBase, Register, Reject,
    Verdict, match_prefix,
};
pub use model::{
    Base, ChainKind, Command, Data, DataType, Element, Family, Hook, Interval, MapData, SetSpec,
    Transaction,
};

pub use monitor::Monitor;
pub use read::RuleInfo;
pub use trace::{Ended, Event, Flow, Step, Tracer};

use crate::netlink::{self, NetlinkError};

/// Why the kernel did not apply a transaction. Nothing of it was applied.
#[derive(Debug, thiserror::Error)]
#[error("nftables: {attempt}")]
pub struct NftError {
    /// The command that was refused, in words.
    attempt: String,
    #[source]
    source: NetlinkError,
}

impl NftError {
    /// The kernel's errno, if it refused: `ENOENT` means that something named is not there.
    pub fn errno(&self) -> Option<i32> {
        self.source.errno()
    }
}

/// A netlink socket for nftables, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    socket: netlink::Socket,
}

impl Socket {
    /// Open one, with buffers for a whole ruleset in one transaction.
    pub fn open() -> io::Result<Socket> {
        let socket = netlink::Socket::open(SockProtocol::NetlinkNetFilter)?;
        socket.enlarge_buffers();
        Ok(Socket { socket })
    }

    /// The address of this socket among netlink sockets: [`Monitor`] knows its changes by it.
    pub fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    /// Apply a transaction: all of it, or on error nothing. An empty one succeeds. Blocks for
    /// microseconds to some milliseconds, by size.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.commands.is_empty() {
            return Ok(());
        }
        let batch = encode::batch(transaction, |count| self.socket.take_seqs(count));
        match self
            .socket
            .exchange(&batch.bytes, batch.first_seq, batch.last_seq)
        {
            Ok(_) => Ok(()),
            Err(source) => Err(NftError {
                attempt: batch.attempt(transaction, &source),
                source,
            }),
        }
    }

    /// Delete a table with all that is in it. Succeeds when there is none.
    pub fn delete_table(&mut self, family: Family, table: &str) -> Result<(), NftError> {
        let mut transaction = Transaction::new(family, table);
        // Adding what is there changes nothing; so the deletion always finds it.
        transaction.commands.push(Command::AddTable);
        transaction.commands.push(Command::DeleteTable);
        self.apply(&transaction)
    }

    /// The keys of all elements of a set or map; none when the set or the table is not there. For
    /// clean-ups: it takes as long as there are elements.
    pub(crate) fn keys(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Vec<Vec<u8>>, NftError> {
        let seq = self.socket.take_seqs(1);
        let bytes = query::list_elements(family, table, set, seq);
        match self.socket.exchange(&bytes, seq, seq) {
            Ok(answers) => Ok(answers
                .iter()
                .flat_map(|(_, payload)| query::element_keys(payload))
                .collect()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(source) => Err(NftError {
                attempt: format!("listing {table} {set}"),
                source,
            }),
        }
    }

    /// The data of one element of a set or map (empty for a set); `None` when the element, the set
    /// or the table is not there. Asks for the one key, and lists nothing.
    pub fn element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, NftError> {
        self.look_up(family, table, set, key, query::element_data)
    }

    /// The verdict of one element of a verdict map; `None` as in [`Socket::element`].
    pub fn verdict(
        &mut self,
        family: Family,
        table: &str,
        map: &str,
        key: &[u8],
    ) -> Result<Option<Verdict>, NftError> {
        self.look_up(family, table, map, key, query::element_verdict)
    }

    fn look_up<T>(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, NftError> {
        let seq = self.socket.take_seqs(1);
        let bytes = query::get_element(family, table, set, key, seq);
        match self.socket.exchange(&bytes, seq, seq) {
            Ok(answers) => Ok(answers.iter().find_map(|(_, payload)| read(payload))),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(NftError {
                attempt: format!("looking up an element of {table} {set}"),
                source,
            }),
        }
    }
}
