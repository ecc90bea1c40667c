// SPDX-License-Identifier: Apache-2.0
//! What a container gets from outside, beside its cgroup: network devices of ours, and Intel RDT
//! groups.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::config::CONFIG;
use super::store::Store;
use super::{Attempt, Failure, Outcome};
use crate::oci::intel_rdt::{self, Groups};
use crate::oci::net_devices::{self, Move};

#[derive(Debug, Default)]
pub(super) struct Outside {
    devices: Vec<Move>,
    /// The namespace that is joined; none: the container has one of its own.
    netns: Option<PathBuf>,
    rdt: Option<Groups>,
}

impl Outside {
    /// Nothing is made yet.
    pub(super) fn of_spec(spec: &Spec, id: &str) -> Outcome<Outside> {
        let Some(linux) = spec.linux() else {
            return Ok(Outside::default());
        };
        let namespaces = linux.namespaces().iter().flatten();
        let mut networks = namespaces.filter(|space| space.typ() == LinuxNamespaceType::Network);
        let netns = networks.next().and_then(|space| space.path().clone());
        Ok(Outside {
            devices: net_devices::net_devices(linux).attempt(CONFIG)?,
            netns: netns.filter(|path| !path.as_os_str().is_empty()),
            rdt: groups(spec, id)?,
        })
    }

    /// Keeps what will have to be removed, also should we be killed.
    pub(super) fn keep(&self, store: &Store, id: &str) -> Outcome<()> {
        let leftovers = self.rdt.as_ref().map(Groups::leftovers);
        match leftovers.filter(|groups| !groups.is_empty()) {
            Some(groups) => store.save_groups(id, &groups),
            None => Ok(()),
        }
    }

    /// For a process that has its namespaces, before any hook runs. Devices that were moved are the
    /// namespace's, and end or come back with it.
    pub(super) fn give_to(&self, pid: u32) -> Outcome<()> {
        let own = || PathBuf::from(format!("/proc/{pid}/ns/net"));
        let netns = self.netns.clone().unwrap_or_else(own);
        net_devices::move_all(&self.devices, &netns).attempt(CONFIG)?;
        match &self.rdt {
            Some(groups) => groups.join(pid).attempt(CONFIG),
            None => Ok(()),
        }
    }
}

/// The Intel RDT groups of a specification.
pub(super) fn groups(spec: &Spec, id: &str) -> Outcome<Option<Groups>> {
    let linux = spec.linux().as_ref();
    let rdt = linux
        .map(intel_rdt::intel_rdt)
        .transpose()
        .attempt(CONFIG)?;
    let Some(rdt) = rdt.flatten() else {
        return Ok(None);
    };
    const MOUNTS: &str = "/proc/self/mountinfo";
    let table = std::fs::read_to_string(MOUNTS).attempt(format_args!("reading {MOUNTS}"))?;
    let root = intel_rdt::mounted(&table);
    rdt.groups(root.as_deref(), id).map(Some).attempt(CONFIG)
}

/// `update --l3-cache-schema` and `--mem-bw-schema`.
pub(super) fn update_schemata(spec: &Spec, id: &str, flags: &[(&str, &str)]) -> Outcome<()> {
    let Some(groups) = groups(spec, id)? else {
        let flag = flags.first().map_or("", |(flag, _)| flag);
        let reason = "updating a non-existent Intel RDT configuration is not supported";
        return Err(Failure::new(format!("{flag}: {reason}")));
    };
    for (flag, schema) in flags {
        groups
            .write_schemata(&format!("{schema}\n"))
            .attempt(flag)?;
    }
    Ok(())
}

/// Removes what [`Outside::keep`] has noted.
pub(super) fn remove(store: &Store, id: &str) -> Outcome<()> {
    intel_rdt::remove(&store.groups(id)?).attempt("deleting")
}
