// SPDX-License-Identifier: Apache-2.0
//! Which sysctls a pod may set: only those that belong to a namespace the pod owns.
//!
//! A pod with the host's network or IPC namespace would otherwise change the host
//! (CVE-2022-0811, CVE-2022-0532). The list is that of runc: what the kernel keeps per namespace.

use std::collections::{BTreeMap, HashMap};

use crate::fault::{Fault, Result};
use crate::oci;

/// Checks and normalises a pod's sysctls (dots between the parts), with those that every pod with
/// its own network gets: unprivileged ports and ping, as containerd 2 sets them. In a user namespace
/// the groups of that range do not exist, so ping stays as the kernel has it.
///
/// # Errors
/// When a name is malformed or belongs to a namespace that the pod shares with the host.
pub(crate) fn resolve(
    wanted: &HashMap<String, String>,
    host_network: bool,
    host_ipc: bool,
    userns: bool,
) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    if !host_network {
        all.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
    }
    if !host_network && !userns {
        all.insert(
            "net.ipv4.ping_group_range".to_owned(),
            "0 2147483647".to_owned(),
        );
    }
    for (name, value) in wanted {
        let name = normal(name)?;
        if value.chars().any(|c| c.is_control()) {
            return Err(Fault::invalid(format!(
                "sysctl {name:?}: the value holds a control character"
            )));
        }
        if name.starts_with("net.") {
            if host_network {
                return Err(refused(&name, "network"));
            }
        } else if oci::sysctl::of_ipc_namespace(&name) {
            if host_ipc {
                return Err(refused(&name, "IPC"));
            }
        } else {
            return Err(Fault::invalid(format!(
                "sysctl {name:?} is not in a separate kernel namespace"
            )));
        }
        all.insert(name, value.clone());
    }
    Ok(all)
}

fn refused(name: &str, namespace: &str) -> Fault {
    Fault::invalid(format!(
        "sysctl {name:?} is not allowed: the pod uses the host's {namespace} namespace"
    ))
}

/// Both spellings are in use, `net.ipv4.x` and `net/ipv4/x`; the first separator says which
/// (sysctl.d(5)), and in the second a dot belongs to the name, as in an interface `eth0.100`.
fn normal(name: &str) -> Result<String> {
    let slashes = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes()[at] == b'/');
    let parts: Vec<&str> = name.split(if slashes { '/' } else { '.' }).collect();
    let good = |part: &&str| {
        !part.is_empty()
            && *part != ".."
            && *part != "."
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*' | '.' | '/'))
            && !(slashes && part.contains('.'))
            && !part.contains("..")
    };
    if parts.len() < 2 || !parts.iter().all(good) || (!slashes && name.contains('/')) {
        return Err(Fault::invalid(format!("sysctl name {name:?} is malformed")));
    }
    Ok(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, host_network: bool, host_ipc: bool) -> Result<BTreeMap<String, String>> {
        let wanted = HashMap::from([(name.to_owned(), "1".to_owned())]);
        resolve(&wanted, host_network, host_ipc, false)
    }

    #[test]
    fn own_namespaces_may_be_set() {
        assert!(check("net.ipv4.tcp_syncookies", false, false).is_ok());
        assert!(
            check("net/ipv4/tcp_syncookies", false, false)
                .unwrap()
                .contains_key("net.ipv4.tcp_syncookies")
        );
        assert!(check("kernel.shm_rmid_forced", true, false).is_ok());
        assert!(check("fs.mqueue.msg_max", false, false).is_ok());
    }

    #[test]
    fn host_namespaces_and_strange_names_are_refused() {
        assert!(check("net.ipv4.ip_forward", true, false).is_err());
        assert!(check("kernel.sem", false, true).is_err());
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net",
            "net/../x",
            "net..x",
            "net.ipv4/../../x",
            "",
        ] {
            assert!(check(name, false, false).is_err(), "{name}");
        }
    }

    #[test]
    fn a_pod_with_its_own_network_may_bind_low_ports() {
        let none = HashMap::new();
        assert_eq!(resolve(&none, false, false, false).unwrap().len(), 2);
        assert_eq!(resolve(&none, false, false, true).unwrap().len(), 1);
        assert!(resolve(&none, true, false, false).unwrap().is_empty());
    }
}
