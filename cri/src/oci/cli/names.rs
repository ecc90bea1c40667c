// SPDX-License-Identifier: Apache-2.0
//! Names of fields that are written in another case.
//!
//! Go's decoder, which these files have been written for, takes `maskedpaths` for `maskedPaths`. To pass
//! over such a field would be to start a container without what it says, which may be what protects it.

use serde_json::{Map, Value};

/// The names of the specification for Linux, sorted.
const FIELDS: &[&str] = &[
    "access",
    "action",
    "additionalGids",
    "allow",
    "ambient",
    "annotations",
    "apparmorProfile",
    "architectures",
    "args",
    "blockIO",
    "bounding",
    "burst",
    "capabilities",
    "cgroupsPath",
    "checkBeforeUpdate",
    "class",
    "classID",
    "closID",
    "consoleSize",
    "containerID",
    "cpu",
    "cpus",
    "createContainer",
    "createRuntime",
    "cwd",
    "deadline",
    "defaultAction",
    "defaultErrnoRet",
    "destination",
    "devices",
    "disableOOMKiller",
    "domain",
    "domainname",
    "effective",
    "enableCMT",
    "enableMBM",
    "enableMonitoring",
    "env",
    "errnoRet",
    "execCPUAffinity",
    "fileMode",
    "final",
    "flags",
    "gid",
    "gidMappings",
    "hard",
    "hcaHandles",
    "hcaObjects",
    "height",
    "hooks",
    "hostID",
    "hostname",
    "hugepageLimits",
    "idle",
    "index",
    "inheritable",
    "initial",
    "intelRdt",
    "ioPriority",
    "kernel",
    "kernelTCP",
    "l3CacheSchema",
    "leafWeight",
    "limit",
    "linux",
    "listenerMetadata",
    "listenerPath",
    "major",
    "maskedPaths",
    "memBwSchema",
    "memory",
    "memoryPolicy",
    "mems",
    "minor",
    "mode",
    "mountLabel",
    "mounts",
    "name",
    "names",
    "namespaces",
    "nanosecs",
    "netDevices",
    "network",
    "nice",
    "noNewPrivileges",
    "nodes",
    "ociVersion",
    "oomScoreAdj",
    "op",
    "options",
    "pageSize",
    "path",
    "period",
    "permitted",
    "personality",
    "pids",
    "policy",
    "poststart",
    "poststop",
    "prestart",
    "priorities",
    "priority",
    "process",
    "quota",
    "rate",
    "rdma",
    "readonly",
    "readonlyPaths",
    "realtimePeriod",
    "realtimeRuntime",
    "reservation",
    "resources",
    "rlimits",
    "root",
    "rootfsPropagation",
    "runtime",
    "scheduler",
    "schemata",
    "seccomp",
    "secs",
    "selinuxLabel",
    "shares",
    "size",
    "soft",
    "source",
    "startContainer",
    "swap",
    "swappiness",
    "syscalls",
    "sysctl",
    "terminal",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "timeOffsets",
    "timeout",
    "type",
    "uid",
    "uidMappings",
    "umask",
    "unified",
    "useHierarchy",
    "user",
    "username",
    "value",
    "valueTwo",
    "weight",
    "weightDevice",
    "width",
];

/// Fields whose own names are anything.
const FREE: [&str; 6] = [
    "annotations",
    "netDevices",
    "rdma",
    "sysctl",
    "timeOffsets",
    "unified",
];

/// The field that has this name but for its case.
fn meant(name: &str) -> Option<&'static str> {
    if FIELDS.binary_search(&name).is_ok() {
        return None;
    }
    let mut fields = FIELDS.iter().copied();
    fields.find(|field| field.eq_ignore_ascii_case(name))
}

/// Whether a text may have such a name: what follows is needed for few.
pub(super) fn has_another_case(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let string = &rest[start + 1..];
        let Some(length) = end_of_string(string) else {
            return false;
        };
        let name = str::from_utf8(&string[..length]).unwrap_or_default();
        rest = &string[length + 1..];
        let next = rest.iter().find(|byte| !byte.is_ascii_whitespace());
        if next == Some(&b':') && meant(name).is_some() {
            return true;
        }
    }
    false
}

fn end_of_string(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })
}

/// Gives fields the names of the specification. One that is there by its own name already is left.
pub(super) fn restore(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            rename(fields);
            for (name, value) in fields {
                match value {
                    Value::Object(free) if FREE.contains(&name.as_str()) => {
                        free.values_mut().for_each(restore);
                    }
                    other => restore(other),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(restore),
        _ => {}
    }
}

fn rename(fields: &mut Map<String, Value>) {
    let other = |name: &String| Some((name.clone(), meant(name)?));
    let others: Vec<_> = fields.keys().filter_map(other).collect();
    for (name, field) in others {
        if !fields.contains_key(field)
            && let Some(value) = fields.remove(&name)
        {
            fields.insert(field.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_sorted_and_differ_in_more_than_their_case() {
        assert!(FIELDS.is_sorted());
        for (one, other) in FIELDS.iter().zip(&FIELDS[1..]) {
            assert!(!one.eq_ignore_ascii_case(other), "{one}");
        }
        assert!(FREE.iter().all(|name| FIELDS.contains(name)));
    }

    #[test]
    fn fields_get_their_names_and_what_is_free_stays() {
        for (text, seen) in [
            (r#"{"linux": {"MaskedPaths" : []}}"#, true),
            (r#"{"process": {"args": ["Env", "\"Cwd\":"]}}"#, false),
            (r#"{"annotations": {"org.example": "x"}}"#, false),
            (r#"{"unfinished"#, false),
        ] {
            assert_eq!(has_another_case(text.as_bytes()), seen, "{text}");
        }
        let mut value = json!({
            "Process": {"CWD": "/", "cwd": "/kept"},
            "annotations": {"Type": "as it is"},
            "linux": {"resources": {"hugepageLimits": [{"pagesize": "2MB"}]},
                "netDevices": {"Name": {"NAME": "eth1"}}},
        });
        restore(&mut value);
        let expected = json!({
            "process": {"CWD": "/", "cwd": "/kept"},
            "annotations": {"Type": "as it is"},
            "linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB"}]},
                "netDevices": {"Name": {"name": "eth1"}}},
        });
        assert_eq!(value, expected);
    }
}
