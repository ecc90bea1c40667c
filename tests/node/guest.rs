// SPDX-License-Identifier: Apache-2.0
//! The same scenarios once more, by the same test executable, in a guest with Debian's kernel and
//! cgroup v2.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::host::binary;
use vm::{GuestConfig, Outcome};

/// Under an emulated processor everything takes ten times as long.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("no {program} on the path"))
}

/// `tidy` needs the sources, `streams` a terminal by script(1), which the guest has not, `overlay` three
/// nodes at once and iproute2, `churn`, `network_faults` and a wire between hosts iproute2 and nft, and
/// this module would start a guest in the guest.
const SCENARIOS: &str = "set -e
podwright check
node --skip guest:: --skip tidy:: --skip streams:: --skip overlay:: --skip churn:: --skip network_faults:: \
    --skip names_are_answered_over_both_families --test-threads=1
";

/// What of the CRI server's own tests depends on the version of cgroups: limits and their changes, of
/// containers and of pods, statistics and pressure, memory that runs out, plugins' limits, cgroups of
/// a user namespace, and that nothing is left of a pod. The others would take an hour.
const CRI_TESTS: &str = "exec::limits_are_applied_updated_and_counted \
    exec::a_container_out_of_memory_says_so \
    calls::a_pods_limits_change_where_they_are_ours \
    calls::metrics_are_described_and_there \
    lifecycle::a_pod_lives_and_goes \
    nri::adjust::updates_of_clients_and_of_plugins_reach_the_cgroup \
    userns::root_of_a_pod_rules_its_namespaces_and_nothing_else";

/// The newest executable of another crate's test target, which cargo puts beside this one. Several
/// crates may have a target of this name: it is the one that has this test.
fn test_executable(target: &str, with: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("an executable is in a folder")?;
    let prefix = format!("{target}-");
    let mut found: Vec<_> = std::fs::read_dir(dir)?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&prefix) && !name.contains('.')
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let mut found = found.into_iter().rev().map(|(_, path)| path);
    let newest = found.find(|path| has_test(path, with));
    newest.with_context(|| {
        format!(
            "no test executable {target} in {}; build the workspace's tests first",
            dir.display()
        )
    })
}

fn has_test(executable: &Path, name: &str) -> bool {
    let listed = Command::new(executable).arg("--list").output();
    listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(name))
}

fn guest() -> GuestConfig {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
    GuestConfig::new(cache).file(binary(), "usr/bin/podwright")
}

/// With a program of this machine and the libraries that it is linked with. It comes before busybox's.
fn with_program(config: GuestConfig, name: &str) -> Result<GuestConfig> {
    let path = on_path(name)?;
    let linked = Command::new("ldd").arg(&path).output().context("ldd")?;
    let linked = String::from_utf8(linked.stdout)?;
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let config = libraries.fold(config, |config, library| {
        config.file(library, library.trim_start_matches('/'))
    });
    Ok(config.file(path, format!("usr/local/bin/{name}")))
}

fn passed(outcome: &Outcome) {
    println!("{}", outcome.output);
    let last: Vec<_> = outcome.console.lines().rev().take(20).collect();
    assert_eq!(
        outcome.exit_code,
        Some(0),
        "kernel messages, newest first: {last:#?}"
    );
}

#[test]
fn the_scenarios_pass_in_a_guest_with_cgroup_v2() -> Result<()> {
    let config = guest()
        .file(std::env::current_exe()?, "usr/bin/node")
        .file(on_path("kubectl")?, "usr/bin/kubectl");
    passed(&vm::run(&config, SCENARIOS, DEADLINE)?);
    Ok(())
}

#[test]
fn the_runtimes_own_tests_pass_in_a_guest_with_cgroup_v2() -> Result<()> {
    let executable = test_executable("runtime", "")?;
    let config = guest().file(executable, "usr/bin/runtime");
    passed(&vm::run(&config, "runtime --test-threads=1", DEADLINE)?);
    Ok(())
}

/// And what of the pod network depends on a module: its tests with WireGuard, six of them.
#[test]
fn the_cri_servers_and_wireguards_own_tests_pass_in_a_guest_with_cgroup_v2() -> Result<()> {
    let executable = test_executable("it", "exec::limits_are_applied_updated_and_counted")?;
    let network = test_executable("it", "wireguard::this_kernel_has_wireguard")?;
    let config = guest()
        .file(executable, "usr/bin/it")
        .file(network, "usr/bin/network");
    let config = with_program(with_program(config, "ip")?, "wg")?;
    let count = CRI_TESTS.split_whitespace().count();
    let script = format!(
        "it --exact --test-threads=2 {CRI_TESTS} >/tmp/said 2>&1; code=$?; cat /tmp/said\n\
         grep -q 'ok. {count} passed' /tmp/said || exit 1; [ $code = 0 ] || exit $code\n\
         network --ignored --nocapture --test-threads=2 wireguard:: >/tmp/said 2>&1; code=$?\n\
         cat /tmp/said; grep -q 'ok. 6 passed' /tmp/said || exit 1; exit $code"
    );
    passed(&vm::run(&config, &script, DEADLINE)?);
    Ok(())
}
