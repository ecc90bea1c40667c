// SPDX-License-Identifier: Apache-2.0
//! Plugins as executables: ours and the reference ones, called by the protocol.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Where Debian has the reference plugins.
pub(crate) const REFERENCE: &str = "/usr/lib/cni";

pub(crate) fn executable() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cni-plugin"))
}

/// A plugin directory with our executable under the names of the plugins.
pub(crate) fn our_plugins(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).expect("mkdir");
    for name in cni::plugin_names() {
        std::os::unix::fs::symlink(executable(), bin.join(name)).expect("symlink");
    }
    bin
}

/// Debian's plugins, or ours in `dir`.
pub(crate) fn plugins(reference: bool, dir: &Path) -> PathBuf {
    let bin = match reference {
        true => PathBuf::from(REFERENCE),
        false => our_plugins(dir),
    };
    assert!(
        bin.join("bridge").exists(),
        "apt install containernetworking-plugins"
    );
    bin
}

/// Call a plugin, and return whether it succeeded and what it printed.
pub(crate) fn call(
    bin: &Path,
    plugin: &str,
    verb: &str,
    netns: &str,
    conf: &Value,
) -> (bool, Value) {
    call_as(bin, plugin, verb, netns, "", conf)
}

/// [`call`] with `CNI_ARGS`.
pub(crate) fn call_as(
    bin: &Path,
    plugin: &str,
    verb: &str,
    netns: &str,
    args: &str,
    conf: &Value,
) -> (bool, Value) {
    let mut child = Command::new(bin.join(plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", bin)
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a plugin");
    let mut input = child.stdin.take().expect("piped");
    // A plugin that refuses its environment ends without reading.
    if let Err(error) = input.write_all(conf.to_string().as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
    }
    drop(input);
    let out = child.wait_with_output().expect("output");
    (
        out.status.success(),
        serde_json::from_slice(&out.stdout).unwrap_or(Value::Null),
    )
}
