// SPDX-License-Identifier: Apache-2.0
//! The command line itself.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;
use tests::host::{output_of, stdout_of};
use tests::{TestHost, wait_until};

#[test]
fn check_finds_this_host_fit() -> Result<()> {
    let host = TestHost::new()?;
    let report = stdout_of(&mut host.podwright(&["check"]))?;
    for name in [
        "kernel",
        "cgroups",
        "overlay filesystem",
        "bridge and veth",
        "nftables",
        "seccomp",
    ] {
        let line = report.lines().find(|line| line.contains(name));
        assert!(
            line.is_some_and(|line| line.starts_with("ok")),
            "{name}:\n{report}"
        );
    }
    host.down()
}

/// A back end is used, or refused before anything is started.
#[test]
fn wireguard_is_used_where_the_kernel_has_it() -> Result<()> {
    let mut host = TestHost::new()?;
    let check = output_of(&mut host.podwright(&["check"]))?;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let has = check
        .lines()
        .any(|line| line.starts_with("ok    wireguard"));
    host.flags = vec!["--network-backend".into(), "wireguard".into()];
    let link = "ip link show pw-wg 2>/dev/null || true";
    if has {
        let server = host.server()?;
        wait_until("the link is there", Duration::from_secs(60), || {
            host.sh(link).is_ok_and(|links| links.contains("pw-wg"))
        })?;
        server.stop()?;
        host.purge()?;
    } else {
        let output = output_of(&mut host.podwright(&["server"]))?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("the kernel has no WireGuard: modprobe wireguard"),
            "{said}"
        );
    }
    assert_eq!(host.sh(link)?.trim(), "");
    host.down()
}

#[test]
fn two_nodes_cannot_share_a_data_directory() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    let output = output_of(&mut host.podwright(&["server"]))?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&format!("in use by process {}", server.pid())),
        "{said}"
    );
    server.stop()?;
    host.down()
}

#[test]
fn two_nodes_run_side_by_side() -> Result<()> {
    let (one, two) = (TestHost::new()?, TestHost::new()?);
    let (first, second) = (one.server()?, two.server()?);
    first.stop()?;
    second.stop()?;
    one.down()?;
    two.down()
}

#[test]
fn an_image_goes_through_standard_output_and_input() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let image = "localhost/busybox:1";
    let archive = host.path().join("image.tar");
    let mut export = host.podwright(&["image", "export", image, "-o", "-"]);
    stdout_of(export.stdout(File::create(&archive)?))?;
    let id = stdout_of(&mut host.podwright(&["image", "ls", "-q"]))?;
    let missing = output_of(&mut host.podwright(&["image", "rm", "a", image, "b"]))?;
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missing.stderr);
    let expected = "error: image \"a\" not found; image \"b\" not found\n";
    assert_eq!(said, expected, "and the other one is gone:");
    let mut import = host.podwright(&["image", "import", "-"]);
    let imported = stdout_of(import.stdin(File::open(&archive)?))?;
    assert_eq!(imported, format!("{} {image}\n", id.trim()));
    host.down()
}
