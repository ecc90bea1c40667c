// SPDX-License-Identifier: Apache-2.0
//! Expressions, of which rules are made.

use netlink_bindings::nftables::{PushDataAttrs, PushExprAttrs, PushExprListAttrs};
use netlink_bindings::utils::{Pusher, finalize_nested_header, push_header, push_nested_header};

use super::{LIST_ELEM, push_text};
use crate::nft::expr::{
    CmpOp, CtDirection, CtKey, DynamicOp, Expr, MetaKey, NatKind, PayloadBase, Register, Reject,
    Verdict,
};

const REG_VERDICT: u32 = 0;

pub(super) fn verdict<P: Pusher>(data: PushDataAttrs<P>, verdict: &Verdict) -> PushDataAttrs<P> {
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

pub(super) fn expression<P: Pusher>(list: &mut PushExprListAttrs<P>, expr: &Expr) {
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
        Expr::Untracked => {
            to.push_name(c"notrack");
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
