// SPDX-License-Identifier: Apache-2.0
//! Restoring what somebody took away: bridges, and the rules of the plugins' tables.

use std::collections::BTreeSet;

use serde_json::Value;

use super::input::Extra;
use super::operations::plugin_error;
use super::{Error, Inner};
use crate::builtin;
use crate::conf::NetworkList;
use crate::record::Record;

/// What podwright owns on the host for attachments together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) bridges: BTreeSet<String>,
    pub(super) tables: BTreeSet<String>,
}

impl Inner {
    /// See [`super::Network::repair`]. Returns how many attachments somebody else works on.
    pub(super) fn repair(&self) -> Result<usize, Error> {
        let records = self.records();
        let (mut busy, mut outcome) = (0, Ok(()));
        let mut rebuilt = BTreeSet::new();
        for record in records.readable()? {
            let key = record.attachment.key();
            let Some(_claim) = self.claims.try_take(key.clone()) else {
                busy += 1;
                continue;
            };
            // Read again: it may have gone before it was claimed.
            if let Some(record) = records.find(&key.0, &key.1)? {
                outcome = outcome.and(self.repair_one(&record, &mut rebuilt));
            }
        }
        outcome.map(|()| busy)
    }

    fn repair_one(&self, record: &Record, rebuilt: &mut BTreeSet<String>) -> Result<(), Error> {
        // Without a result ADD has not come to its end: there is nothing that must be there.
        let Some(result) = record.result.as_ref() else {
            return Ok(());
        };
        let list = record.list()?;
        for plugin in &list.plugins {
            let owned = builtin::owned(&plugin.kind, plugin.fields.clone().into());
            if let Some(table) = owned.table.filter(|table| !rebuilt.contains(table)) {
                builtin::table::rebuild(&table)
                    .map_err(|e| plugin_error(&list, plugin, builtin::REPAIR, e))?;
                rebuilt.insert(table);
            }
            let job = self.job(&record.attachment, Some(result), Extra::None);
            self.call(&list, plugin, builtin::REPAIR, job)?;
        }
        Ok(())
    }

    /// What the attachments that there are use.
    pub(super) fn owned(&self) -> Result<Owned, Error> {
        let mut owned = Owned::default();
        let mut seen: Vec<Value> = Vec::new();
        for record in self.records().readable()? {
            // Most have the same one.
            if !seen.contains(record.raw_list()) {
                seen.push(record.raw_list().clone());
                owned.extend(&record.list()?);
            }
        }
        Ok(owned)
    }
}

impl Owned {
    /// And what the plugins of a list own.
    pub(super) fn extend(&mut self, list: &NetworkList) {
        for plugin in &list.plugins {
            let of_plugin = builtin::owned(&plugin.kind, plugin.fields.clone().into());
            self.bridges.extend(of_plugin.bridge);
            self.tables.extend(of_plugin.table);
        }
    }
}
