// SPDX-License-Identifier: Apache-2.0
//! The same engines, and a real systemd, in a guest with Debian's kernel and cgroup v2: this host's
//! programs with their libraries, and the tests of this executable and of the CRI crate.

use std::time::Duration;

use anyhow::Result;
use tests::guest::{exactly, on_path, passed, test_executable, with_podwright};

/// Under an emulated processor everything takes ten times as long.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

const PROGRAMS: &[&str] = &[
    // The engines.
    "podman",
    "conmon",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    // What their tests use: a terminal, and a cgroup namespace, of which busybox's knows nothing.
    "script",
    "unshare",
    // A process of its own makes a scope here.
    "systemctl",
    // So does this, for pods whose runtime it is.
    "runc",
];

/// Programs and files that are looked for at their place.
const AT_THEIR_PLACE: &[&str] = &[
    "/usr/libexec/podman/catatonit",
    "/etc/containers/policy.json",
    SYSTEMD,
    // What systemd becomes when it ends, by the name that is compiled in.
    "/lib/systemd/systemd-shutdown",
    // Where the CRI server is told that it is.
    "/usr/sbin/runc",
];

const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Limits, statistics, freezing and killing by engines, on cgroup v2. The others pass there as well, and
/// take as long again.
const PEERS_TESTS: &str = "containerd::a_task_is_managed_while_it_runs \
    podman::a_container_is_managed_while_it_runs \
    podman::flags_of_run_take_effect";

/// Of the runtime and of the CRI server: containers as scopes, pods as slices.
const RUNTIME_TESTS: &str = "cgroup::systemd::a_container_is_a_scope_of_systemds \
    oci::systemd::containers_are_scopes_of_systemds";
const CRI_TESTS: &str = "systemd::pods_are_slices_and_containers_scopes_of_systemds";

#[test]
fn engines_and_systemd_on_cgroup_v2() -> Result<()> {
    let mut config = with_podwright(env!("CARGO_TARGET_TMPDIR"))
        .file(std::env::current_exe()?, "usr/bin/peers")
        .file(
            test_executable("runtime", "cgroup::systemd::inside")?,
            "usr/bin/runtime",
        )
        .file(test_executable("it", "systemd::inside")?, "usr/bin/it")
        .program(SYSTEMD)?;
    for program in PROGRAMS {
        config = config.program(on_path(program)?)?;
    }
    for path in AT_THEIR_PLACE {
        config = config.file(path, *path);
    }
    let script = [
        // Where podman keeps what it has not stored yet.
        "mkdir -p /var/tmp\n".to_owned(),
        exactly("runtime", RUNTIME_TESTS, 1),
        exactly("it", CRI_TESTS, 1),
        // One by one: podmans that make their first lock at the same time fail.
        exactly("peers", PEERS_TESTS, 1),
    ];
    passed(&vm::run(&config, &script.concat(), DEADLINE)?);
    Ok(())
}
