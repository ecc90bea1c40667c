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
echo text >/tmp/o/l/x
mount -t overlay overlay -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w /tmp/o/m
grep -q xt /tmp/o/m/x
mv /tmp/o/m/x /tmp/o/m/y
test -c /tmp/o/u/x
ip link add name br0 type bridge
ip link add name pod0 type veth
ip link show veth0
for module in overlay br_netfilter vxlan nf_tables nf_conntrack nft_chain_nat nft_masq nft_nat nft_ct \\
  nft_fib_inet nft_reject_inet nft_numgen nft_redir nft_log virtio_net; do
  grep -q \"^$module \" /proc/modules || { echo \"missing $module\"; exit 1; }
done
test ! -e /sys/fs/cgroup/memory
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

/// Containers leave their root by pivot_root, which the kernel's first file system does not allow.
#[test]
fn a_guest_can_change_its_root_and_has_files_with_their_modes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\necho it runs\n")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o750);
    std::fs::set_permissions(&program, mode)?;
    let mut config = config().file(&program, "opt/some/program");
    config.logs = Some(dir.path().join("logs"));
    let script = "set -e
stat -c %a /opt/some/program
/opt/some/program
mkdir -p /tmp/new
mount -t tmpfs tmpfs /tmp/new
mkdir -p /tmp/new/old /tmp/new/bin
cp /bin/busybox /tmp/new/bin/
cd /tmp/new
unshare -m sh -c 'mount --make-rprivate / && pivot_root . old && /bin/busybox ls /'
";
    let outcome = vm::run(&config, script, DEADLINE)?;
    assert_eq!(outcome.exit_code, Some(0), "{}", outcome.output);
    assert_eq!(outcome.output, "750\nit runs\nbin\nold\n");
    let kept = std::fs::read_to_string(dir.path().join("logs/output"))?;
    assert_eq!(kept, outcome.output);
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

/// The first one serves a file, and fails when the other has it: then that one is ended, too.
#[test]
fn two_guests_reach_each_other_and_end_together() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let payload = dir.path().join("payload");
    let bytes: Vec<u8> = (0..1 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&payload, bytes)?;
    let named = |name: &str| {
        let mut config = config().file(&payload, "srv/payload");
        config.name = name.into();
        config.cpus = 1;
        config
    };
    let (one, other) = (named("one"), named("other"));
    let serve = "httpd -p 7000 -h /srv; nc -l -p 7001; exit 7";
    let fetch = "set -e
hostname
for there in 192.0.2.11 '[2001:db8::11]'; do
  until wget -qO /tmp/got http://$there:7000/payload; do sleep 0.2; done
  cmp /tmp/got /srv/payload
  echo $there has it
done
ping -q -c 1 192.0.2.11 >/dev/null
ping -q -c 1 2001:db8::11 >/dev/null
echo over | nc 192.0.2.11 7001
sleep 1000
";
    let [served, fetched] = vm::run_pair([(&one, serve), (&other, fetch)], DEADLINE)?;
    assert_eq!(served.exit_code, Some(7), "{}", served.output);
    assert_eq!(served.output, "over\n");
    assert_eq!(fetched.exit_code, None, "{}", fetched.output);
    let told: Vec<_> = fetched
        .output
        .lines()
        .filter(|line| !line.starts_with("wget:"))
        .collect();
    assert_eq!(
        told,
        ["other", "192.0.2.11 has it", "[2001:db8::11] has it"]
    );
    Ok(())
}

#[test]
fn a_guest_that_hangs_is_ended_at_its_deadline() {
    let error = vm::run(&config(), "sleep 1000", Duration::from_secs(20)).unwrap_err();
    assert!(matches!(error, vm::Error::Deadline(..)), "{error}");
}
