// SPDX-License-Identifier: Apache-2.0
//! The rules of a table as the kernel has them: for people to look at, and for tables of few rules.

use super::{Family, NftError, Socket, query};
use crate::netlink::{Attributes, text};

const NFGEN_HEADER: usize = 4;

/// A rule in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its chain.
    pub chain: String,
    /// The kernel's number of it, which a trace names.
    pub handle: u64,
    /// What its author said of it.
    pub comment: Option<String>,
    /// The kernel's names of its expressions.
    pub expressions: Vec<String>,
}

impl Socket {
    /// The rules of a table, in the order of chains and rules. None when the table is not there.
    /// It takes as long as there are rules, which for most tables only people can wait for.
    pub fn rules(&mut self, family: Family, table: &str) -> Result<Vec<RuleInfo>, NftError> {
        let seq = self.socket.take_seqs(1);
        let bytes = query::list_rules(family, table, seq);
        match self.socket.exchange(&bytes, seq, seq) {
            Ok(answers) => Ok(answers.iter().filter_map(|(_, p)| rule(p)).collect()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(source) => Err(NftError {
                attempt: format!("listing the rules of table {family} {table}"),
                source,
            }),
        }
    }
}

fn rule(payload: &[u8]) -> Option<RuleInfo> {
    const CHAIN: u16 = 2;
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    const USERDATA: u16 = 7;
    const EXPRESSION_NAME: u16 = 1;
    let find = |bytes, wanted| Attributes(bytes).find(|a| a.0 == wanted).map(|a| a.1);
    let attributes = payload.get(NFGEN_HEADER..)?;
    let list = find(attributes, EXPRESSIONS).unwrap_or_default();
    Some(RuleInfo {
        chain: text(find(attributes, CHAIN)?),
        handle: u64::from_be_bytes(find(attributes, HANDLE)?.try_into().ok()?),
        comment: find(attributes, USERDATA).and_then(comment),
        expressions: Attributes(list)
            .filter_map(|(_, expression, _)| find(expression, EXPRESSION_NAME).map(text))
            .collect(),
    })
}

/// Notes on a rule are type, length and value of one, one and some bytes (libnftnl's `udata`).
pub(super) const COMMENT: u8 = 0;

fn comment(mut notes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = notes {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(text(value));
        }
        notes = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_among_other_notes() {
        assert_eq!(comment(b"\x07\x02xx\x00\x03hi\0").as_deref(), Some("hi"));
        assert_eq!(comment(b"\x07\x02xx"), None);
        assert_eq!(comment(b"\x00\x09hi\0"), None);
        assert_eq!(comment(b""), None);
    }
}
