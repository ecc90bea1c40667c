// SPDX-License-Identifier: Apache-2.0
//! Numbers of the chains that Services share, and the commands that make them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cni::cidr::Cidr;
use cni::nft::Transaction;

use crate::rules::{self, Numbers, Pick, SPLIT};
use crate::service::{Frontend, Target};

/// Made at the start, so that a Service which grows finds its chain: making one has the kernel look
/// at every chain again.
const USUAL_COUNTS: u32 = 16;

/// Which chains there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chains {
    /// Those that draw. They stay; there are few.
    picks: BTreeMap<Pick, u32>,
    /// Those that let sources pass.
    lists: BTreeMap<Arc<[Cidr]>, u32>,
    /// Who uses a list.
    users: BTreeMap<u32, BTreeSet<Frontend>>,
}

/// Numbers for one frontend, with the transaction that new chains go to.
pub(crate) struct Numbering<'a> {
    chains: &'a mut Chains,
    transaction: &'a mut Transaction,
}

impl Chains {
    /// Make the chains that most Services need.
    pub(crate) fn usual(&mut self, transaction: &mut Transaction) {
        for count in 1..=USUAL_COUNTS {
            for (ipv4, node_port) in [(true, false), (true, true), (false, false), (false, true)] {
                let pick = Pick {
                    ipv4,
                    node_port,
                    local: false,
                    count,
                    affinity: None,
                };
                self.using(transaction, |numbers| numbers.pick(pick));
            }
        }
    }

    /// Ask for numbers; chains that are not there yet are made by this transaction.
    pub(crate) fn using<T>(
        &mut self,
        transaction: &mut Transaction,
        ask: impl FnOnce(&mut Numbering<'_>) -> T,
    ) -> T {
        let chains = self;
        ask(&mut Numbering {
            chains,
            transaction,
        })
    }

    /// A frontend has another list now, or none: it no longer uses the one it had.
    pub(crate) fn leave_sources(
        &mut self,
        frontend: &Frontend,
        before: Option<&Target>,
        after: Option<&Target>,
    ) {
        let list = |target: Option<&Target>| {
            let sources = target?.sources.clone()?;
            self.lists.get(&sources).copied()
        };
        let (before, after) = (list(before), list(after));
        if before != after
            && let Some(users) = before.and_then(|number| self.users.get_mut(&number))
        {
            users.remove(frontend);
        }
    }

    /// A list that nobody uses gives its number to the next one.
    fn free_number(&mut self) -> u32 {
        let unused = |(list, number): (&Arc<[Cidr]>, &u32)| {
            let users = self.users.get(number);
            let free = users.is_none_or(BTreeSet::is_empty);
            free.then(|| (list.clone(), *number))
        };
        match self.lists.iter().find_map(unused) {
            Some((list, number)) => {
                self.lists.remove(&list);
                number
            }
            None => u32::try_from(self.lists.len()).expect("few lists") + 1,
        }
    }
}

impl Numbers for Numbering<'_> {
    fn pick(&mut self, pick: Pick) -> u32 {
        if let Some(number) = self.chains.picks.get(&pick) {
            return *number;
        }
        let first = SPLIT.len() + 1;
        let number = u32::try_from(first + self.chains.picks.len()).expect("few chains");
        self.chains.picks.insert(pick, number);
        rules::add_pick_chain(self.transaction, &pick, number);
        number
    }

    fn sources(&mut self, frontend: &Frontend, target: &Target) -> Option<u32> {
        let list = target.sources.clone()?;
        let known = self.chains.lists.get(&list).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.chains.free_number();
            rules::add_sources_chain(self.transaction, &list, number);
            self.chains.lists.insert(list, number);
            number
        });
        let users = self.chains.users.entry(number).or_default();
        users.insert(*frontend);
        Some(number)
    }
}
