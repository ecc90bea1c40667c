// SPDX-License-Identifier: Apache-2.0
//! Tests of this workspace run once more in a guest, by the same executables.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use vm::{GuestConfig, Outcome};

use crate::host::binary;

/// A guest with the executable under test. `cache` is a folder for the kernel
/// (`CARGO_TARGET_TMPDIR`, which only test targets know).
pub fn with_podwright(cache: &str) -> GuestConfig {
    let cache = Path::new(cache).join("vm");
    GuestConfig::new(cache).file(binary(), "usr/bin/podwright")
}

/// A program of this host.
pub fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("no {program} on the path"))
}

/// The newest executable of another test target, which cargo puts beside this one. Several crates
/// may have a target of this name: it is the one that has this test.
pub fn test_executable(target: &str, with: &str) -> Result<PathBuf> {
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

/// The line of a scenario that runs these tests by name, and fails when one of them is not there.
pub fn exactly(executable: &str, tests: &str, threads: u32) -> String {
    let count = tests.split_whitespace().count();
    format!(
        "{executable} --exact --test-threads={threads} {tests} >/tmp/said 2>&1; code=$?; cat /tmp/said\n\
         grep -q 'ok. {count} passed' /tmp/said || exit 1; [ $code = 0 ] || exit $code\n"
    )
}

/// Shows what a guest said; a failure shows the kernel's last words as well.
pub fn passed(outcome: &Outcome) {
    println!("{}", outcome.output);
    let last: Vec<_> = outcome.console.lines().rev().take(20).collect();
    assert_eq!(
        outcome.exit_code,
        Some(0),
        "kernel messages, newest first: {last:#?}"
    );
}
