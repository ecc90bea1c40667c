// SPDX-License-Identifier: Apache-2.0
//! A transaction as one netlink batch (`linux/netfilter/nf_tables.h`).
//!
//! The attribute encoders come from the crate netlink-bindings. Where it writes a number in host
//! order that the kernel reads in network order (`numgen`'s register), it is turned here.

use netlink_bindings::nftables::{
    Chained, Nfgenmsg, PushDataAttrs, PushExprAttrs, PushExprListAttrs, PushSetelemListElemAttrs,
    Request,
};
use netlink_bindings::utils::{Pusher, finalize_nested_header, push_header, push_nested_header};

use super::expr::{
    CmpOp, CtDirection, CtKey, DynamicOp, Expr, MetaKey, NatKind, PayloadBase, Register, Reject,
    Verdict,
};
use super::model::{
    ChainKind, Command, Data, DataType, Element, Family, Hook, Interval, MapData, SetSpec,
    Transaction,
};
use super::read;
use super::show::Shown;
use super::trace::{self, Ended};
use crate::netlink::{Attributes, NetlinkError};

/// The length of an attribute has 16 bits; 400 elements of the widest kind stay far below.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// Each may be two elements.
const INTERVALS_PER_MESSAGE: usize = ELEMENTS_PER_MESSAGE / 2;
const NLM_F_ACK: u16 = 4;
const NETLINK_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const PLAIN_SET: u32 = 0;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_MAP: u32 = 8;
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
const REG_VERDICT: u32 = 0;
const LIST_ELEM: u16 = 1;

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
                for some in intervals.chunks(INTERVALS_PER_MESSAGE) {
                    let mut request = self.request().set_create().op_newsetelem_do(&header);
                    let list = request
                        .encode()
                        .push_table_bytes(table)
                        .push_set_bytes(set.as_bytes());
                    let mut list = list.nested_elements();
                    for interval in some {
                        list = push_interval(list, interval, true);
                    }
                }
            }
            Command::DeleteIntervals { set, intervals } => {
                for some in intervals.chunks(INTERVALS_PER_MESSAGE) {
                    let mut request = self.request().op_delsetelem_do(&header);
                    let list = request
                        .encode()
                        .push_table_bytes(table)
                        .push_set_bytes(set.as_bytes());
                    let mut list = list.nested_elements();
                    for interval in some {
                        list = push_interval(list, interval, false);
                    }
                }
            }
            Command::AddElements { set, elements } => {
                for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
                    let mut request = self.request().set_create().op_newsetelem_do(&header);
                    let list = request
                        .encode()
                        .push_table_bytes(table)
                        .push_set_bytes(set.as_bytes());
                    let mut list = list.nested_elements();
                    for element in some {
                        list = push_element(list, element);
                    }
                }
            }
            Command::DeleteElements { set, keys } => {
                for some in keys.chunks(ELEMENTS_PER_MESSAGE) {
                    let mut request = self.request().op_delsetelem_do(&header);
                    let list = request
                        .encode()
                        .push_table_bytes(table)
                        .push_set_bytes(set.as_bytes());
                    let mut list = list.nested_elements();
                    for key in some {
                        list = list
                            .nested_elem()
                            .nested_key()
                            .push_value(key)
                            .end_nested()
                            .end_nested();
                    }
                }
            }
        }
    }

    fn add_set(&mut self, spec: &SetSpec, kind: u32, size: Option<u32>) {
        let id = self.next_set_id;
        self.next_set_id += 1;
        let (header, table) = (self.header.clone(), self.table.as_bytes());
        let mut flags = if spec.data.is_some() {
            NFT_SET_MAP
        } else {
            PLAIN_SET
        };
        flags |= kind;
        let concatenated = kind == NFT_SET_INTERVAL && spec.key.len() > 1;
        if concatenated {
            flags |= NFT_SET_CONCAT;
        }
        let mut request = self.request().set_create().op_newset_do(&header);
        let mut set = request
            .encode()
            .push_table_bytes(table)
            .push_name_bytes(spec.name.as_bytes())
            .push_flags(flags)
            .push_key_type(type_number(&spec.key))
            .push_key_len(total_len(&spec.key))
            .push_id(id);
        match &spec.data {
            None => {}
            Some(MapData::Verdict) => set = set.push_data_type(NFT_DATA_VERDICT).push_data_len(0),
            Some(MapData::Fields(fields)) => {
                set = set
                    .push_data_type(type_number(fields))
                    .push_data_len(total_len(fields));
            }
        }
        if let Some(size) = size {
            set = set.nested_desc().push_size(size).end_nested();
        }
        // The lengths of a key's fields are told only for concatenations with intervals.
        if concatenated {
            let mut fields = set.nested_desc().nested_concat();
            for field in &spec.key {
                fields = fields.nested_elem().push_len(field.width()).end_nested();
            }
            set = fields.end_nested().end_nested();
        }
        drop(set);
    }
}

/// nft(8)'s own numbers for data types, six bits each, so that it can print the sets. The kernel
/// keeps them without a meaning.
fn type_number(fields: &[DataType]) -> u32 {
    fields.iter().fold(0, |number, field| {
        number << 6
            | match field {
                DataType::Ipv4Addr => 7,
                DataType::Ipv6Addr => 8,
                DataType::InetProto => 12,
                DataType::InetService => 13,
                DataType::EtherAddr => 9,
                DataType::Mark => 19,
                DataType::IfName => 41,
            }
    })
}

fn total_len(fields: &[DataType]) -> u32 {
    match fields {
        [one] => one.width(),
        several => several.iter().map(|f| f.width().next_multiple_of(4)).sum(),
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

fn push_element<P: Pusher>(
    list: PushSetelemListElemAttrs<P>,
    element: &Element,
) -> PushSetelemListElemAttrs<P> {
    let mut pushed = list
        .nested_elem()
        .nested_key()
        .push_value(&element.key)
        .end_nested();
    match &element.data {
        None => {}
        Some(Data::Value(value)) => pushed = pushed.nested_data().push_value(value).end_nested(),
        Some(Data::Verdict(v)) => {
            let data = pushed.nested_data();
            pushed = verdict(data, v).end_nested();
        }
    }
    pushed.end_nested()
}

/// A concatenation has both ends in one element. Else the kernel keeps two: where the interval
/// begins, and the first key after it, which the interval that ends with the last key has not.
fn push_interval<P: Pusher>(
    list: PushSetelemListElemAttrs<P>,
    interval: &Interval,
    with_data: bool,
) -> PushSetelemListElemAttrs<P> {
    const END: u32 = 1;
    let mut begin = list
        .nested_elem()
        .nested_key()
        .push_value(&interval.first)
        .end_nested();
    if interval.concatenated {
        push_key_end(begin.as_vec_mut(), &interval.last);
    }
    if let Some(Data::Value(value)) = interval.data.as_ref().filter(|_| with_data) {
        begin = begin.nested_data().push_value(value).end_nested();
    }
    let list = begin.end_nested();
    let Some(after) = successor(&interval.last).filter(|_| !interval.concatenated) else {
        return list;
    };
    list.nested_elem()
        .push_flags(&END.to_be_bytes())
        .nested_key()
        .push_value(&after)
        .end_nested()
        .end_nested()
}

/// Written by hand, because the crate numbers this attribute in another order than
/// `enum nft_set_elem_attributes` does.
fn push_key_end(bytes: &mut Vec<u8>, key: &[u8]) {
    const KEY_END: u16 = 10;
    const VALUE: u16 = 1;
    let start = push_nested_header(bytes, KEY_END);
    let length = u16::try_from(key.len()).expect("keys are short");
    push_header(bytes, VALUE, length);
    bytes.extend(key);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    finalize_nested_header(bytes, start);
}

/// The next key in order; none after the last.
fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

fn verdict<P: Pusher>(data: PushDataAttrs<P>, verdict: &Verdict) -> PushDataAttrs<P> {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (-5, None),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Jump(chain) => (-3, Some(chain)),
    };
    let pushed = data.nested_verdict().push_code(i32::cast_unsigned(code));
    match chain {
        Some(chain) => pushed.push_chain_bytes(chain.as_bytes()).end_nested(),
        None => pushed.end_nested(),
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

fn expression<P: Pusher>(list: &mut PushExprListAttrs<P>, expr: &Expr) {
    let buffer = list.as_vec_mut();
    let mut element = |write: &dyn Fn(PushExprAttrs<&mut Vec<u8>>)| {
        let start = push_nested_header(buffer, LIST_ELEM);
        write(PushExprAttrs::new(&mut *buffer));
        finalize_nested_header(buffer, start);
    };
    if *expr == Expr::Trace {
        element(&load_one);
        element(&set_trace);
    } else {
        element(&|to| expression_body(to, expr));
    }
}

/// Of no use to other expressions of the rule.
const TRACE: Register = Register(15);

fn load_one(to: PushExprAttrs<&mut Vec<u8>>) {
    to.nested_data_immediate()
        .push_dreg(TRACE.number())
        .nested_data()
        .push_value(&[1]);
}

fn set_trace(to: PushExprAttrs<&mut Vec<u8>>) {
    const NFT_META_NFTRACE: u32 = 12;
    to.nested_data_meta()
        .push_key(NFT_META_NFTRACE)
        .push_sreg(TRACE.number());
}

fn expression_body(to: PushExprAttrs<&mut Vec<u8>>, expr: &Expr) {
    match expr {
        Expr::Meta { key, dreg } => {
            let key = match key {
                MetaKey::NfProto => 15,
                MetaKey::L4Proto => 16,
                MetaKey::InputLink => 4,
                MetaKey::Mark => 3,
                MetaKey::IifName => 6,
                MetaKey::OifName => 7,
            };
            to.nested_data_meta().push_dreg(dreg.number()).push_key(key);
        }
        Expr::Payload {
            base,
            offset,
            len,
            dreg,
        } => {
            let base = match base {
                PayloadBase::Link => 0,
                PayloadBase::Network => 1,
                PayloadBase::Transport => 2,
            };
            to.nested_data_payload()
                .push_dreg(dreg.number())
                .push_base(base)
                .push_offset(*offset)
                .push_len(*len);
        }
        Expr::Ct {
            key,
            direction,
            dreg,
        } => {
            let ct = to
                .nested_data_ct()
                .push_dreg(dreg.number())
                .push_key(ct_key(*key));
            if let Some(direction) = direction {
                ct.push_direction(match direction {
                    CtDirection::Original => 0,
                    CtDirection::Reply => 1,
                });
            }
        }
        Expr::FibSaddrType { dreg } => {
            const FLAG_SADDR: u32 = 1;
            address_type(to, *dreg, FLAG_SADDR);
        }
        Expr::FibDaddrType { dreg } => {
            const FLAG_DADDR: u32 = 2;
            address_type(to, *dreg, FLAG_DADDR);
        }
        Expr::Dynamic {
            op,
            map,
            key,
            data,
            timeout,
        } => dynamic(to, *op, map, *key, *data, *timeout),
        Expr::Mask { sreg, dreg, mask } => {
            let len = u32::try_from(mask.len()).expect("at most 16");
            to.nested_data_bitwise()
                .push_sreg(sreg.number())
                .push_dreg(dreg.number())
                .push_len(len)
                .nested_mask()
                .push_value(mask)
                .end_nested()
                .nested_xor()
                .push_value(&vec![0; mask.len()]);
        }
        Expr::Cmp { op, sreg, data } => {
            let op = match op {
                CmpOp::Eq => 0,
                CmpOp::Neq => 1,
            };
            to.nested_data_cmp()
                .push_sreg(sreg.number())
                .push_op(op)
                .nested_data()
                .push_value(data);
        }
        Expr::InSet { set, sreg } => lookup(to, set, sreg.number(), None),
        Expr::Map { map, sreg, dreg } => lookup(to, map, sreg.number(), Some(dreg.number())),
        Expr::VerdictMap { map, sreg } => lookup(to, map, sreg.number(), Some(REG_VERDICT)),
        Expr::Random { modulus, dreg } => {
            const RANDOM: u32 = 1;
            to.nested_data_numgen()
                .push_dreg(dreg.number().to_be())
                .push_modulus(*modulus)
                .push_type(RANDOM)
                .push_offset(0);
        }
        Expr::Nat {
            kind: NatKind::Dnat,
            ipv4,
            addr,
            port,
        } => {
            const DNAT: u32 = 1;
            let family = if *ipv4 {
                libc::NFPROTO_IPV4
            } else {
                libc::NFPROTO_IPV6
            };
            to.nested_data_nat()
                .push_type(DNAT)
                .push_family(u32::try_from(family).expect("a small number"))
                .push_reg_addr_min(addr.number())
                .push_reg_proto_min(port.number());
        }
        Expr::Masquerade => {
            to.push_name(c"masq");
        }
        Expr::Trace => unreachable!("it is two of the kernel's expressions"),
        Expr::Reject(how) => {
            let (kind, code) = match how {
                Reject::TcpReset => (1, 0),
                Reject::PortUnreachable => (2, 1), // icmpx, NFT_REJECT_ICMPX_PORT_UNREACH
            };
            to.nested_data_reject().push_type(kind).push_icmp_code(code);
        }
        Expr::Verdict(v) => {
            let data = to
                .nested_data_immediate()
                .push_dreg(REG_VERDICT)
                .nested_data();
            drop(verdict(data, v));
        }
    }
}

fn address_type(to: PushExprAttrs<&mut Vec<u8>>, dreg: Register, which: u32) {
    const RESULT_ADDRTYPE: u32 = 3;
    to.nested_data_fib()
        .push_dreg(dreg.number())
        .push_result(RESULT_ADDRTYPE)
        .push_flags(which);
}

/// Written by hand (`enum nft_dynset_attributes`): the crate doesn't know the expression.
fn dynamic(
    to: PushExprAttrs<&mut Vec<u8>>,
    op: DynamicOp,
    map: &str,
    key: Register,
    data: Option<Register>,
    timeout: Option<u32>,
) {
    const DATA: u16 = 2;
    const SET: u16 = 1;
    const OP: u16 = 3;
    const SREG_KEY: u16 = 4;
    const SREG_DATA: u16 = 5;
    const TIMEOUT: u16 = 6;
    let op: u32 = match op {
        DynamicOp::Update => 1,
        DynamicOp::Delete => 2,
    };
    let mut to = to.push_name(c"dynset");
    let bytes = to.as_vec_mut();
    let start = push_nested_header(bytes, DATA);
    push_text(bytes, SET, map);
    push_number(bytes, OP, op);
    push_number(bytes, SREG_KEY, key.number());
    if let Some(data) = data {
        push_number(bytes, SREG_DATA, data.number());
    }
    if let Some(seconds) = timeout {
        push_header(bytes, TIMEOUT, 8);
        bytes.extend((u64::from(seconds) * 1000).to_be_bytes());
    }
    finalize_nested_header(bytes, start);
}

fn push_text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    let length = u16::try_from(text.len() + 1).expect("names are short");
    push_header(bytes, kind, length);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn push_number(bytes: &mut Vec<u8>, kind: u16, number: u32) {
    push_header(bytes, kind, 4);
    bytes.extend(number.to_be_bytes());
}

/// Written by hand, because the crate numbers the attributes of a lookup in another order than
/// `enum nft_lookup_attributes` does.
fn lookup(to: PushExprAttrs<&mut Vec<u8>>, set: &str, sreg: u32, dreg: Option<u32>) {
    const DATA: u16 = 2;
    const SET: u16 = 1;
    const SREG: u16 = 2;
    const DREG: u16 = 3;
    let mut to = to.push_name(c"lookup");
    let bytes = to.as_vec_mut();
    let start = push_nested_header(bytes, DATA);
    push_text(bytes, SET, set);
    push_number(bytes, SREG, sreg);
    if let Some(dreg) = dreg {
        push_number(bytes, DREG, dreg);
    }
    finalize_nested_header(bytes, start);
}

fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Status => 2,
        CtKey::Protocol => 10,
        CtKey::ProtoSrc => 11,
        CtKey::ProtoDst => 12,
        CtKey::SrcIp => 19,
        CtKey::DstIp => 20,
        CtKey::SrcIp6 => 21,
        CtKey::DstIp6 => 22,
    }
}

fn header(family: Family) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family.number();
    header
}

/// A request for one element, which is no transaction and needs no batch around it.
pub(super) fn get_element(family: Family, table: &str, set: &str, key: &[u8], seq: u32) -> Vec<u8> {
    let mut chained = Chained::new(seq);
    {
        let mut request = chained.request().op_getsetelem_do(&header(family));
        let list = request
            .encode()
            .push_table_bytes(table.as_bytes())
            .push_set_bytes(set.as_bytes());
        list.nested_elements()
            .nested_elem()
            .nested_key()
            .push_value(key);
    }
    chained.finalize().into_chained().into_buf()
}

/// A request for all rules of a table.
pub(super) fn list_rules(family: Family, table: &str, seq: u32) -> Vec<u8> {
    let mut chained = Chained::new(seq);
    {
        let mut request = chained.request().op_getrule_dump(&header(family));
        request.encode().push_table_bytes(table.as_bytes());
    }
    chained.finalize().into_chained().into_buf()
}

/// A request for all elements of a set.
pub(super) fn list_elements(family: Family, table: &str, set: &str, seq: u32) -> Vec<u8> {
    const GET_ELEMENTS: u16 = 13;
    const TABLE: u16 = 1;
    const SET: u16 = 2;
    const REQUEST_AND_DUMP: u16 = 0x301;
    let mut bytes = vec![0; 4];
    bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | GET_ELEMENTS).to_ne_bytes());
    bytes.extend(REQUEST_AND_DUMP.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family.number(), 0, 0, 0]);
    push_text(&mut bytes, TABLE, table);
    push_text(&mut bytes, SET, set);
    let length = u32::try_from(bytes.len()).expect("a short message");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// The keys in an answer to [`list_elements`].
pub(super) fn element_keys(payload: &[u8]) -> Vec<Vec<u8>> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    let inner = |bytes, wanted| Attributes(bytes).find(|a| a.0 == wanted).map(|a| a.1);
    let attributes = payload.get(NFGEN_HEADER..).unwrap_or_default();
    let elements = inner(attributes, ELEMENTS).unwrap_or_default();
    Attributes(elements)
        .filter(|a| a.0 == LIST_ELEM)
        .filter_map(|a| inner(inner(a.1, KEY)?, VALUE).map(<[u8]>::to_vec))
        .collect()
}

/// The verdict in the answer to [`get_element`].
pub(super) fn element_verdict(payload: &[u8]) -> Option<Verdict> {
    const VERDICT: u16 = 2;
    let nested = element_part(payload)?.find(|a| a.0 == VERDICT)?.1;
    match trace::verdict(nested)? {
        Ended::Verdict(verdict) => Some(verdict),
        Ended::Continue | Ended::Taken => None,
    }
}

/// The attributes of an element's data in the answer to [`get_element`].
fn element_part(payload: &[u8]) -> Option<Attributes<'_>> {
    const ELEMENTS: u16 = 3;
    const DATA: u16 = 2;
    let inner = |bytes, wanted| Attributes(bytes).find(|a| a.0 == wanted).map(|a| a.1);
    let elements = inner(payload.get(NFGEN_HEADER..)?, ELEMENTS)?;
    let element = inner(elements, LIST_ELEM)?;
    Some(Attributes(inner(element, DATA).unwrap_or_default()))
}

/// The data in the answer to [`get_element`].
pub(super) fn element_data(payload: &[u8]) -> Option<Vec<u8>> {
    const VALUE: u16 = 1;
    let value = element_part(payload)?.find(|a| a.0 == VALUE);
    Some(value.map(|a| a.1.to_vec()).unwrap_or_default())
}
