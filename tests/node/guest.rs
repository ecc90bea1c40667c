// SPDX-License-Identifier: Apache-2.0
//! The same scenarios once more, by the same test executable, in a guest with Debian's kernel and
//! cgroup v2.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::host::binary;
use vm::GuestConfig;

/// Under an emulated processor everything takes ten times as long.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("no {program} on the path"))
}

/// `tidy` needs the sources, and this module would start a guest in the guest.
const SCENARIOS: &str = "set -e
podwright check
it --skip guest:: --skip tidy:: --test-threads=1
";

#[test]
fn the_scenarios_pass_in_a_guest_with_cgroup_v2() -> Result<()> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
    let config = GuestConfig::new(cache)
        .file(binary(), "usr/bin/podwright")
        .file(std::env::current_exe()?, "usr/bin/it")
        .file(on_path("kubectl")?, "usr/bin/kubectl");
    let outcome = vm::run(&config, SCENARIOS, DEADLINE)?;
    println!("{}", outcome.output);
    let last: Vec<_> = outcome.console.lines().rev().take(20).collect();
    assert_eq!(
        outcome.exit_code,
        Some(0),
        "kernel messages, newest first: {last:#?}"
    );
    Ok(())
}
