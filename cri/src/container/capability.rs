// SPDX-License-Identifier: Apache-2.0
//! Capability sets: the default list, plus what is added, minus what is dropped, `ALL` included.

use std::collections::BTreeSet;

use crate::fault::{Fault, Result};
use crate::oci::spec::DEFAULT_CAPABILITIES;
use crate::v1;

/// Every capability of Linux 5.9 and later, without the `CAP_` prefix (capabilities(7)).
pub(crate) const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The sets of a container's first process. Inheritable equals ambient: nothing is inheritable
/// unless asked for by name (CVE-2022-29162 and its kin).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Bounding, permitted and effective.
    pub(crate) bounding: BTreeSet<&'static str>,
    /// Ambient and inheritable.
    pub(crate) ambient: BTreeSet<&'static str>,
}

/// Computes the sets. `held` is what this process may hand on; `ALL` means that.
///
/// # Errors
/// When a name is not a Linux capability or not held, or an ambient one is not among those granted.
pub(crate) fn resolve(
    wish: Option<&v1::Capability>,
    held: &BTreeSet<&'static str>,
) -> Result<Capabilities> {
    let default: BTreeSet<&'static str> = DEFAULT_CAPABILITIES
        .into_iter()
        .filter(|name| held.contains(name))
        .collect();
    let Some(wish) = wish else {
        return Ok(Capabilities {
            bounding: default,
            ambient: BTreeSet::new(),
        });
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut bounding: BTreeSet<&'static str> = if wish.drop_capabilities.iter().any(is_all) {
        BTreeSet::new()
    } else if wish.add_capabilities.iter().any(is_all) {
        held.clone()
    } else {
        default
    };
    for name in wish.add_capabilities.iter().filter(|n| !is_all(n)) {
        let name = parse(name, "add")?;
        if !held.contains(name) {
            return Err(Fault::invalid(format!(
                "capability {name:?} cannot be added: podwright itself does not hold it"
            )));
        }
        bounding.insert(name);
    }
    for name in wish.drop_capabilities.iter().filter(|n| !is_all(n)) {
        bounding.remove(parse(name, "drop")?);
    }
    let mut ambient = BTreeSet::new();
    for name in &wish.add_ambient_capabilities {
        let name = parse(name, "add as ambient")?;
        if !bounding.contains(name) {
            return Err(Fault::invalid(format!(
                "capability {name:?} cannot be ambient: it is not granted to the container"
            )));
        }
        ambient.insert(name);
    }
    Ok(Capabilities { bounding, ambient })
}

/// What this process may hand on to a container.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn held() -> Result<BTreeSet<&'static str>> {
    let held = caps::read(None, caps::CapSet::Permitted)
        .map_err(|e| Fault::internal("reading our own capabilities", e))?;
    let names: Vec<String> = held.iter().map(ToString::to_string).collect();
    Ok(ALL
        .into_iter()
        .filter(|known| names.iter().any(|n| n.strip_prefix("CAP_") == Some(known)))
        .collect())
}

fn parse(name: &str, verb: &str) -> Result<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter()
        .find(|known| *known == bare)
        .ok_or_else(|| Fault::invalid(format!("unknown capability {name:?} to {verb}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(add: &[&str], drop: &[&str]) -> v1::Capability {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        v1::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: Vec::new(),
        }
    }

    fn all() -> BTreeSet<&'static str> {
        ALL.into_iter().collect()
    }

    fn check(add: &[&str], drop: &[&str]) -> BTreeSet<&'static str> {
        resolve(Some(&wish(add, drop)), &all()).unwrap().bounding
    }

    #[test]
    fn add_and_drop_work_on_the_default_list() {
        let sets = check(&["net_admin", "CAP_SYS_TIME"], &["CHOWN"]);
        assert!(sets.contains("NET_ADMIN") && sets.contains("SYS_TIME"));
        assert!(!sets.contains("CHOWN") && sets.contains("KILL"));
    }

    #[test]
    fn all_is_a_word_of_its_own() {
        assert_eq!(check(&["ALL"], &[]).len(), ALL.len());
        assert!(check(&[], &["ALL"]).is_empty());
        assert_eq!(check(&["KILL"], &["all"]), BTreeSet::from(["KILL"]));
        assert!(!check(&["ALL"], &["SYS_ADMIN"]).contains("SYS_ADMIN"));
        let few = BTreeSet::from(["KILL"]);
        assert_eq!(
            resolve(Some(&wish(&["ALL"], &[])), &few).unwrap().bounding,
            few
        );
        assert!(resolve(Some(&wish(&["SYS_TIME"], &[])), &few).is_err());
    }

    #[test]
    fn unknown_names_and_ungranted_ambient_ones_are_refused() {
        assert!(resolve(Some(&wish(&["FLY"], &[])), &all()).is_err());
        let mut ambient = wish(&[], &["ALL"]);
        ambient.add_ambient_capabilities = vec!["KILL".into()];
        assert!(resolve(Some(&ambient), &all()).is_err());
    }
}
