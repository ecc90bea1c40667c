// SPDX-License-Identifier: Apache-2.0
//! The same scenarios once more, by the same test executable, in a guest with Debian's kernel and
//! cgroup v2.

mod far;
mod pair;

use std::time::Duration;

use anyhow::Result;
use tests::guest::{exactly, on_path, passed, test_executable, with_podwright};
use vm::GuestConfig;

/// Under an emulated processor everything takes ten times as long.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Of two guests at once.
const PAIR_DEADLINE: Duration = Duration::from_secs(8 * 60);

/// `tidy` needs the sources, `streams` a terminal by script(1), which the guest has not, `overlay` three
/// nodes at once and iproute2, a wire between hosts iproute2, `runtime_class` crun, and this module would
/// start a guest in the guest. `services`, and `network_faults` with nft, pass there, but take minutes; `churn` wants more than
/// an emulated processor can do in time. `sctp` is for a kernel that has it, as this one.
const SCENARIOS: &str = "set -e
podwright check
node --skip guest:: --skip tidy:: --skip streams:: --skip overlay:: --skip runtime_class:: --skip churn:: --skip network_faults:: --skip services:: \
    --skip names_are_answered_over_both_families --test-threads=1
node --ignored --nocapture sctp:: >/tmp/said 2>&1 && code=0 || code=$?
cat /tmp/said
grep -q 'ok. 1 passed' /tmp/said || exit 1
exit $code
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

fn guest() -> GuestConfig {
    with_podwright(env!("CARGO_TARGET_TMPDIR"))
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
        .file(network, "usr/bin/network")
        .program(on_path("ip")?)?
        .program(on_path("nft")?)?
        .program(on_path("wg")?)?;
    let script = exactly("it", CRI_TESTS, 2)
        + "network --ignored --nocapture --test-threads=2 wireguard:: >/tmp/said 2>&1; code=$?\n\
           cat /tmp/said; grep -q 'ok. 6 passed' /tmp/said || exit 1; exit $code";
    passed(&vm::run(&config, &script, DEADLINE)?);
    Ok(())
}

/// Two nodes, each on a machine of its own: see [`pair`].
#[test]
fn two_machines_are_one_cluster() -> Result<()> {
    let machine = |name: &str| -> Result<GuestConfig> {
        let mut config = guest();
        for program in ["ip", "nft"] {
            config = config.program(on_path(program)?)?;
        }
        name.clone_into(&mut config.name);
        Ok(config)
    };
    let near = machine("near")?
        .file(std::env::current_exe()?, "usr/bin/node")
        .file(on_path("kubectl")?, "usr/bin/kubectl");
    let drive = "node --exact guest::pair::two_machines_are_one_cluster --ignored --nocapture";
    let far = machine(far::NAME)?;
    let [near, far] = vm::run_pair([(&near, drive), (&far, far::SCRIPT)], PAIR_DEADLINE)?;
    println!("{}\n{}", far.output, far.console);
    passed(&near);
    assert_eq!(far.exit_code, Some(0));
    Ok(())
}
