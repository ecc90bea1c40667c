// SPDX-License-Identifier: Apache-2.0
//! Sets, maps, and what is put into them.

use netlink_bindings::nftables::{PushSetelemListAttrs, PushSetelemListElemAttrs};
use netlink_bindings::utils::{Pusher, finalize_nested_header, push_header, push_nested_header};

use super::expr::verdict;
use super::{Encoder, NFT_SET_INTERVAL, PLAIN_SET};
use crate::nft::model::{Data, DataType, Element, Interval, MapData, SetSpec};

const NFT_SET_MAP: u32 = 8;
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

/// The elements of one message.
type List<'b> = PushSetelemListElemAttrs<PushSetelemListAttrs<&'b mut Vec<u8>>>;

impl Encoder<'_> {
    pub(super) fn add_set(&mut self, spec: &SetSpec, kind: u32, size: Option<u32>) {
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

    /// As many messages as `items` need, of which each is written by `push`.
    pub(super) fn add_elements<T>(
        &mut self,
        set: &str,
        items: &[T],
        per_message: usize,
        push: impl for<'b> Fn(List<'b>, &T) -> List<'b>,
    ) {
        let (header, table) = (self.header.clone(), self.table);
        for some in items.chunks(per_message) {
            let mut request = self.request().set_create().op_newsetelem_do(&header);
            fill(request.encode(), [table, set], some, &push);
        }
    }

    /// The opposite of [`Encoder::add_elements`].
    pub(super) fn delete_elements<T>(
        &mut self,
        set: &str,
        items: &[T],
        per_message: usize,
        push: impl for<'b> Fn(List<'b>, &T) -> List<'b>,
    ) {
        let (header, table) = (self.header.clone(), self.table);
        for some in items.chunks(per_message) {
            let mut request = self.request().op_delsetelem_do(&header);
            fill(request.encode(), [table, set], some, &push);
        }
    }
}

fn fill<'b, T>(
    message: PushSetelemListAttrs<&'b mut Vec<u8>>,
    [table, set]: [&str; 2],
    items: &[T],
    push: impl Fn(List<'b>, &T) -> List<'b>,
) {
    let list = message
        .push_table_bytes(table.as_bytes())
        .push_set_bytes(set.as_bytes())
        .nested_elements();
    drop(items.iter().fold(list, push));
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

pub(super) fn push_element<'b>(list: List<'b>, element: &Element) -> List<'b> {
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

pub(super) fn push_key<'b>(list: List<'b>, key: &[u8]) -> List<'b> {
    list.nested_elem()
        .nested_key()
        .push_value(key)
        .end_nested()
        .end_nested()
}

/// A concatenation has both ends in one element. Else the kernel keeps two: where the interval
/// begins, and the first key after it, which the interval that ends with the last key has not.
pub(super) fn push_interval<'b>(list: List<'b>, interval: &Interval, with_data: bool) -> List<'b> {
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
