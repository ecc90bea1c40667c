// SPDX-License-Identifier: Apache-2.0
//! What a link was like before it was changed: a file `<dir>/<container>_<interface>.json` for each,
//! in the reference plugin's form.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::wrong;
use super::conf::Conf;
use crate::exec::Call;
use crate::link::{Change, Link, parse_mac};
use crate::types::PluginError;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Before {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The directory of these files.
#[derive(Debug)]
pub(super) struct Backups {
    dir: PathBuf,
    /// Of this network alone.
    own: bool,
}

impl Backups {
    pub(super) fn of(conf: &Conf, call: &Call) -> Backups {
        Backups {
            dir: conf
                .data_dir
                .clone()
                .unwrap_or_else(|| call.dirs.tuning.clone()),
            own: conf.data_dir.is_none() && call.dirs.own,
        }
    }

    fn path(&self, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{id}_{ifname}.json"))
    }

    fn path_of(&self, call: &Call) -> PathBuf {
        self.path(&call.container_id, &call.ifname)
    }

    /// Remember of a link what `change` will change.
    pub(super) fn write(
        &self,
        call: &Call,
        change: &Change,
        link: &Link,
    ) -> Result<(), PluginError> {
        let before = Before {
            mac: change.mac.map(|_| link.mac.clone()).unwrap_or_default(),
            promisc: change.promisc.map(|_| link.promisc),
            mtu: change.mtu.map(|_| link.mtu).unwrap_or_default(),
            allmulti: change.allmulti.map(|_| link.allmulti),
            queue: change.queue.map(|_| link.queue),
        };
        let path = self.path_of(call);
        let text = serde_json::to_vec(&before).expect("plain data always encodes");
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(&path, text))
            .map_err(|e| wrong(format!("writing {}: {e}", path.display())))
    }

    /// How to make the link what it was; nothing, when nobody knows.
    pub(super) fn read(&self, call: &Call) -> Option<Change> {
        let text = fs::read(self.path_of(call)).ok()?;
        let before: Before = serde_json::from_slice(&text).ok()?;
        Some(Change {
            mac: parse_mac(&before.mac),
            mtu: (before.mtu != 0).then_some(before.mtu),
            promisc: before.promisc,
            allmulti: before.allmulti,
            queue: before.queue,
        })
    }

    pub(super) fn remove(&self, call: &Call) -> Result<(), PluginError> {
        let path = self.path_of(call);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(wrong(format!("removing {}: {error}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Forget links of attachments that are gone. A directory that others may use is left alone.
    pub(super) fn collect(
        &self,
        call: &Call,
        valid: &[(String, String)],
    ) -> Result<(), PluginError> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Ok(());
        };
        let kept: Vec<PathBuf> = valid.iter().map(|(id, n)| self.path(id, n)).collect();
        let found = entries.flatten().map(|entry| entry.path());
        for path in found.filter(|path| self.own && !kept.contains(path)) {
            if let Err(error) = fs::remove_file(&path) {
                let text = format!("{}: removing {}: {error}", call.verb, path.display());
                return Err(wrong(text));
            }
        }
        Ok(())
    }
}
