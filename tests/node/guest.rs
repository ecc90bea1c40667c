// SPDX-License-Identifier: Apache-2.0
//! The same scenarios once more, by the same test executable, in a guest with Debian's kernel and
//! cgroup v2.

use std::path::{Path, PathBuf};
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

/// `tidy` needs the sources, `streams` a terminal by script(1), which the guest has not, and this
/// module would start a guest in the guest.
const SCENARIOS: &str = "set -e
podwright check
node --skip guest:: --skip tidy:: --skip streams:: --test-threads=1
";

/// The newest executable of another crate's test target, which cargo puts beside this one.
fn test_executable(target: &str) -> Result<PathBuf> {
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
    let newest = found.pop();
    newest.map(|(_, path)| path).with_context(|| {
        format!(
            "no test executable {target} in {}; build the workspace's tests first",
            dir.display()
        )
    })
}

fn guest() -> GuestConfig {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
    GuestConfig::new(cache).file(binary(), "usr/bin/podwright")
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
    let config = guest().file(test_executable("runtime")?, "usr/bin/runtime");
    passed(&vm::run(&config, "runtime --test-threads=1", DEADLINE)?);
    Ok(())
}
