// SPDX-License-Identifier: Apache-2.0
//! Cgroup directories and files: what both layouts have in common.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::CgroupError;

/// A killed process leaves its cgroup within milliseconds, unless it hangs in the kernel.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(10);
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_path_buf();
    move |source| CgroupError::Io {
        action,
        path,
        source,
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Opened without O_CREAT: in a directory that is no cgroup nothing may appear.
    let open = std::fs::OpenOptions::new().write(true).open(path);
    open.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Write {
            path: path.to_path_buf(),
            value: value.to_owned(),
            source,
        })
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(failed("reading", path))
}

/// A file that holds one number, or `max`, which is `None`.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(read(path)?.trim().parse().ok())
}

/// The value of `key` in a file of `key value` lines; zero when it is not there.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    };
    text.lines().find_map(value).unwrap_or(0)
}

fn absent(error: &io::Error) -> bool {
    // A cgroup that vanishes while its file is open says ENODEV.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Directories below, by name; none when it is gone.
pub(super) fn children(dir: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if absent(&error) => return Ok(Vec::new()),
        other => other.map_err(failed("listing", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("listing", dir))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Pids in this directory and below it.
pub(super) fn pids(dir: &Path) -> Result<Vec<u32>, CgroupError> {
    let procs = dir.join("cgroup.procs");
    let mut pids: Vec<u32> = match std::fs::read_to_string(&procs) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
        Err(error) if absent(&error) => Vec::new(),
        // A threaded cgroup has no list of processes; its parent has.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => return Err(failed("reading", &procs)(error)),
    };
    for child in children(dir)? {
        pids.extend(self::pids(&dir.join(child))?);
    }
    Ok(pids)
}

/// Kills until nobody is left. `fast` kills all at once where the kernel can (cgroup.kill).
pub(super) fn kill(dir: &Path, fast: impl Fn() -> bool) -> Result<(), CgroupError> {
    let start = Instant::now();
    loop {
        let pids = pids(dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        if !fast() {
            for pid in pids {
                // Fails only for one that is gone.
                let _ = shim::sys::kill(pid, libc::SIGKILL);
            }
        }
        if start.elapsed() > KILL_DEADLINE {
            return Err(busy(dir, start));
        }
        std::thread::sleep(PAUSE);
    }
}

fn busy(dir: &Path, start: Instant) -> CgroupError {
    CgroupError::Busy {
        path: dir.display().to_string(),
        waited: start.elapsed(),
    }
}

/// Removes a directory and those below it, deepest first. Files in it are the kernel's.
pub(super) fn remove(dir: &Path) -> Result<(), CgroupError> {
    for child in children(dir)? {
        remove(&dir.join(child))?;
    }
    let start = Instant::now();
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if absent(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if start.elapsed() > REMOVE_DEADLINE {
                    return Err(busy(dir, start));
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(failed("removing", dir)(error)),
        }
    }
}

pub(super) fn utf8(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom 1\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(keyed(text, "oom_kill"), 3);
        assert_eq!(keyed(text, "kill"), 0);
    }

    #[test]
    fn what_is_gone_has_no_pids_and_can_be_removed() {
        let gone = Path::new("/nonexistent/cgroup");
        assert_eq!(pids(gone).expect("none"), [0u32; 0]);
        remove(gone).expect("succeeds");
        kill(gone, || false).expect("succeeds");
    }
}
