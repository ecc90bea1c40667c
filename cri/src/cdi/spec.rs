// SPDX-License-Identifier: Apache-2.0
//! One CDI specification: its file's form, and what makes it valid. Pure.
//!
//! Field names are those of the specification (cncf-tags/container-device-interface, SPEC.md,
//! versions 0.3 to 1.1).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::name;

/// Devices of one vendor and class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    pub cdi_version: String,
    pub kind: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// Made once for any number of devices of this file.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What a container needs to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<NetDevice>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<IntelRdt>,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    pub path: String,
    pub host_path: String,
    pub r#type: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default)]
    pub r#type: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: String,
    #[serde(rename = "l3CacheSchema")]
    pub l3_cache_schema: String,
    #[serde(rename = "memBwSchema")]
    pub mem_bw_schema: String,
    pub schemata: Vec<String>,
    #[serde(rename = "enableMonitoring")]
    pub enable_monitoring: bool,
    /// In versions before 1.1; the OCI specification has given them up, and so they do nothing.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub enable_mbm: bool,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
}

/// Known versions, oldest first.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// Where a hook may be put.
pub(super) const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Reads and checks a specification.
///
/// # Errors
/// The first thing that is wrong, in words.
pub fn parse(text: &str, form: Form) -> Result<Spec, String> {
    let spec: Spec = match form {
        Form::Json => serde_json::from_str(text).map_err(|e| e.to_string())?,
        Form::Yaml => {
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())?
        }
    };
    check(&spec)?;
    Ok(spec)
}

fn check(spec: &Spec) -> Result<(), String> {
    check_version(spec)?;
    let (vendor, class) = spec
        .kind
        .split_once('/')
        .ok_or_else(|| format!("invalid kind {:?}, it is vendor/class", spec.kind))?;
    name::check_vendor(vendor)?;
    name::check_class(class)?;
    check_edits(&spec.container_edits)?;
    if spec.devices.is_empty() {
        return Err("invalid spec, no devices".to_owned());
    }
    let mut names = BTreeSet::new();
    for device in &spec.devices {
        name::check_device(&device.name)?;
        if !names.insert(&device.name) {
            return Err(format!("invalid spec, multiple device {:?}", device.name));
        }
        let wrong = |why| format!("invalid device {:?}: {why}", device.name);
        if device.container_edits == Edits::default() {
            return Err(wrong("empty device edits".to_owned()));
        }
        check_edits(&device.container_edits).map_err(wrong)?;
    }
    Ok(())
}

fn check_version(spec: &Spec) -> Result<(), String> {
    let said = spec.cdi_version.trim_start_matches('v');
    let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let found = place(said).ok_or_else(|| format!("invalid version {:?}", spec.cdi_version))?;
    let needed = needed_version(spec);
    if Some(found) < place(needed) && needed != "0.3.0" {
        return Err(format!("the spec version must be at least v{needed}"));
    }
    Ok(())
}

/// The version that the newest part of a specification came with.
fn needed_version(spec: &Spec) -> &'static str {
    let devices = spec.devices.iter().map(|device| &device.container_edits);
    let edits: Vec<&Edits> = devices.chain([&spec.container_edits]).collect();
    let any = |has: fn(&Edits) -> bool| edits.iter().any(|edits| has(edits));
    let newer_rdt = |edits: &Edits| {
        let rdt = edits.intel_rdt.as_ref();
        rdt.is_some_and(|rdt| !rdt.schemata.is_empty() || rdt.enable_monitoring)
    };
    let class = spec.kind.split_once('/').map_or("", |(_, class)| class);
    let annotated = spec
        .devices
        .iter()
        .any(|device| !device.annotations.is_empty());
    let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
    if any(|edits| !edits.net_devices.is_empty()) || edits.iter().any(|e| newer_rdt(e)) {
        "1.1.0"
    } else if any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
        "0.7.0"
    } else if !spec.annotations.is_empty() || annotated || class.contains('.') {
        "0.6.0"
    } else if spec.devices.iter().any(digit)
        || any(|edits| {
            edits
                .device_nodes
                .iter()
                .any(|node| !node.host_path.is_empty())
        })
    {
        "0.5.0"
    } else if any(|edits| edits.mounts.iter().any(|mount| !mount.r#type.is_empty())) {
        "0.4.0"
    } else {
        "0.3.0"
    }
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    check_env(&edits.env)?;
    edits.device_nodes.iter().try_for_each(check_node)?;
    edits.hooks.iter().try_for_each(check_hook)?;
    for mount in &edits.mounts {
        if mount.host_path.is_empty() || mount.container_path.is_empty() {
            return Err("invalid mount, empty host or container path".to_owned());
        }
    }
    let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
    for device in &edits.net_devices {
        let (host, name) = (&device.host_interface_name, &device.name);
        if host.is_empty() || name.is_empty() || !hosts.insert(host) || !names.insert(name) {
            return Err(format!(
                "invalid network device {host:?}: its names are empty or used twice"
            ));
        }
    }
    match &edits.intel_rdt {
        Some(rdt) => check_rdt(rdt),
        None => Ok(()),
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let wrong = |entry: &&String| entry.find('=').is_none_or(|at| at == 0);
    match env.iter().find(wrong) {
        Some(entry) => Err(format!("invalid environment variable {entry:?}")),
        None => Ok(()),
    }
}

fn check_node(node: &DeviceNode) -> Result<(), String> {
    if node.path.is_empty() {
        return Err("invalid (empty) device path".to_owned());
    }
    let (path, kind) = (&node.path, &node.r#type);
    if !matches!(kind.as_str(), "" | "b" | "c" | "u" | "p") {
        return Err(format!("device {path:?}: invalid type {kind:?}"));
    }
    if node.permissions.contains(|c| !"rwm".contains(c)) {
        let permissions = &node.permissions;
        return Err(format!(
            "device {path:?}: invalid permissions {permissions:?}"
        ));
    }
    Ok(())
}

fn check_hook(hook: &Hook) -> Result<(), String> {
    let name = &hook.hook_name;
    if !HOOKS.contains(&name.as_str()) {
        return Err(format!("invalid hook name {name:?}"));
    }
    if hook.path.is_empty() {
        return Err(format!("invalid hook {name:?} with empty path"));
    }
    check_env(&hook.env).map_err(|why| format!("invalid hook {name:?}: {why}"))
}

fn check_rdt(rdt: &IntelRdt) -> Result<(), String> {
    let id = &rdt.clos_id;
    let wrong = id.len() >= 4096 || id == "." || id == ".." || id.contains(['/', '\n']);
    match wrong {
        true => Err("invalid closID".to_owned()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
cdiVersion: '0.5.0'
kind: vendor.com/gpu
devices:
- name: '0'
  containerEdits:
    deviceNodes:
    - {path: /dev/gpu0, hostPath: /dev/null, fileMode: 0660, permissions: rw}
containerEdits:
  env: [GPU=yes]
  hooks:
  - {hookName: createContainer, path: /bin/true, timeout: 3}
  mounts:
  - {hostPath: /lib/gpu, containerPath: /lib/gpu, options: [ro]}
";

    #[test]
    fn both_forms_are_read_and_octal_modes_too() {
        let spec = parse(GOOD, Form::Yaml).unwrap();
        assert_eq!(spec.kind, "vendor.com/gpu");
        let node = &spec.devices[0].container_edits.device_nodes[0];
        assert_eq!(
            (node.file_mode, node.permissions.as_str()),
            (Some(0o660), "rw")
        );
        let json = r#"{"cdiVersion":"0.3.0","kind":"v/c","devices":[
            {"name":"d","containerEdits":{"env":["A=1"]}}]}"#;
        assert_eq!(parse(json, Form::Json).unwrap().devices[0].name, "d");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("cdiVersion: '0.5.0'", "cdiVersion: '9.0.0'", "9.0.0"),
            (
                "cdiVersion: '0.5.0'",
                "cdiVersion: '0.4.0'",
                "at least v0.5.0",
            ),
            ("vendor.com/gpu", "vendor.com", "vendor/class"),
            ("vendor.com/gpu", "-v/gpu", "vendor"),
            ("kind:", "kinds:", "kind"),
            ("GPU=yes", "GPU", "environment"),
            ("permissions: rw", "permissions: rx", "permissions"),
            ("createContainer", "before", "before"),
            ("name: '0'", "name: '0/1'", "device name"),
            ("path: /dev/gpu0, ", "", "device path"),
        ];
        for (from, to, word) in cases {
            let text = GOOD.replacen(from, to, 1);
            let error = parse(&text, Form::Yaml).unwrap_err();
            assert!(error.contains(word), "{to}: {error}");
        }
        let none = "{cdiVersion: 0.3.0, kind: v/c, devices: []}";
        assert!(parse(none, Form::Yaml).unwrap_err().contains("no devices"));
    }
}
