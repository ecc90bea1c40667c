// SPDX-License-Identifier: Apache-2.0
//! A new cpuset is empty and takes no process: it is given its parent's CPUs and memory nodes.

use std::path::Path;

use super::Legacy;
use crate::cgroup::files;
use crate::cgroup::{CgroupError, CgroupPath};

impl Legacy {
    pub(super) fn fill_cpuset(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let Some(dir) = self.dir("cpuset", path) else {
            return Ok(());
        };
        for name in ["cpuset.cpus", "cpuset.mems"] {
            fill(&dir, name)?;
        }
        Ok(())
    }
}

/// Fills from the nearest ancestor that has something: usually the parent, so that nothing above
/// it is looked at. Returns what the file now says. The root of the hierarchy is never empty.
fn fill(dir: &Path, name: &str) -> Result<String, CgroupError> {
    let file = dir.join(name);
    let own = files::read(&file)?.trim().to_owned();
    let (true, Some(parent)) = (own.is_empty(), dir.parent()) else {
        return Ok(own);
    };
    let inherited = fill(parent, name)?;
    files::write(&file, &inherited)?;
    Ok(inherited)
}
