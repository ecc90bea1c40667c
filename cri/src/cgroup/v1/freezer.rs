// SPDX-License-Identifier: Apache-2.0
//! The v1 freezer (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup::files::{self, failed};
use crate::cgroup::{CgroupError, files::FREEZE_DEADLINE};

const STATE: &str = "freezer.state";

pub(super) fn absent() -> CgroupError {
    CgroupError::Unsupported {
        field: "freezing".to_owned(),
        reason: "the cgroup controller freezer is not mounted".to_owned(),
    }
}

/// Asks again and again: a process that forks while it is being frozen leaves the state at FREEZING,
/// and nothing completes it but another write. One that waits in the kernel for another frozen
/// process (vfork) is helped by a short thaw.
pub(super) fn freeze(dir: &Path) -> Result<(), CgroupError> {
    const TRIES_BEFORE_THAW: u32 = 50;
    let file = dir.join(STATE);
    let start = Instant::now();
    for attempt in 1u32.. {
        files::write(&file, "FROZEN")?;
        if read(&file)? == "FROZEN" {
            return Ok(());
        }
        if start.elapsed() > FREEZE_DEADLINE {
            break;
        }
        if attempt.is_multiple_of(TRIES_BEFORE_THAW) {
            files::write(&file, "THAWED")?;
        }
        std::thread::sleep(Duration::from_micros(10 * u64::from(attempt.min(100))));
    }
    // Half frozen is worse than running.
    files::write(&file, "THAWED")?;
    Err(CgroupError::NotFrozen {
        path: dir.display().to_string(),
        waited: start.elapsed(),
    })
}

pub(super) fn thaw(dir: &Path) -> Result<(), CgroupError> {
    files::write(&dir.join(STATE), "THAWED")
}

/// This cgroup and those below: each has a state of its own. One that is gone has nobody in it.
pub(super) fn thaw_all(dir: &Path) {
    let _ = thaw(dir);
    for child in files::children(dir).unwrap_or_default() {
        thaw_all(&dir.join(child));
    }
}

pub(super) fn frozen(dir: &Path) -> Result<bool, CgroupError> {
    let file = dir.join("freezer.self_freezing");
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim() == "1"),
        Err(error) if files::absent(&error) => Ok(false),
        Err(error) => Err(failed("reading", &file)(error)),
    }
}

fn read(file: &Path) -> Result<String, CgroupError> {
    Ok(files::read(file)?.trim().to_owned())
}
