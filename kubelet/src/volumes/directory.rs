// SPDX-License-Identifier: Apache-2.0
//! The directory behind a volume: on disk, or a tmpfs of its own.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::{SetUpError, at};

/// How the root of a volume looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    /// Mount a tmpfs of this many bytes; 0 means no bound.
    pub(super) tmpfs_bytes: Option<i64>,
    pub(super) mode: u32,
    /// `fsGroup`.
    pub(super) group: Option<u32>,
    /// Containers write here, so the group may as well.
    pub(super) writable: bool,
}

/// Makes the volume's root, once: after `mark` exists only a lost tmpfs is mounted again, and
/// what a container did to the directory stays as it is.
pub(super) fn set_up(dir: &Path, mark: &Path, root: Root) -> Result<(), SetUpError> {
    make_private(dir)?;
    let needs_mount = root.tmpfs_bytes.is_some() && !is_mount_point(dir)?;
    if !needs_mount && mark.exists() {
        return Ok(());
    }
    if let (true, Some(bytes)) = (needs_mount, root.tmpfs_bytes) {
        mount_tmpfs(dir, bytes)?;
    }
    dress(dir, root)?;
    if let Some(parent) = mark.parent() {
        make_private(parent)?;
    }
    fs::write(mark, "").map_err(at("marking", mark))
}

/// Makes directories that only the node's root enters, like upstream's 0750.
pub(crate) fn make_private(dir: &Path) -> Result<(), SetUpError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .map_err(at("creating", dir))
}

fn dress(dir: &Path, root: Root) -> Result<(), SetUpError> {
    let mut mode = root.mode;
    if let Some(group) = root.group {
        std::os::unix::fs::lchown(dir, None, Some(group))
            .map_err(at("setting the group of", dir))?;
        // Upstream's masks: rw or r for the group, search, and new files inherit the group.
        mode |= 0o2110 | if root.writable { 0o660 } else { 0o440 };
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .map_err(at("setting the mode of", dir))
}

fn mount_tmpfs(dir: &Path, bytes: i64) -> Result<(), SetUpError> {
    let size = if bytes > 0 {
        format!("size={bytes}")
    } else {
        String::from("mode=0777")
    };
    let attempt = |data: &str| {
        mount(
            Some("tmpfs"),
            dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(data),
        )
    };
    // `noswap` keeps secrets off the disk; kernels before 6.4 don't know it (tmpfs(5)).
    match attempt(&format!("{size},noswap")) {
        Err(Errno::EINVAL) => attempt(&size),
        result => result,
    }
    .map_err(|error| at("mounting a tmpfs on", dir)(error.into()))
}

/// A tmpfs of our own shows as another device than the directory above it.
fn is_mount_point(dir: &Path) -> Result<bool, SetUpError> {
    let above = dir.parent().unwrap_or(dir);
    let device = |path: &Path| {
        fs::metadata(path)
            .map(|meta| meta.dev())
            .map_err(at("reading", path))
    };
    Ok(device(dir)? != device(above)?)
}
