// SPDX-License-Identifier: Apache-2.0
//! A transaction as one netlink batch (`linux/netfilter/nf_tables.h`).
//!
//! The attribute encoders come from the crate netlink-bindings. Where it writes a number in host
//! order that the kernel reads in network order (`numgen`'s register), it is turned here.

mod expr;
mod sets;

use netlink_bindings::nftables::{Chained, Nfgenmsg, Request};
use netlink_bindings::utils::push_header;

use self::expr::expression;
use self::sets::{push_element, push_interval, push_key};
use super::model::{ChainKind, Command, Family, Hook, Transaction};
use super::read;
use super::show::Shown;
use crate::netlink::NetlinkError;

/// The length of an attribute has 16 bits; 400 elements of the widest kind stay far below.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// Each may be two elements.
const INTERVALS_PER_MESSAGE: usize = ELEMENTS_PER_MESSAGE / 2;
const NLM_F_ACK: u16 = 4;
const NETLINK_HEADER: usize = 16;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const PLAIN_SET: u32 = 0;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
pub(super) const LIST_ELEM: u16 = 1;

pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) first_seq: u32,
    /// Sequence number of the message that is acknowledged: the last before the end of the batch.
    pub(super) last_seq: u32,
    /// For each message the index of its command.
    origin: Vec<usize>,
}

impl Batch {
    /// Which command failed, in words, cut to a length that fits a log line.
    pub(super) fn attempt(&self, transaction: &Transaction, error: &NetlinkError) -> String {
        const LONGEST: usize = 300;
        let command = match error {
            NetlinkError::Refused { index, .. } => index
                .checked_sub(1)
                .and_then(|i| self.origin.get(i))
                .and_then(|i| transaction.commands.get(*i)),
            NetlinkError::Socket(_) => None,
        };
        let mut words = match command {
            Some(command) => Shown(transaction, command).to_string(),
            None => format!(
                "commit to table {} {}",
                transaction.family, transaction.table
            ),
        };
        if let Some((end, _)) = words.char_indices().nth(LONGEST) {
            words.truncate(end);
            words.push('…');
        }
        words
    }
}

pub(super) fn batch(transaction: &Transaction, take_seqs: impl FnOnce(usize) -> u32) -> Batch {
    let origin: Vec<usize> = transaction
        .commands
        .iter()
        .enumerate()
        .flat_map(|(index, command)| std::iter::repeat_n(index, messages(command)))
        .collect();
    let first_seq = take_seqs(origin.len() + 2);
    let count = u32::try_from(origin.len()).expect("a batch is shorter than 2^32 messages");
    let mut encoder = Encoder::new(transaction, first_seq);
    encoder.begin();
    transaction
        .commands
        .iter()
        .for_each(|command| encoder.command(command));
    encoder.end();
    let mut bytes = encoder.chained.finalize().into_chained().into_buf();
    let last_seq = first_seq.wrapping_add(count);
    keep_one_ack(&mut bytes, last_seq);
    Batch {
        bytes,
        first_seq,
        last_seq,
        origin,
    }
}

fn messages(command: &Command) -> usize {
    match command {
        Command::AddElements { elements, .. } => elements.len().div_ceil(ELEMENTS_PER_MESSAGE),
        Command::DeleteElements { keys, .. } => keys.len().div_ceil(ELEMENTS_PER_MESSAGE),
        Command::AddIntervals { intervals, .. } | Command::DeleteIntervals { intervals, .. } => {
            intervals.len().div_ceil(INTERVALS_PER_MESSAGE)
        }
        _ => 1,
    }
}

/// Ask for one acknowledgement only: thousands would overflow the receive buffer. A message that is
/// refused is answered in any case.
fn keep_one_ack(bytes: &mut [u8], acked: u32) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + NETLINK_HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let seq = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let flags = if seq == acked {
            flags | NLM_F_ACK
        } else {
            flags & !NLM_F_ACK
        };
        header[6..8].copy_from_slice(&flags.to_ne_bytes());
        at += usize::try_from(length)
            .expect("usize holds 32 bits")
            .next_multiple_of(4);
    }
}

struct Encoder<'a> {
    chained: Chained<'static>,
    header: Nfgenmsg,
    table: &'a str,
    next_set_id: u32,
}

impl<'a> Encoder<'a> {
    fn new(transaction: &'a Transaction, first_seq: u32) -> Encoder<'a> {
        let header = header(transaction.family);
        Encoder {
            chained: Chained::new(first_seq),
            header,
            table: &transaction.table,
            next_set_id: 1,
        }
    }

    fn request(&mut self) -> Request<'_> {
        self.chained.request()
    }

    fn subsystem() -> Nfgenmsg {
        let mut header = Nfgenmsg::new();
        header._res_id_be = NFNL_SUBSYS_NFTABLES.to_be();
        header
    }

    fn begin(&mut self) {
        self.request().op_batch_begin_do(&Self::subsystem());
    }

    fn end(&mut self) {
        self.request().op_batch_end_do(&Self::subsystem());
    }

    fn command(&mut self, command: &Command) {
        let (header, table) = (self.header.clone(), self.table.as_bytes());
        match command {
            Command::AddTable => {
                self.request()
                    .set_create()
                    .op_newtable_do(&header)
                    .encode()
                    .push_name_bytes(table)
                    .push_flags(0);
            }
            Command::AddOwnedTable => {
                const NFT_TABLE_F_OWNER: u32 = 2;
                self.request()
                    .set_create()
                    .set_excl()
                    .op_newtable_do(&header)
                    .encode()
                    .push_name_bytes(table)
                    .push_flags(NFT_TABLE_F_OWNER);
            }
            Command::DeleteTable => {
                self.request()
                    .op_deltable_do(&header)
                    .encode()
                    .push_name_bytes(table);
            }
            Command::AddChain { name, base } => {
                let mut request = self.request().set_create().op_newchain_do(&header);
                let mut chain = request
                    .encode()
                    .push_table_bytes(table)
                    .push_name_bytes(name.as_bytes());
                if let Some(base) = base {
                    chain = chain
                        .nested_hook()
                        .push_num(hook(base.hook))
                        .push_priority(base.priority)
                        .end_nested()
                        .push_type_bytes(match base.kind {
                            ChainKind::Filter => b"filter",
                            ChainKind::Nat => b"nat",
                        });
                }
                drop(chain);
            }
            Command::Flush { chain } => {
                let mut request = self.request().op_delrule_do(&header);
                let rule = request.encode().push_table_bytes(table);
                if let Some(chain) = chain {
                    rule.push_chain_bytes(chain.as_bytes());
                }
            }
            Command::AddRule {
                chain,
                exprs,
                comment,
            } => {
                let mut request = self
                    .request()
                    .set_create()
                    .set_append()
                    .op_newrule_do(&header);
                let mut rule = request
                    .encode()
                    .push_table_bytes(table)
                    .push_chain_bytes(chain.as_bytes());
                if let Some(comment) = comment {
                    rule = rule.push_userdata(&note(comment));
                }
                let mut list = rule.nested_expressions();
                exprs.iter().for_each(|e| expression(&mut list, e));
            }
            Command::AddSet(spec) => self.add_set(spec, PLAIN_SET, None),
            Command::AddDynamicMap { spec, size } => {
                self.add_set(spec, NFT_SET_TIMEOUT | NFT_SET_EVAL, Some(*size));
            }
            Command::AddIntervalSet(spec) => self.add_set(spec, NFT_SET_INTERVAL, None),
            Command::AddIntervals { set, intervals } => {
                self.add_elements(set, intervals, INTERVALS_PER_MESSAGE, |list, interval| {
                    push_interval(list, interval, true)
                });
            }
            Command::DeleteIntervals { set, intervals } => {
                self.delete_elements(set, intervals, INTERVALS_PER_MESSAGE, |list, interval| {
                    push_interval(list, interval, false)
                });
            }
            Command::AddElements { set, elements } => {
                self.add_elements(set, elements, ELEMENTS_PER_MESSAGE, push_element);
            }
            Command::DeleteElements { set, keys } => {
                self.delete_elements(set, keys, ELEMENTS_PER_MESSAGE, |list, key| {
                    push_key(list, key)
                });
            }
        }
    }
}

fn hook(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// A comment as nft(8) writes it beside a rule.
fn note(comment: &str) -> Vec<u8> {
    const LONGEST: usize = 127;
    let mut text = comment.as_bytes()[..comment.len().min(LONGEST)].to_vec();
    text.push(0);
    let length = u8::try_from(text.len()).expect("at most 128");
    [&[read::COMMENT, length], &text[..]].concat()
}

pub(super) fn push_text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    let length = u16::try_from(text.len() + 1).expect("names are short");
    push_header(bytes, kind, length);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

pub(super) fn header(family: Family) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family.number();
    header
}
