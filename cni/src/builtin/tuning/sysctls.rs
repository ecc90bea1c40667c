// SPDX-License-Identifier: Apache-2.0
//! Sysctls of a pod's network, and which of them the administrator allows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::super::wrong;
use crate::types::{PluginError, code};

/// The file of a sysctl. `IFNAME` in its name stands for the pod's link. Only those of the network
/// are the pod's own, so no other can be set.
pub(super) fn path(key: &str, ifname: &str) -> Result<PathBuf, String> {
    let name = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let below = name.strip_prefix("net/").filter(|rest| {
        !rest
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
    });
    // The dots are gone, so a name cannot climb; but it can be empty in between.
    match below {
        Some(rest) => Ok(Path::new("/proc/sys/net").join(rest)),
        None => Err(format!("invalid net sysctl key: {key:?}")),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> PluginError {
    wrong(format!("{what} {}: {error}", path.display()))
}

fn checked(key: &str, ifname: &str) -> Result<PathBuf, PluginError> {
    path(key, ifname).map_err(|e| PluginError::new(code::INVALID_CONFIG, e))
}

/// Set one, of the namespace of this thread.
pub(super) fn set(key: &str, ifname: &str, value: &str) -> Result<(), PluginError> {
    let path = checked(key, ifname)?;
    fs::write(&path, value).map_err(|e| failed(&format!("writing {value:?} to"), &path, &e))
}

/// The value of one, of the namespace of this thread.
pub(super) fn get(key: &str, ifname: &str) -> Result<String, PluginError> {
    let path = checked(key, ifname)?;
    let text = fs::read_to_string(&path).map_err(|e| failed("reading", &path, &e))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// Every sysctl must fit a line of the list, which is a regular expression. Without a list all are
/// allowed.
pub(super) fn check_allowed(
    sysctls: &BTreeMap<String, String>,
    list: &Path,
) -> Result<(), PluginError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let text = match fs::read_to_string(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed("reading", list, &e))?,
    };
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let mut allowed = Vec::new();
    for line in &lines {
        let place = list.display();
        let regex = Regex::new(line).map_err(|e| wrong(format!("{place}: {line:?}: {e}")))?;
        allowed.push(regex);
    }
    for key in sysctls.keys() {
        if !allowed.iter().any(|regex| regex.is_match(key)) {
            return Err(PluginError::new(
                code::INVALID_CONFIG,
                format!(
                    "Sysctl {key} is not allowed. Only the following sysctls are allowed: {lines:?}"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_network() {
        let shown = |key: &str| path(key, "eth0").map(|p| p.display().to_string());
        assert_eq!(
            shown("net.ipv4.conf.IFNAME.proxy_arp").as_deref(),
            Ok("/proc/sys/net/ipv4/conf/eth0/proxy_arp")
        );
        assert_eq!(
            shown("net/ipv4/ip_forward").as_deref(),
            Ok("/proc/sys/net/ipv4/ip_forward")
        );
        for key in [
            "",
            "net",
            "net.",
            "kernel.panic",
            "net/../kernel/panic",
            "/net/x",
            "net//x",
        ] {
            assert!(shown(key).is_err(), "{key}");
        }
    }

    #[test]
    fn the_administrator_says_which() {
        let dir = tempfile::tempdir().expect("a directory");
        let list = dir.path().join("allowlist.conf");
        let wanted = BTreeMap::from([("net.core.somaxconn".to_owned(), "1".to_owned())]);
        check_allowed(&wanted, &list).expect("no list");
        fs::write(&list, "^net\\.ipv4\\..*$\n\n").expect("written");
        let text = check_allowed(&wanted, &list).expect_err("not on it").msg;
        assert!(
            text.starts_with("Sysctl net.core.somaxconn is not allowed."),
            "{text}"
        );
        fs::write(&list, "^net\\.ipv4\\..*$\n  ^net\\.core\\.  \n").expect("written");
        check_allowed(&wanted, &list).expect("on it");
        fs::write(&list, "(\n").expect("written");
        check_allowed(&wanted, &list).expect_err("no expression");
    }
}
