// SPDX-License-Identifier: Apache-2.0
//! The guest itself: it boots, has what a node needs, and reports faithfully.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use vm::GuestConfig;

fn config() -> GuestConfig {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    GuestConfig::new(target.join("vm"))
}

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_guest_has_cgroup_v2_overlay_veth_and_nftables() -> Result<()> {
    let script = "set -e
cat /sys/fs/cgroup/cgroup.controllers
mkdir -p /tmp/o/l /tmp/o/u /tmp/o/w /tmp/o/m
mount -t overlay overlay -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w /tmp/o/m
ip link add br0 type bridge
ip link add a type veth peer name b
grep -c '^nf' /proc/modules
";
    let outcome = vm::run(&config(), script, DEADLINE)?;
    assert_eq!(outcome.exit_code, Some(0), "{}", outcome.output);
    assert!(outcome.output.contains("memory"), "{}", outcome.output);
    assert!(
        !outcome.console.contains("not loaded:"),
        "{}",
        outcome.console
    );
    Ok(())
}

#[test]
fn a_scenarios_exit_code_and_output_come_back_exactly() -> Result<()> {
    let script = "printf 'one\\r\\ntwo'; echo three >&2; exit 41";
    let outcome = vm::run(&config(), script, DEADLINE)?;
    assert_eq!(outcome.exit_code, Some(41));
    assert_eq!(outcome.output, "one\r\ntwothree\n");
    Ok(())
}

#[test]
fn a_guest_that_hangs_is_ended_at_its_deadline() {
    let error = vm::run(&config(), "sleep 1000", Duration::from_secs(20)).unwrap_err();
    assert!(matches!(error, vm::Error::Deadline(..)), "{error}");
}
