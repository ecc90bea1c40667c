// SPDX-License-Identifier: Apache-2.0
//! Questions to the kernel, which are no transactions and need no batch around them, and what their
//! answers say.

use netlink_bindings::nftables::Chained;

use super::encode::{LIST_ELEM, NFNL_SUBSYS_NFTABLES, header, push_text};
use super::expr::Verdict;
use super::model::Family;
use super::trace::{self, Ended};
use crate::netlink::Attributes;

const NFGEN_HEADER: usize = 4;

/// A request for one element.
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
