// SPDX-License-Identifier: Apache-2.0
//! The operations on the network, as they run on a thread: plugin after plugin.

use std::net::IpAddr;
use std::time::Instant;

use serde_json::Value;

use super::input::{Extra, input};
use super::repair::Owned;
use super::{Error, Inner, PATIENCE_TO_UNDO, chain};
use crate::attachment::Attachment;
use crate::builtin;
use crate::conf::{self, NetworkList, PluginConf, has_verb};
use crate::exec::{Call, Dirs};
use crate::record::{RESULTS, Record, Records};
use crate::types::{AddResult, PluginError, code};

/// What an operation is about, for every plugin of it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) attachment: &'a Attachment,
    pub(super) result: Option<&'a AddResult>,
    pub(super) extra: Extra<'a>,
    /// When executables that have not ended are killed.
    pub(super) until: Instant,
}

impl Inner {
    pub(super) fn records(&self) -> Records {
        Records::new(&self.state_dir.join(RESULTS))
    }

    pub(super) fn list(&self) -> Result<NetworkList, Error> {
        conf::load(&self.conf_dir).map_err(|error| Error::Config(chain(&error)))
    }

    pub(super) fn job<'a>(
        &self,
        attachment: &'a Attachment,
        result: Option<&'a AddResult>,
        extra: Extra<'a>,
    ) -> Job<'a> {
        Job {
            attachment,
            result,
            extra,
            until: Instant::now() + self.patience,
        }
    }

    pub(super) fn status(&self) -> Result<(), Error> {
        let list = self.list()?;
        if has_verb(&list.cni_version, "STATUS").is_err() {
            return Ok(());
        }
        let nobody = Attachment::nobody();
        let job = self.job(&nobody, None, Extra::None);
        list.plugins
            .iter()
            .try_for_each(|p| self.call(&list, p, "STATUS", job).map(drop))
    }

    pub(super) fn add(&self, attachment: &Attachment) -> Result<AddResult, Error> {
        attachment.check().map_err(Error::Argument)?;
        let _claim = self.claims.take(attachment.key());
        let list = self.list()?;
        let mut owned = Owned::default();
        owned.extend(&list);
        self.note(owned);
        let records = self.records();
        // Before the first step, so that a crash in the middle leaves something to clean up by.
        let mut record = Record::new(attachment, &list);
        records.begin(&record)?;
        let until = Instant::now() + self.patience;
        let added = self.add_all(&list, &records, &mut record, until);
        if added.is_err() {
            let mut job = self.job(attachment, record.result.as_ref(), Extra::None);
            job.until = Instant::now() + PATIENCE_TO_UNDO.min(self.patience);
            self.gone.note(addresses(&record));
            match self.del_all(&list, job) {
                Ok(()) => {
                    records.remove(&record)?;
                    self.gone.wake();
                }
                Err(second) => tracing::warn!(
                    container = attachment.container_id,
                    error = %chain(&second),
                    "undoing a failed attachment; GC will try again"
                ),
            }
        }
        added
    }

    /// Every plugin in order. The result so far is added to the record after each, so that whatever
    /// interrupts this, DEL knows what there is to undo.
    fn add_all(
        &self,
        list: &NetworkList,
        records: &Records,
        record: &mut Record,
        until: Instant,
    ) -> Result<AddResult, Error> {
        for plugin in &list.plugins {
            let job = Job {
                attachment: &record.attachment,
                result: record.result.as_ref(),
                extra: Extra::None,
                until,
            };
            let said = self.call(list, plugin, "ADD", job)?;
            let Some(value) = said else { continue };
            let result: AddResult = serde_json::from_value(value).map_err(|e| {
                let text = format!("its result is not one: {e}");
                plugin_error(list, plugin, "ADD", PluginError::new(code::DECODING, text))
            })?;
            if record.result.as_ref() != Some(&result) {
                record.result = Some(result);
                self.forget_before(&addresses(record));
                records.add_result(record)?;
            }
        }
        Ok(record.result.clone().unwrap_or_default())
    }

    pub(super) fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        let record = self
            .records()
            .find(&attachment.container_id, &attachment.ifname)?;
        let Some(record) = record else {
            return Err(Error::Argument(format!(
                "container {} is not attached",
                attachment.container_id
            )));
        };
        let list = record.list()?;
        if list.disable_check || has_verb(&list.cni_version, "CHECK").is_err() {
            return Ok(());
        }
        let job = self.job(&record.attachment, record.result.as_ref(), Extra::None);
        list.plugins
            .iter()
            .try_for_each(|p| self.call(&list, p, "CHECK", job).map(drop))
    }

    pub(super) fn del(&self, attachment: &Attachment, extra: Extra<'_>) -> Result<(), Error> {
        attachment.check().map_err(Error::Argument)?;
        let _claim = self.claims.take(attachment.key());
        let records = self.records();
        if let Some(record) = records.find(&attachment.container_id, &attachment.ifname)? {
            return self.del_record(&records, &record, extra);
        }
        // Not known: ask the plugins all the same, they may have something left.
        match self.list() {
            Ok(list) => self.del_all(&list, self.job(attachment, None, extra)),
            Err(_) => Ok(()),
        }
    }

    fn del_record(
        &self,
        records: &Records,
        record: &Record,
        extra: Extra<'_>,
    ) -> Result<(), Error> {
        let list = record.list()?;
        let job = self.job(&record.attachment, record.result.as_ref(), extra);
        self.gone.note(addresses(record));
        self.del_all(&list, job)?;
        records.remove(record)?;
        self.gone.wake();
        Ok(())
    }

    /// Every plugin in reverse order; the first error is returned at the end.
    fn del_all(&self, list: &NetworkList, job: Job<'_>) -> Result<(), Error> {
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let done = self.call(list, plugin, "DEL", job);
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    pub(super) fn gc(&self, valid: &[(String, String)]) -> Result<(), Error> {
        let records = self.records();
        let mut outcome = Ok(());
        for record in records.all(valid)? {
            let key = record.attachment.key();
            if !valid.contains(&key) {
                let _claim = self.claims.take(key);
                outcome = outcome.and(self.del_record(&records, &record, Extra::None));
            }
        }
        let list = match conf::load(&self.conf_dir) {
            // Without a network there is nothing that could have leaked from it.
            Err(conf::ConfError::None(_)) => return outcome,
            loaded => loaded.map_err(|error| Error::Config(chain(&error)))?,
        };
        if list.disable_gc || has_verb(&list.cni_version, "GC").is_err() {
            return outcome;
        }
        let nobody = Attachment::nobody();
        let job = self.job(&nobody, None, Extra::Valid(valid));
        for plugin in &list.plugins {
            let done = self.call(&list, plugin, "GC", job);
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    pub(super) fn call(
        &self,
        list: &NetworkList,
        plugin: &PluginConf,
        verb: &'static str,
        job: Job<'_>,
    ) -> Result<Option<Value>, Error> {
        let attachment = job.attachment;
        let call = Call {
            verb,
            container_id: attachment.container_id.clone(),
            netns: attachment.netns.clone(),
            ifname: attachment.ifname.clone(),
            args: attachment.args(),
            bin_dirs: vec![self.bin_dir.clone()],
            dirs: Dirs {
                leases: self.state_dir.join("networks"),
                tuning: self.state_dir.join("tuning").join(&list.name),
                own: true,
            },
            until: job.until,
            drops_netns: matches!(job.extra, Extra::DropsNetns),
            conf: input(list, plugin, attachment, job.result, job.extra),
        };
        builtin::run(&plugin.kind, &call).map_err(|source| plugin_error(list, plugin, verb, source))
    }
}

/// The addresses that an attachment has, as far as it has got.
pub(super) fn addresses(record: &Record) -> Vec<IpAddr> {
    let ips = record.result.iter().flat_map(|result| &result.ips);
    ips.map(|ip| ip.address.addr).collect()
}

pub(super) fn plugin_error(
    list: &NetworkList,
    plugin: &PluginConf,
    verb: &'static str,
    source: PluginError,
) -> Error {
    Error::Plugin {
        network: list.name.clone(),
        plugin: plugin.kind.clone(),
        verb,
        source,
    }
}
