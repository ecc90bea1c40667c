// SPDX-License-Identifier: Apache-2.0
//! Kernel parameters: only those of namespaces that are the container's own.

use oci_spec::runtime::Linux;
use shim::plan::{Namespace, Namespaces};

use super::compile::{CompileError, invalid, unsupported};

pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, CompileError> {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    all.into_iter()
        .map(|(name, value)| Ok((sysctl_path(name, namespaces)?, value.clone())))
        .collect()
}

/// Whether a parameter, with dots, belongs to the IPC namespace (ipc_namespaces(7)).
pub(crate) fn of_ipc_namespace(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    NAMES.contains(&name) || name.starts_with("fs.mqueue.")
}

/// The path below /proc/sys, if the parameter belongs to a namespace of the container's own.
/// Dots separate; a slash stands for a dot in a name (sysctl.d(5)).
pub(super) fn sysctl_path(name: &str, namespaces: &Namespaces) -> Result<String, CompileError> {
    let field = || format!("linux.sysctl[{name}]");
    let slashes_first = name.find('/') < name.find('.') && name.contains('/');
    let dotted = match slashes_first {
        true => name.replace('/', "."),
        false => name.to_owned(),
    };
    let owner = if dotted.starts_with("net.") {
        Some(("network", &namespaces.net))
    } else if of_ipc_namespace(&dotted) {
        Some(("ipc", &namespaces.ipc))
    } else if dotted == "kernel.domainname" {
        Some(("uts", &namespaces.uts))
    } else {
        None
    };
    match owner {
        None => Err(unsupported(field(), "it is not a namespaced parameter")),
        Some((kind, Namespace::Host)) => Err(invalid(
            field(),
            format!("it would change the host's {kind} namespace"),
        )),
        Some(_) => {
            let path = match slashes_first {
                true => name.to_owned(),
                false => name
                    .chars()
                    .map(|c| match c {
                        '.' => '/',
                        '/' => '.',
                        other => other,
                    })
                    .collect(),
            };
            match path.split('/').any(|part| part.is_empty() || part == "..") {
                true => Err(invalid(field(), "it is no parameter name")),
                false => Ok(path),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_must_belong_to_the_container() {
        let own = Namespaces {
            net: Namespace::New,
            ipc: Namespace::New,
            ..Namespaces::default()
        };
        let path = |name| sysctl_path(name, &own);
        assert_eq!(
            path("net.ipv4.ip_forward"),
            Ok("net/ipv4/ip_forward".into())
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding"),
            Ok("net/ipv4/conf/eth0.100/forwarding".into())
        );
        assert!(path("kernel.core_pattern").is_err());
        assert!(path("net.../x").is_err());
        assert!(sysctl_path("net.core.somaxconn", &Namespaces::default()).is_err());
    }
}
