// SPDX-License-Identifier: Apache-2.0
//! create + start + delete of one trivial container by command line, as podman and containerd do it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::host::binary;
use tests::{TestHost, image, leftovers};

use crate::installed;
use crate::report::{Report, sample};

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    let what = "OCI create + start + delete";
    let podwright = [binary().to_string_lossy().into_owned(), "oci".into()];
    report.times(what, "podwright", &verbs(&podwright, runs, "true")?);
    if installed("runc") {
        report.times(what, "runc", &verbs(&["runc".into()], runs, "true")?);
    }
    if installed("crun") {
        // crun refuses v1 controllers beside a unified tree, so it doesn't see the latter.
        let without_unified = "umount /sys/fs/cgroup/unified 2>/dev/null || true";
        report.times(
            what,
            "crun",
            &verbs(&["crun".into()], runs, without_unified)?,
        );
    }
    Ok(())
}

fn verbs(runtime: &[String], runs: usize, prepare: &str) -> Result<Vec<std::time::Duration>> {
    let host = TestHost::new()?;
    host.sh(prepare)?;
    let bundle = host.path().join("bundle");
    make_bundle(&bundle, &host.cgroup_parent)?;
    let root = host.path().join("oci").to_string_lossy().into_owned();
    let bundle = bundle.to_string_lossy().into_owned();
    let call = |args: &[&str]| -> Result<()> {
        let mut command: Command = host.command(&runtime[0]);
        command
            .args(&runtime[1..])
            .args(["--root", &root])
            .args(args);
        // The container keeps these, so a pipe would hold up whoever waits for its end.
        let status = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(())
    };
    let samples = sample(runs, |run| {
        let id = format!("bench-{run}");
        call(&["create", "--bundle", &bundle, &id])?;
        call(&["start", &id])?;
        call(&["delete", "--force", &id])
    })
    .with_context(|| format!("measuring {runtime:?}"))?;
    leftovers::remove_parent_cgroups(&host)?;
    host.down()?;
    Ok(samples)
}

fn make_bundle(bundle: &Path, cgroup_parent: &str) -> Result<()> {
    image::busybox_rootfs(&bundle.join("rootfs"))?;
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let mount = |destination: &str, kind: &str| json!({ "destination": destination, "type": kind, "source": kind });
    let spec: Value = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/sys", "sysfs")],
        "linux": {
            "cgroupsPath": format!("{cgroup_parent}/bench"),
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    std::fs::write(bundle.join("config.json"), spec.to_string()).context("writing config.json")
}
