// SPDX-License-Identifier: Apache-2.0
//! Debian's cloud kernel, unpacked from its package.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, host_program};

/// The package that depends on the current cloud kernel.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel image and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// `lib/modules/<release>`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel in `cache`, fetched there by `apt-get download` the first time.
    ///
    /// Another process may do the same at once: each unpacks into a folder of its own, and the
    /// first to rename it wins.
    pub fn fetch(cache: &Path) -> Result<Self, Error> {
        let unpacked = cache.join("kernel");
        if !unpacked.is_dir() {
            fs::create_dir_all(cache).map_err(Error::io("creating", cache))?;
            let staging = tempfile::Builder::new()
                .prefix("kernel-")
                .tempdir_in(cache)
                .map_err(Error::io("creating a folder in", cache))?;
            unpack(staging.path())?;
            // Failing because another process was first is as good; what counts is checked below.
            let _ = fs::rename(staging.path().join("root"), &unpacked);
        }
        Self::find(&unpacked)
    }

    fn find(root: &Path) -> Result<Self, Error> {
        let image = only_entry(&root.join("boot"), "vmlinuz-")?;
        let lib = root.join("lib/modules");
        let usr_lib = root.join("usr/lib/modules");
        let modules = only_entry(if lib.is_dir() { &lib } else { &usr_lib }, "")?;
        Ok(Self { image, modules })
    }
}

fn unpack(staging: &Path) -> Result<(), Error> {
    let depends = host_program("apt-cache", "apt", |c| c.args(["depends", METAPACKAGE]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| Error::KernelPackage(format!("dependency in {METAPACKAGE}")))?;
    host_program("apt-get", "apt", |c| {
        c.args(["download", "-qq", package]).current_dir(staging)
    })?;
    let archive = only_entry(staging, "linux-image-")?;
    let root = staging.join("root");
    host_program("dpkg-deb", "dpkg", |c| {
        c.arg("--extract").arg(&archive).arg(&root)
    })?;
    // Debian leaves the index of modules to be made at installation.
    let kernel = Kernel::find(&root)?;
    let release = kernel.modules.file_name().unwrap_or_default();
    host_program("depmod", "kmod", |c| c.arg("-b").arg(&root).arg(release))?;
    Ok(())
}

/// The entry of `dir` whose name starts with `prefix`.
fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("reading", dir))?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| Error::KernelPackage(format!("{prefix}* in {}", dir.display())))
}
