// SPDX-License-Identifier: Apache-2.0
//! The edits of CDI devices, made to an OCI spec. Looks at device nodes of the host; blocks.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::spec::{DeviceNode, Edits, IntelRdt, Mount};
use crate::fault::{Fault, Result};
use crate::spec_edit::SpecEdit;

/// Makes all edits, in order.
///
/// # Errors
/// A device node that the host does not have, or has as something else.
pub(super) fn apply(spec: &Spec, edits: &[&Edits]) -> Result<Spec> {
    let mut edit = SpecEdit::new(spec)?;
    for edits in edits {
        one(&mut edit, edits)?;
    }
    if edits.iter().any(|edits| !edits.mounts.is_empty()) {
        edit.sort_mounts();
    }
    edit.finish("CDI devices")
}

fn one(edit: &mut SpecEdit, edits: &Edits) -> Result<()> {
    for entry in &edits.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        edit.set_env(name, value);
    }
    for node in &edits.device_nodes {
        device(edit, node)?;
    }
    for device in &edits.net_devices {
        let path = ["linux", "netDevices", &device.host_interface_name];
        edit.set(&path, json!({"name": device.name}));
    }
    for wanted in &edits.mounts {
        edit.widen_root_propagation(&wanted.options);
        edit.put(&["mounts"], "destination", mount(wanted));
    }
    for hook in &edits.hooks {
        let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(timeout) = hook.timeout {
            value["timeout"] = timeout.into();
        }
        edit.push(&["hooks", &hook.hook_name], value);
    }
    if let Some(rdt) = &edits.intel_rdt {
        edit.set(&["linux", "intelRdt"], intel_rdt(rdt));
    }
    let groups = ["process", "user", "additionalGids"];
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        let known = edit.get(&groups).and_then(Value::as_array);
        if !known.is_some_and(|known| known.contains(&(*gid).into())) {
            edit.push(&groups, (*gid).into());
        }
    }
    Ok(())
}

fn mount(wanted: &Mount) -> Value {
    let kind = match wanted.r#type.as_str() {
        "" => "bind",
        kind => kind,
    };
    json!({
        "destination": wanted.container_path, "source": wanted.host_path, "type": kind,
        "options": wanted.options,
    })
}

fn intel_rdt(rdt: &IntelRdt) -> Value {
    let mut value = json!({});
    let words = [
        ("closID", &rdt.clos_id),
        ("l3CacheSchema", &rdt.l3_cache_schema),
        ("memBwSchema", &rdt.mem_bw_schema),
    ];
    for (name, word) in words.into_iter().filter(|(_, word)| !word.is_empty()) {
        value[name] = word.as_str().into();
    }
    if !rdt.schemata.is_empty() {
        value["schemata"] = rdt.schemata.clone().into();
    }
    if rdt.enable_monitoring {
        value["enableMonitoring"] = true.into();
    }
    value
}

fn device(edit: &mut SpecEdit, wanted: &DeviceNode) -> Result<()> {
    let (kind, major, minor) = numbers(wanted)?;
    let mut value = json!({
        "path": wanted.path, "type": kind, "major": major, "minor": minor,
    });
    // A process that is not root gets the device, unless somebody else is said to.
    let owner = |name: &str| {
        let id = edit.get(&["process", "user", name]).and_then(Value::as_u64);
        id.and_then(|id| u32::try_from(id).ok())
            .filter(|id| *id > 0)
    };
    let said = [
        ("fileMode", wanted.file_mode),
        ("uid", wanted.uid.or_else(|| owner("uid"))),
        ("gid", wanted.gid.or_else(|| owner("gid"))),
    ];
    for (name, number) in said {
        if let Some(number) = number {
            value[name] = number.into();
        }
    }
    let access = match wanted.permissions.as_str() {
        "" => "rwm",
        access => access,
    };
    edit.put_device(value, access);
    Ok(())
}

/// Type and numbers: as said, or as the host's node has them.
fn numbers(wanted: &DeviceNode) -> Result<(String, i64, i64)> {
    let said = (wanted.r#type.clone(), wanted.major, wanted.minor);
    if said.0 == "p" || !said.0.is_empty() && (said.1, said.2) != (0, 0) {
        return Ok(said);
    }
    let path = match wanted.host_path.as_str() {
        "" => &wanted.path,
        path => path,
    };
    let metadata = std::fs::symlink_metadata(path)
        .map_err(|e| Fault::internal(format!("failed to stat CDI host device {path:?}"), e))?;
    let kind = metadata.file_type();
    let found = match (
        kind.is_char_device(),
        kind.is_block_device(),
        kind.is_fifo(),
    ) {
        (true, ..) => "c",
        (_, true, _) => "b",
        (.., true) => "p",
        _ => {
            return Err(Fault::invalid(format!(
                "CDI host device {path:?} is no device"
            )));
        }
    };
    if !matches!(said.0.as_str(), "" | "u") && said.0 != found {
        return Err(Fault::invalid(format!(
            "CDI device ({:?}, {path:?}), host type mismatch ({:?}, {found:?})",
            wanted.path, said.0
        )));
    }
    let device = metadata.rdev();
    let numbers = (libc::major(device).into(), libc::minor(device).into());
    Ok((found.to_owned(), numbers.0, numbers.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::spec::{Form, parse};

    #[test]
    fn all_edits_arrive_in_the_spec() {
        let text = r#"
cdiVersion: 1.1.0
kind: v/c
devices:
- name: d
  containerEdits:
    env: [A=1, B=2]
    deviceNodes:
    - {path: /dev/mine, hostPath: /dev/null, permissions: r, fileMode: 0600, uid: 7}
    - {path: /dev/said, type: b, major: 8, minor: 1}
    netDevices: [{hostInterfaceName: eth9, name: net0}]
    hooks: [{hookName: poststop, path: /h, args: [h, x]}]
    mounts: [{hostPath: /lib, containerPath: /lib/deep, options: [ro, rslave]}]
    intelRdt: {closID: gold, schemata: ['L3:0=f']}
    additionalGids: [0, 44, 44]
"#;
        let file = parse(text, Form::Yaml).unwrap();
        let edits = [&file.container_edits, &file.devices[0].container_edits];
        let spec = apply(&crate::oci::spec::container_spec(), &edits).unwrap();
        let value = serde_json::to_value(spec).unwrap();
        for (pointer, expected) in [
            ("/process/env", json!(["A=1", "B=2"])),
            ("/process/user/additionalGids", json!([44])),
            ("/linux/devices/0/major", json!(1)),
            ("/linux/devices/0/minor", json!(3)),
            ("/linux/devices/0/type", json!("c")),
            ("/linux/devices/0/uid", json!(7)),
            ("/linux/devices/1/type", json!("b")),
            ("/linux/resources/devices/1/access", json!("r")),
            ("/linux/resources/devices/2/access", json!("rwm")),
            ("/linux/netDevices/eth9/name", json!("net0")),
            ("/linux/intelRdt/closID", json!("gold")),
            ("/linux/rootfsPropagation", json!("rslave")),
            ("/hooks/poststop/0/args/1", json!("x")),
        ] {
            assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
        }
        let mounts = value["mounts"].as_array().unwrap();
        assert!(
            mounts
                .iter()
                .any(|m| m["destination"] == "/lib/deep" && m["type"] == "bind")
        );
    }

    #[test]
    fn a_node_that_is_something_else_is_refused() {
        let node = |path: &str, kind: &str| DeviceNode {
            path: path.to_owned(),
            r#type: kind.to_owned(),
            ..DeviceNode::default()
        };
        let error = numbers(&node("/dev/null", "b")).unwrap_err().to_string();
        assert!(error.contains("mismatch"), "{error}");
        assert!(numbers(&node("/no/such", "c")).is_err());
        assert!(numbers(&node("/", "")).is_err());
    }
}
