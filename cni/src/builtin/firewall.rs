// SPDX-License-Identifier: Apache-2.0
//! `firewall`: keeps the bridges of networks apart, by nftables.
//!
//! The reference plugin also lets pods' traffic through the host's own filter (iptables' FORWARD
//! chain, firewalld's trusted zone). With nftables nobody can: what one table accepts, another still
//! drops. So `open` does nothing here, and a host that drops what it forwards must be told otherwise
//! by its administrator.

use serde_json::Value;

use super::input::{fields, only_nftables, previous, required_previous, table, version};
use super::table::{BRIDGES, OPEN_BRIDGES, plain, sets};
use super::{Owned, REPAIR, unknown_verb, wrong};
use crate::exec::Call;
use crate::fields::FieldError;
use crate::nft::Command;
use crate::types::{AddResult, PluginError, code};

/// Bytes of a link's name in a key.
const NAME_BYTES: usize = 16;

/// What the plugin's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    policy: Policy,
    table: String,
}

/// Who may connect to the pods of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Open,
    /// Pods of other bridges that have a policy may not.
    SameBridge,
    /// Pods of the same bridge may not either.
    Isolated,
}

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf)?;
        only_nftables(&mut f, "backend")?;
        let policy = match f.take::<String>("ingressPolicy")?.as_deref() {
            None | Some("" | "open") => Policy::Open,
            Some("same-bridge") => Policy::SameBridge,
            Some("isolated") => Policy::Isolated,
            Some(other) => {
                let text = format!("unknown ingress policy: {other:?}");
                return Err(FieldError::new(f.path_of("ingressPolicy"), text));
            }
        };
        let table = table(&mut f)?;
        f.finish()?;
        Ok(Conf { policy, table })
    }

    pub(super) fn owned(&self) -> Owned {
        Owned {
            bridge: None,
            table: (self.policy != Policy::Open).then(|| self.table.clone()),
        }
    }

    /// What the table has for the bridge of an attachment.
    fn elements(&self, result: &AddResult) -> Result<Vec<(&'static str, Vec<u8>)>, PluginError> {
        if self.policy == Policy::Open {
            return Ok(Vec::new());
        }
        let bridge = result.interfaces.first().filter(|i| i.sandbox.is_empty());
        let name = bridge.map(|i| i.name.as_str()).unwrap_or_default();
        if name.is_empty() || name.len() >= NAME_BYTES {
            let text = "the result before this plugin begins with no bridge: chain it with bridge";
            return Err(PluginError::new(code::INVALID_CONFIG, text));
        }
        let mut key = name.as_bytes().to_vec();
        key.resize(NAME_BYTES, 0);
        let mut elements = Vec::new();
        // What is open is told first, so that nothing is dropped in between.
        if self.policy == Policy::SameBridge {
            elements.push((OPEN_BRIDGES, key.repeat(2)));
        }
        elements.push((BRIDGES, key));
        Ok(elements)
    }

    fn commands(&self, result: &AddResult) -> Result<Vec<Command>, PluginError> {
        let command = |(set, key): (&str, Vec<u8>)| Command::AddElements {
            set: set.to_owned(),
            elements: vec![plain(key)],
        };
        Ok(self.elements(result)?.into_iter().map(command).collect())
    }
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let conf = Conf::parse("", call.conf.clone())?;
    match call.verb {
        "ADD" => {
            let result = required_previous(call)?;
            let commands = conf.commands(&result)?;
            if !commands.is_empty() {
                sets(&conf.table).add(&[], &commands)?;
            }
            Ok(Some(result.to_json(version(call))))
        }
        "CHECK" => check(&conf, &required_previous(call)?).map(|()| None),
        REPAIR => {
            let commands = conf.commands(&required_previous(call)?)?;
            if !commands.is_empty() {
                sets(&conf.table).restore(&[], &commands)?;
            }
            Ok(None)
        }
        // The bridge may have other pods, so its policy stays, as with the reference plugin.
        "DEL" => previous(call).map(|_| None),
        "GC" | "STATUS" => Ok(None),
        _ => Err(unknown_verb(call)),
    }
}

fn check(conf: &Conf, result: &AddResult) -> Result<(), PluginError> {
    for (set, key) in conf.elements(result)? {
        if sets(&conf.table).get(set, &key)?.is_none() {
            return Err(wrong(format!("the bridge is not in set {set}")));
        }
    }
    Ok(())
}
