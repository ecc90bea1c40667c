// SPDX-License-Identifier: Apache-2.0
//! Cgroup directories and files: what both layouts have in common.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CgroupError, Memory, convert};

/// A killed process leaves its cgroup within milliseconds, unless it hangs in the kernel.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// As runc waits.
pub(super) const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
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

/// Writes a limit. A file that is not there, in a cgroup that is, means that the kernel was built or
/// booted without that feature: the error names the field that asked for it.
pub(super) fn set(
    dir: &Path,
    controller: &'static str,
    file: &str,
    value: &str,
    field: &str,
) -> Result<(), CgroupError> {
    match write(&dir.join(file), value) {
        Err(CgroupError::Write { source, .. })
            if source.kind() == io::ErrorKind::NotFound && dir.exists() =>
        {
            Err(CgroupError::Absent {
                field: field.to_owned(),
                controller,
                file: file.to_owned(),
            })
        }
        other => other,
    }
}

/// `suffix` is the layout's name for a limit. Both what is used and what is reserved are limited,
/// the latter where the kernel has it (5.7).
pub(super) fn hugepages(
    dir: &Path,
    controller: &'static str,
    limits: &[(String, u64)],
    suffix: &str,
) -> Result<(), CgroupError> {
    let sizes = hugepage_sizes();
    for (size, bytes) in limits {
        if !sizes.contains(size) {
            return Err(CgroupError::Invalid {
                field: "linux.resources.hugepageLimits.pageSize".to_owned(),
                reason: format!(
                    "{size:?} is not one of this machine's: {}",
                    sizes.join(", ")
                ),
            });
        }
        let field = "linux.resources.hugepageLimits.limit";
        let value = bytes.to_string();
        set(
            dir,
            controller,
            &format!("hugetlb.{size}.{suffix}"),
            &value,
            field,
        )?;
        let reserved = format!("hugetlb.{size}.rsvd.{suffix}");
        match set(dir, controller, &reserved, &value, field) {
            Err(CgroupError::Absent { .. }) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The page sizes of this machine, as the kernel's files name them.
pub(super) fn hugepage_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages");
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        Some(convert::page_size_name(kilobytes.parse().ok()?))
    };
    let mut sizes: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(name)
        .collect();
    sizes.sort();
    sizes
}

/// For `checkBeforeUpdate`. A cgroup whose usage cannot be read is new, and uses nothing.
pub(super) fn check_usage(usage: Option<u64>, limits: &Memory) -> Result<(), CgroupError> {
    let Some(usage) = usage else {
        return Ok(());
    };
    for (what, limit) in [("memory+swap", limits.swap), ("memory", limits.limit)] {
        if let Some(limit) = limit.filter(|limit| *limit > 0 && limit.unsigned_abs() <= usage) {
            return Err(CgroupError::BelowUsage { what, limit, usage });
        }
    }
    Ok(())
}

pub(super) fn errno(error: &CgroupError) -> Option<i32> {
    match error {
        CgroupError::Write { source, .. } | CgroupError::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(failed("reading", path))
}

/// A file that holds one number, or `max`, which is `None`.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(read(path)?.trim().parse().ok())
}

/// As [`number`], zero when it is `max`, `None` when there is no such file.
pub(super) fn optional(path: &Path) -> Result<Option<u64>, CgroupError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().parse().unwrap_or(0))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

/// Every `key value` line.
pub(super) fn map(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// The value of `key` in a file of `key value` lines; zero when it is not there.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    };
    text.lines().find_map(value).unwrap_or(0)
}

pub(super) fn absent(error: &io::Error) -> bool {
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
    names.sort();
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

/// Removes a directory that has neither processes nor directories; whether it is gone.
pub(super) fn remove_unused(dir: &Path) -> bool {
    match std::fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) => absent(&error),
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
