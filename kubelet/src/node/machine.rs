// SPDX-License-Identifier: Apache-2.0
//! What this machine is: read once from `/proc`, `/sys` and `/etc`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::NodeError;

/// Facts that don't change while the kernel runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Machine {
    pub(super) kernel_version: String,
    pub(super) os_image: String,
    pub(super) machine_id: String,
    pub(super) system_uuid: String,
    pub(super) boot_id: String,
    pub(super) architecture: String,
    pub(super) cpus: i64,
    pub(super) memory_bytes: i64,
    pub(super) swap_bytes: i64,
    pub(super) storage_bytes: i64,
}

/// A filesystem's size and room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Filesystem {
    pub(crate) capacity_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// What is left right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Room {
    pub(crate) memory_bytes: u64,
    pub(crate) memory_available_bytes: u64,
    pub(crate) nodefs: Filesystem,
    pub(crate) imagefs: Filesystem,
    pub(crate) pids_max: u64,
    pub(crate) pids_used: u64,
}

impl Machine {
    /// Reads the machine below `root` (`/`), and the filesystem that holds `data_dir`.
    pub(super) fn read(root: &Path, data_dir: &Path) -> Result<Self, NodeError> {
        let meminfo = text(&root.join("proc/meminfo"))?;
        let machine_id = first_of(root, &["etc/machine-id", "var/lib/dbus/machine-id"]);
        let product = first_of(root, &["sys/class/dmi/id/product_uuid"]);
        let os_release = first_of(root, &["etc/os-release", "usr/lib/os-release"]);
        let storage = filesystem(data_dir)?.capacity_bytes;
        Ok(Self {
            kernel_version: trimmed(&root.join("proc/sys/kernel/osrelease"))?,
            os_image: os_image(&os_release),
            system_uuid: if product.is_empty() {
                machine_id.clone()
            } else {
                product
            },
            machine_id,
            boot_id: trimmed(&root.join("proc/sys/kernel/random/boot_id"))?,
            architecture: architecture().to_owned(),
            cpus: online_cpus(&trimmed(&root.join("sys/devices/system/cpu/online"))?),
            memory_bytes: signed(meminfo_bytes(&meminfo, "MemTotal")),
            swap_bytes: signed(meminfo_bytes(&meminfo, "SwapTotal")),
            storage_bytes: signed(storage),
        })
    }
}

impl Room {
    /// Measures now. `images` is where the runtime keeps images, if it says so.
    pub(crate) fn measure(
        root: &Path,
        data_dir: &Path,
        images: Option<&Path>,
    ) -> Result<Self, NodeError> {
        let meminfo = text(&root.join("proc/meminfo"))?;
        let nodefs = filesystem(data_dir)?;
        // The runtime may report a path of its own mount namespace; then the node's counts.
        let imagefs = images.and_then(|path| filesystem(path).ok());
        let pids_max = trimmed(&root.join("proc/sys/kernel/pid_max"))?;
        let loadavg = trimmed(&root.join("proc/loadavg"))?;
        Ok(Self {
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
            nodefs,
            imagefs: imagefs.unwrap_or(nodefs),
            pids_max: pids_max.parse().unwrap_or_default(),
            pids_used: tasks(&loadavg),
        })
    }
}

/// Size and room of the filesystem that holds `path`, or the nearest directory above it that
/// exists.
pub(crate) fn filesystem(path: &Path) -> Result<Filesystem, NodeError> {
    let mut existing = path;
    while !existing.exists() {
        match existing.parent() {
            Some(parent) => existing = parent,
            None => break,
        }
    }
    let stat = statvfs(existing).map_err(|error| failed(path)(error.into()))?;
    let block = stat.fragment_size();
    Ok(Filesystem {
        capacity_bytes: stat.blocks().saturating_mul(block),
        available_bytes: stat.blocks_available().saturating_mul(block),
        used_bytes: stat
            .blocks()
            .saturating_sub(stat.blocks_free())
            .saturating_mul(block),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = PathBuf::from(path);
    move |source| NodeError::Machine { path, source }
}

fn text(path: &Path) -> Result<String, NodeError> {
    fs::read_to_string(path).map_err(failed(path))
}

fn trimmed(path: &Path) -> Result<String, NodeError> {
    Ok(text(path)?.trim().to_owned())
}

fn first_of(root: &Path, paths: &[&str]) -> String {
    let texts = paths.iter().map(|path| trimmed(&root.join(path)));
    texts
        .flatten()
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

/// Go's names, which Kubernetes uses in labels and manifests.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// `PRETTY_NAME` of os-release(5).
fn os_image(os_release: &str) -> String {
    let line = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    match line.map(|value| value.trim().trim_matches(['"', '\''])) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "Linux".to_owned(),
    }
}

/// One line of proc_meminfo(5), in bytes; 0 when it isn't there.
fn meminfo_bytes(meminfo: &str, field: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

/// Counts a list such as `0-3,6`.
fn online_cpus(list: &str) -> i64 {
    let count = list.split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<i64>(), last.trim().parse::<i64>()) {
            (Ok(first), Ok(last)) if last >= first => last - first + 1,
            _ => 0,
        }
    });
    count.sum::<i64>().max(1)
}

/// The number of tasks in proc_loadavg(5): `0.1 0.2 0.3 1/234 5678`.
fn tasks(loadavg: &str) -> u64 {
    let field = loadavg.split_whitespace().nth(3);
    let total = field.and_then(|field| field.split_once('/')?.1.parse().ok());
    total.unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let meminfo = "MemTotal:       24676232 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemTotal"), 24_676_232 * 1024);
        assert_eq!(meminfo_bytes(meminfo, "SwapTotal"), 0);
        assert_eq!(tasks("0.50 0.40 0.30 2/345 6789"), 345);
        assert_eq!(tasks(""), 0);
        for (list, want) in [("0-1", 2), ("0", 1), ("0-3,6,8-9", 7), ("", 1)] {
            assert_eq!(online_cpus(list), want, "{list:?}");
        }
    }

    #[test]
    fn the_image_name_is_the_pretty_one() {
        let debian = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_image(debian), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read(Path::new("/"), Path::new("/not/made/yet")).expect("reads");
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.storage_bytes > 0);
        let room = Room::measure(Path::new("/"), Path::new("/"), None).expect("measures");
        assert!(room.memory_available_bytes > 0 && room.pids_used > 0);
    }
}
