// SPDX-License-Identifier: Apache-2.0
//! What plugins read of their input, besides fields of their own.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::exec::Call;
use crate::fields::{FieldError, Fields};
use crate::link::parse_mac;
use crate::types::{AddResult, PluginError, code};

/// Fields that every plugin's input may have, besides its own.
const COMMON: [&str; 10] = [
    "args",
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "cni.dev/attachments",
    "cni.dev/valid-attachments",
];

/// Where a plugin's own extension stands in its configuration: an object of this name.
const EXTENSION: &str = "podwright";
/// The nftables table of a plugin that was not told one.
pub(super) const DEFAULT_TABLE: &str = "podwright-cni";

/// Open a plugin's input, without the fields that all share.
pub(super) fn fields(path: &str, conf: Value) -> Result<Fields, FieldError> {
    let mut fields = Fields::new(path, conf)?;
    fields.ignore(&COMMON);
    Ok(fields)
}

/// Take the extension out of a plugin's fields, with the table that it may name.
pub(super) fn extension(fields: &mut Fields) -> Result<(String, Option<Fields>), FieldError> {
    let Some(mut own) = fields.object(EXTENSION)? else {
        return Ok((DEFAULT_TABLE.to_owned(), None));
    };
    let table = own
        .take("table")?
        .unwrap_or_else(|| DEFAULT_TABLE.to_owned());
    check_table(own.path_of("table"), &table)?;
    Ok((table, Some(own)))
}

/// The table's name alone: for plugins whose extension has nothing else.
pub(super) fn table(fields: &mut Fields) -> Result<String, FieldError> {
    let (table, own) = extension(fields)?;
    own.map_or(Ok(()), Fields::finish)?;
    Ok(table)
}

/// Rules are nftables here; what asks for another kind of firewall is refused by name. Nothing and
/// an empty name leave the choice to the plugin.
pub(super) fn only_nftables(fields: &mut Fields, name: &str) -> Result<(), FieldError> {
    match fields.take::<String>(name)?.as_deref() {
        None | Some("" | "nftables") => Ok(()),
        Some(other) => Err(FieldError::unsupported(
            fields.path_of(name),
            format!("{other:?} is not supported, only nftables is"),
        )),
    }
}

/// A table name is part of nothing but netlink messages, but must fit nft's own syntax.
fn check_table(path: String, name: &str) -> Result<(), FieldError> {
    const LONGEST: usize = 64;
    if crate::conf::is_name(name) && name.len() <= LONGEST {
        return Ok(());
    }
    Err(FieldError::new(
        path,
        format!("{name:?} is not a name for an nftables table"),
    ))
}

/// What the plugins before this one have returned.
pub(super) fn previous(call: &Call) -> Result<Option<AddResult>, PluginError> {
    match call.conf.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| PluginError::new(code::DECODING, format!("field prevResult: {e}"))),
    }
}

pub(super) fn required_previous(call: &Call) -> Result<AddResult, PluginError> {
    previous(call)?
        .ok_or_else(|| PluginError::new(code::INVALID_CONFIG, "field prevResult: is missing"))
}

pub(super) fn network_name(call: &Call) -> Result<&str, PluginError> {
    let name = text(call, "name").unwrap_or_default();
    if crate::conf::is_name(name) {
        return Ok(name);
    }
    Err(PluginError::new(
        code::INVALID_CONFIG,
        format!("field name: {name:?} is not a network name"),
    ))
}

/// The version of the specification that the caller wants its answer in.
pub(super) fn version(call: &Call) -> &str {
    text(call, "cniVersion").unwrap_or("0.3.1")
}

fn text<'a>(call: &'a Call, name: &str) -> Option<&'a str> {
    call.conf.get(name).and_then(Value::as_str)
}

/// What the runtime asks of a capability.
pub(super) fn wish<T: DeserializeOwned>(call: &Call, name: &str) -> Result<Option<T>, PluginError> {
    decode(call, &["runtimeConfig", name])
}

/// What a user asks by `args.cni` (CNI's conventions for passing arguments).
pub(super) fn argument<T: DeserializeOwned>(
    call: &Call,
    name: &str,
) -> Result<Option<T>, PluginError> {
    decode(call, &["args", "cni", name])
}

fn decode<T: DeserializeOwned>(call: &Call, path: &[&str]) -> Result<Option<T>, PluginError> {
    let mut value = &call.conf;
    for name in path {
        match value.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(inner) => value = inner,
        }
    }
    T::deserialize(value)
        .map(Some)
        .map_err(|e| FieldError::new(path.join("."), e.to_string()).into())
}

/// A value out of `CNI_ARGS`. What no plugin knows is an error, unless `IgnoreUnknown` says otherwise.
pub(super) fn environment<'a>(call: &'a Call, name: &str) -> Result<Option<&'a str>, PluginError> {
    let invalid = |problem: String| {
        let text = format!("environment variable CNI_ARGS: {problem}");
        PluginError::new(code::INVALID_ENVIRONMENT, text)
    };
    let mut found = None;
    let (mut unknown, mut ignored) = (Vec::new(), false);
    for pair in call.args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(format!("{pair:?} has no =")));
        };
        match key {
            "IgnoreUnknown" => {
                ignored = matches!(value, "1" | "true" | "True" | "TRUE" | "t" | "T")
            }
            "IP" | "GATEWAY" | "MAC" => {}
            _ => unknown.push(key),
        }
        if key == name && !value.is_empty() {
            found = Some(value);
        }
    }
    if unknown.is_empty() || ignored {
        return Ok(found);
    }
    Err(invalid(format!("unknown args {unknown:?}")))
}

/// The hardware address that somebody wants for the pod: the runtime's word counts most, then
/// `args`, then `CNI_ARGS`.
pub(super) fn mac(call: &Call) -> Result<Option<[u8; 6]>, PluginError> {
    let wish: Option<String> = wish(call, "mac")?;
    let argument: Option<String> = argument(call, "mac")?;
    let environment = environment(call, "MAC")?.map(str::to_owned);
    let text = [wish, argument, environment]
        .into_iter()
        .flatten()
        .find(|text| !text.is_empty());
    text.map(|text| {
        parse_mac(&text).ok_or_else(|| {
            let text = format!("{text:?} is not a hardware address");
            PluginError::new(code::INVALID_CONFIG, text)
        })
    })
    .transpose()
}

/// (container id, interface name) of every attachment that GC must keep.
pub(super) fn valid_attachments(call: &Call) -> Result<Vec<(String, String)>, PluginError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct One {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    const FIELD: &str = "cni.dev/valid-attachments";
    let listed = call
        .conf
        .get(FIELD)
        .or_else(|| call.conf.get("cni.dev/attachments"))
        .ok_or_else(|| FieldError::new(FIELD, "is missing"))?;
    let listed = <Vec<One> as serde::Deserialize>::deserialize(listed)
        .map_err(|e| PluginError::new(code::DECODING, format!("field {FIELD}: {e}")))?;
    Ok(listed
        .into_iter()
        .map(|one| (one.container_id, one.ifname))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn the_runtimes_word_counts_most() {
        let mut call = Call::of_test(Path::new("/"), "ADD", json!({}));
        assert_eq!(mac(&call).expect("none"), None);
        call.args = "IgnoreUnknown=1;K8S_POD_NAME=p;MAC=02:00:00:00:00:01".into();
        assert_eq!(mac(&call).expect("one"), Some([2, 0, 0, 0, 0, 1]));
        call.conf = json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}});
        assert_eq!(mac(&call).expect("one"), Some([2, 0, 0, 0, 0, 2]));
        call.conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
        assert_eq!(mac(&call).expect("one"), Some([2, 0, 0, 0, 0, 3]));
        call.conf["runtimeConfig"] = json!({"mac": "nonsense"});
        assert_eq!(mac(&call).expect_err("wrong").code, code::INVALID_CONFIG);
        call.conf["runtimeConfig"] = json!({"mac": 7});
        let text = mac(&call).expect_err("wrong").msg;
        assert!(
            text.starts_with("field runtimeConfig.mac: invalid type"),
            "{text}"
        );
    }

    #[test]
    fn what_nobody_knows_is_an_error_unless_ignored() {
        let mut call = Call::of_test(Path::new("/"), "ADD", json!({}));
        for (args, found) in [
            ("", Ok(None)),
            ("IP=10.0.0.5;;MAC=", Ok(Some("10.0.0.5"))),
            ("FOO=1;IgnoreUnknown=true", Ok(None)),
            ("FOO=1", Err(())),
            ("FOO", Err(())),
        ] {
            call.args = args.into();
            assert_eq!(environment(&call, "IP").map_err(drop), found, "{args}");
        }
    }
}
