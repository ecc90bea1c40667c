// SPDX-License-Identifier: Apache-2.0
//! What a plugin gets on its standard input.

use serde_json::{Map, Value};

use crate::attachment::Attachment;
use crate::conf::{NetworkList, PluginConf};
use crate::types::AddResult;

/// What some calls say beside configuration and attachment.
#[derive(Clone, Copy)]
pub(super) enum Extra<'a> {
    None,
    /// GC: what is attached.
    Valid(&'a [(String, String)]),
    /// DEL: the namespace goes next.
    DropsNetns,
}

/// What a plugin gets on its standard input (specification, section 3, "Deriving execution
/// configuration").
pub(super) fn input(
    list: &NetworkList,
    plugin: &PluginConf,
    attachment: &Attachment,
    previous: Option<&AddResult>,
    extra: Extra<'_>,
) -> Value {
    let mut conf = plugin.fields.clone();
    conf.insert("cniVersion".to_owned(), list.cni_version.clone().into());
    conf.insert("name".to_owned(), list.name.clone().into());
    let wanted = attachment.capabilities.as_map();
    let granted: Map<String, Value> = wanted
        .into_iter()
        .filter(|(name, _)| plugin.capabilities.contains(name))
        .collect();
    if !granted.is_empty() {
        conf.insert("runtimeConfig".to_owned(), granted.into());
    }
    if let Some(previous) = previous {
        conf.insert("prevResult".to_owned(), previous.to_json(&list.cni_version));
    }
    if let Extra::Valid(valid) = extra {
        let listed: Vec<Value> = valid
            .iter()
            .map(|(id, ifname)| serde_json::json!({"containerID": id, "ifname": ifname}))
            .collect();
        conf.insert("cni.dev/valid-attachments".to_owned(), listed.into());
    }
    conf.into()
}
