// SPDX-License-Identifier: Apache-2.0
//! The cgroup of one container.

use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::Spec;

use shim::plan::CgroupJoin;

use super::config::CONFIG;
use super::store::Record;
use super::{Attempt, Failure, Outcome};
use crate::cgroup::{self, CgroupPath, Manager};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug)]
pub(super) struct Cgroup {
    pub manager: Arc<dyn Manager>,
    pub path: CgroupPath,
}

impl Cgroup {
    /// Where `linux.cgroupsPath` says, or a place named after the id. Nothing is made yet.
    pub(super) fn of_spec(systemd: bool, spec: &Spec, id: &str) -> Outcome<Cgroup> {
        let linux = spec.linux().as_ref();
        let given = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let given = given
            .map(|path| path.to_string_lossy())
            .filter(|path| !path.is_empty());
        if !systemd {
            return Ok(Cgroup {
                manager: directly()?,
                path: CgroupPath::new(given.as_deref().unwrap_or(id))
                    .attempt("config.json: linux.cgroupsPath")?,
            });
        }
        let annotations = spec.annotations().iter().flatten();
        let annotations = annotations.map(|(key, value)| (key.as_str(), value.as_str()));
        let properties = cgroup::systemd_properties(annotations).attempt(CONFIG)?;
        Ok(Cgroup {
            manager: by_systemd(properties)?,
            path: cgroup::systemd_path(given.as_deref(), id).attempt(CONFIG)?,
        })
    }

    pub(super) fn of_record(record: &Record) -> Outcome<Cgroup> {
        let manager = match record.systemd {
            true => by_systemd(Vec::new())?,
            false => directly()?,
        };
        Ok(Cgroup {
            manager,
            path: CgroupPath::new(&record.cgroup).attempt("reading the state")?,
        })
    }

    pub(super) fn pids(&self) -> Outcome<Vec<u32>> {
        self.manager.pids(&self.path).attempt("reading the cgroup")
    }

    /// How a new process joins it. Linux 6.18 kills what is cloned into a cgroup that was ever killed
    /// as a whole (`cgroup.kill`), as one that is there already may have been: that is joined by
    /// writing, which takes longer.
    pub(super) fn join(&self) -> CgroupJoin {
        let mut join = self.manager.join(&self.path);
        let there = join.unified.take_if(|dir| Path::new(dir).exists());
        join.v1.extend(there);
        join
    }

    /// A cgroup that somebody uses is not taken over: it would be killed with the container.
    pub(super) fn check_unused(&self) -> Outcome<()> {
        if !self.manager.exists(&self.path) {
            return Ok(());
        }
        let count = self.pids()?.len();
        if count > 0 {
            return Err(Failure::new(format!(
                "container's cgroup is not empty: {count} process(es) found"
            )));
        }
        match self.frozen()? {
            true => Err(Failure::new("container's cgroup unexpectedly frozen")),
            false => Ok(()),
        }
    }

    pub(super) fn frozen(&self) -> Outcome<bool> {
        let frozen = self.manager.frozen(&self.path);
        frozen.attempt("looking at the freezer")
    }

    pub(super) fn freeze(&self) -> Outcome<()> {
        self.manager.freeze(&self.path).attempt("pausing")
    }

    pub(super) fn thaw(&self) -> Outcome<()> {
        self.manager.thaw(&self.path).attempt("resuming")
    }

    /// Ends everything in it, and removes it.
    pub(super) fn destroy(&self) -> Outcome<()> {
        let destroyed = self.manager.destroy(&self.path);
        destroyed.attempt("removing the cgroup")
    }
}

/// Whether this host's controllers are in the unified tree.
pub(super) fn on_v2() -> bool {
    directly().is_ok_and(|manager| manager.is_v2())
}

fn directly() -> Outcome<Arc<dyn Manager>> {
    cgroup::detect(Path::new(CGROUP_ROOT)).attempt("looking for cgroups")
}

fn by_systemd(properties: Vec<(String, cgroup::Value)>) -> Outcome<Arc<dyn Manager>> {
    cgroup::systemd(Path::new(CGROUP_ROOT), properties).attempt("--systemd-cgroup")
}
