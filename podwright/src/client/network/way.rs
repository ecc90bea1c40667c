// SPDX-License-Identifier: Apache-2.0
//! Rules in words: their comments, or what is known of those without.

use std::collections::HashMap;

use cni::nft::{Ended, Family, RuleInfo, Socket, Verdict};

/// Rules by table, read once.
#[derive(Default)]
pub(super) struct Rules {
    tables: HashMap<(String, String), Vec<RuleInfo>>,
}

impl Rules {
    pub(super) fn of(&mut self, family: Family, table: &str) -> anyhow::Result<&[RuleInfo]> {
        let key = (family.to_string(), table.to_owned());
        if !self.tables.contains_key(&key) {
            let rules = Socket::open()?.rules(family, table)?;
            self.tables.insert(key.clone(), rules);
        }
        Ok(&self.tables[&key])
    }

    /// What a rule is for.
    pub(super) fn words(&mut self, family: Option<Family>, table: &str, handle: u64) -> String {
        let unknown = format!("rule {handle}");
        let Some(family) = family else { return unknown };
        let rules = self.of(family, table).unwrap_or_default();
        match rules.iter().find(|rule| rule.handle == handle) {
            Some(rule) => words(rule),
            None => unknown,
        }
    }
}

pub(super) fn words(rule: &RuleInfo) -> String {
    match &rule.comment {
        Some(comment) => comment.clone(),
        None => format!("rule {} ({})", rule.handle, rule.expressions.join(" ")),
    }
}

/// How something ended; empty when the next rule follows.
pub(super) fn ended(ended: &Ended) -> String {
    match ended {
        Ended::Continue => String::new(),
        Ended::Taken => "TAKEN: refused, or given to a queue".to_owned(),
        Ended::Verdict(Verdict::Accept) => "accept".to_owned(),
        Ended::Verdict(Verdict::Drop) => "DROP".to_owned(),
        Ended::Verdict(Verdict::Return) => "back".to_owned(),
        Ended::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => format!("to {chain}"),
    }
}
