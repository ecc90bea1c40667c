// SPDX-License-Identifier: Apache-2.0
//! The AppArmor profile of containers that ask for no other.
//!
//! It forbids what containerd's and Docker's default profiles forbid. The kernel takes compiled
//! profiles only, and the compiler is `apparmor_parser`, so the profile is loaded where that is
//! installed: once, when the first container asks for it, so that it is that of this build. It stays
//! in the kernel after the daemon ends, because containers run under it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::sync::OnceCell;

use crate::blocking;

/// Its name in the kernel.
const NAME: &str = "podwright-default";
const POLICY: &str = "/etc/apparmor.d";
const PARSERS: [&str; 3] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];
/// Written by neither the container nor those in it: what is not a process's own in /proc, but for
/// shared memory's parameters, and all of /sys but cgroups.
const DENIED: [&str; 13] = [
    "@{PROC}/* w",
    "@{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w",
    "@{PROC}/sys/[^k]** w",
    "@{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w",
    "@{PROC}/{sysrq-trigger,kcore} rwklx",
    "mount",
    "/sys/[^f]*/** wklx",
    "/sys/f[^s]*/** wklx",
    "/sys/fs/[^c]*/** wklx",
    "/sys/fs/c[^g]*/** wklx",
    "/sys/fs/cg[^r]*/** wklx",
    "/sys/{firmware,kernel/security}/** rwklx",
    "/sys/devices/virtual/powercap/** rwklx",
];

static LOADED: OnceCell<Option<String>> = OnceCell::const_new();

/// The name of the profile, which is in the kernel then; none where AppArmor or its compiler is not
/// there, or the compiler has failed, which is logged.
pub(crate) async fn default_profile(kernel_has_it: bool) -> Option<String> {
    let load = || async {
        if !kernel_has_it {
            return None;
        }
        match blocking::run("loading the AppArmor profile", load).await {
            Ok(Ok(name)) => return name,
            Ok(Err(error)) => tracing::warn!(error, "containers run without an AppArmor profile"),
            Err(error) => tracing::warn!(%error, "containers run without an AppArmor profile"),
        }
        None
    };
    LOADED.get_or_init(load).await.clone()
}

fn load() -> Result<Option<String>, String> {
    let mut parsers = PARSERS.into_iter();
    let Some(parser) = parsers.find(|path| Path::new(path).exists()) else {
        tracing::info!("no apparmor_parser: containers run without an AppArmor profile");
        return Ok(None);
    };
    let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let text = profile(&Host {
        own: own_label(&own),
        has: &|part| Path::new(POLICY).join(part).exists(),
    });
    let failed = |error: std::io::Error| format!("running {parser}: {error}");
    // Replaces an older build's, and leaves no compiled copy on the disk.
    let mut child = Command::new(parser)
        .args(["--skip-cache", "--replace"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(Some(NAME.to_owned())),
        false => Err(format!(
            "{parser} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// What the profile depends on.
struct Host<'a> {
    /// The daemon's own label.
    own: &'a str,
    /// Whether a part of the distribution's policy is installed.
    has: &'a dyn Fn(&str) -> bool,
}

/// Without the mode that may follow it in parentheses.
fn own_label(current: &str) -> &str {
    let label = current.trim_matches(['\0', '\n', ' ']);
    let label = label.split(" (").next().unwrap_or_default();
    if label.is_empty() {
        "unconfined"
    } else {
        label
    }
}

fn profile(host: &Host<'_>) -> String {
    let mut lines = Vec::new();
    // Since version 4, `network` no longer means local sockets.
    if (host.has)("abi/3.0") {
        lines.push("abi <abi/3.0>,".to_owned());
    }
    lines.push(match (host.has)("tunables/global") {
        true => "include <tunables/global>".to_owned(),
        false => "@{PROC}=/proc/".to_owned(),
    });
    lines.push(format!(
        "profile {NAME} flags=(attach_disconnected,mediate_deleted) {{"
    ));
    if (host.has)("abstractions/base") {
        lines.push("  include <abstractions/base>".to_owned());
    }
    for allowed in ["network", "capability", "file", "umount"] {
        lines.push(format!("  {allowed},"));
    }
    // From the shim, and from whoever runs the OCI commands.
    let mut peers = vec!["unconfined", host.own];
    peers.dedup();
    for peer in peers {
        lines.push(format!("  signal (receive) peer=\"{peer}\","));
    }
    lines.push(format!("  signal (send,receive) peer={NAME},"));
    lines.push(format!(
        "  ptrace (trace,tracedby,read,readby) peer={NAME},"
    ));
    lines.extend(DENIED.iter().map(|rule| format!("  deny {rule},")));
    lines.push("}\n".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_uses_what_is_installed() {
        let bare = profile(&Host {
            own: "unconfined",
            has: &|_| false,
        });
        assert!(bare.starts_with("@{PROC}=/proc/\nprofile podwright-default flags="));
        assert_eq!(bare.matches("signal (receive)").count(), 1);
        assert!(bare.contains("\n  deny mount,\n") && bare.ends_with("\n}\n"));
        let full = profile(&Host {
            own: "/usr/bin/podwright",
            has: &|_| true,
        });
        assert!(full.starts_with("abi <abi/3.0>,\ninclude <tunables/global>\n"));
        assert!(full.contains("{\n  include <abstractions/base>\n"));
        assert!(full.contains("signal (receive) peer=\"/usr/bin/podwright\","));
    }

    #[test]
    fn a_label_is_told_from_its_mode() {
        assert_eq!(own_label("unconfined\n"), "unconfined");
        assert_eq!(own_label("my profile (enforce)\n"), "my profile");
        assert_eq!(own_label(""), "unconfined");
        assert_eq!(own_label("\0"), "unconfined");
    }

    #[tokio::test]
    async fn a_kernel_without_apparmor_needs_no_profile() {
        assert_eq!(default_profile(false).await, None);
    }
}
