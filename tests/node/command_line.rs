// SPDX-License-Identifier: Apache-2.0
//! The command line itself.

use anyhow::Result;
use tests::TestHost;
use tests::host::{output_of, stdout_of};

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
