// SPDX-License-Identifier: Apache-2.0
//! `spec`: a config.json to start from.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::args::SPEC_VERSION;
use super::cgroups::on_v2;
use super::config::CONFIG;
use super::{Attempt, Failure, Outcome};
use crate::oci::spec::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};

pub(super) fn spec(bundle: &Path, rootless: bool) -> Outcome {
    if rootless {
        return Err(Failure::new(
            "--rootless is not supported: this runtime needs root",
        ));
    }
    let path = bundle.join(CONFIG);
    let attempt = || format!("writing {}", path.display());
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, tabs);
    // Through its type, so that the fields have the specification's order.
    let spec: Spec = serde_json::from_value(example(on_v2())).attempt(attempt())?;
    serde::Serialize::serialize(&spec, &mut writer).attempt(attempt())?;
    let file = std::fs::File::create_new(&path);
    if let Err(error) = &file
        && error.kind() == std::io::ErrorKind::AlreadyExists
    {
        let message = format!("File {} exists. Remove it first", path.display());
        return Err(Failure::new(message));
    }
    file.and_then(|mut file| file.write_all(&text))
        .attempt(attempt())?;
    Ok(ExitCode::SUCCESS)
}

/// A shell on a terminal with few rights, as runc's starter file has it.
fn example(cgroup_v2: bool) -> Value {
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount"];
    // As runc's: on v1 it is left out.
    namespaces.extend(cgroup_v2.then_some("cgroup"));
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "podwright",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": DEFAULT_MASKED_PATHS,
            "readonlyPaths": DEFAULT_READONLY_PATHS,
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let plain = ["nosuid", "noexec", "nodev"];
    let and = |more: &[&'static str]| [&plain[..], more].concat();
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", "shm", &and(&["mode=1777", "size=65536k"])),
        mount("/dev/mqueue", "mqueue", "mqueue", &plain),
        mount("/sys", "sysfs", "sysfs", &and(&["ro"])),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &and(&["relatime", "ro"])),
    ])
}

#[cfg(test)]
mod tests {
    use crate::oci::{CompileContext, compile};

    #[test]
    fn the_example_is_one_that_this_runtime_takes() {
        let spec = serde_json::from_value(super::example(true)).expect("a specification");
        let plan = compile(&spec, &CompileContext::default()).expect("compiles");
        assert!(plan.rootfs_readonly && plan.process.terminal);
    }
}
