// SPDX-License-Identifier: Apache-2.0
//! The v2 freezer: cgroup.freeze asks, cgroup.events tells (kernel 5.2).

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use shim::sys::events;

use crate::cgroup::CgroupError;
use crate::cgroup::files::{self, FREEZE_DEADLINE, failed};

const FILE: &str = "cgroup.freeze";

pub(super) fn freeze(dir: &Path) -> Result<(), CgroupError> {
    let start = Instant::now();
    files::set(dir, "freezer", FILE, "1", "freezing")?;
    if wait_frozen(&dir.join("cgroup.events"), start)? {
        return Ok(());
    }
    // Half frozen is worse than running.
    thaw(dir)?;
    Err(CgroupError::NotFrozen {
        path: dir.display().to_string(),
        waited: start.elapsed(),
    })
}

/// The kernel makes the file readable with priority (POLLPRI) when it changes.
fn wait_frozen(path: &Path, start: Instant) -> Result<bool, CgroupError> {
    let mut file = File::open(path).map_err(failed("opening", path))?;
    loop {
        let mut text = String::new();
        file.rewind()
            .and_then(|()| file.read_to_string(&mut text))
            .map_err(failed("reading", path))?;
        if files::keyed(&text, "frozen") == 1 {
            return Ok(true);
        }
        let left = FREEZE_DEADLINE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let mut fds = [events::interest(file.as_fd(), libc::POLLPRI)];
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        events::poll(&mut fds, left_ms).map_err(|errno| {
            failed("waiting for", path)(std::io::Error::from_raw_os_error(errno))
        })?;
    }
}

pub(super) fn thaw(dir: &Path) -> Result<(), CgroupError> {
    files::set(dir, "freezer", FILE, "0", "freezing")
}

pub(super) fn frozen(dir: &Path) -> Result<bool, CgroupError> {
    let file = dir.join(FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim() == "1"),
        Err(error) if files::absent(&error) => Ok(false),
        Err(error) => Err(failed("reading", &file)(error)),
    }
}
