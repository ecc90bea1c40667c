// SPDX-License-Identifier: Apache-2.0
//! Directories that a layer's archive implies without listing them: they take owner, mode, times and
//! attributes of the directory that lies below, as with containerd. With none below they stay as they
//! were made, 0755 and root's.
//!
//! Layers are unpacked side by side, each whatever lies below it, so this is done when all of an image
//! are there and before it is visible. It is done once for a layer. A second image that has the same
//! layer over other directories shows those of the first: nothing is changed under a container that
//! runs. (containerd unpacks such a layer twice.)

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use xattr::FileExt;

use super::content::layer_error;
use super::disk::Disk;
use super::error::{ContentError, ImageError};
use super::layer::is_overlays;
use super::records::{self, LayerOf, LayerRecord};
use super::rooted::Root;

/// As many are kept of a layer; more stay as they were made. Real layers imply a handful.
pub(crate) const MOST: usize = 4096;

/// Completes the layers of an image, bottom first. Blocks. The caller holds the lock of the records, so
/// nobody sees a layer half done; what a crash leaves half done is done again.
///
/// Returns whether anything was to be done.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn complete(disk: &Disk, layers: &[LayerOf]) -> Result<bool, ImageError> {
    let mut changed = false;
    for (index, of) in layers.iter().enumerate() {
        let path = disk.layer_record(&of.diff_id);
        let Some(record) = records::read::<LayerRecord>(&path)? else {
            continue;
        };
        if record.implied.is_empty() {
            continue;
        }
        let below: Vec<_> = layers[..index]
            .iter()
            .rev()
            .map(|lower| disk.layer(&lower.diff_id))
            .collect();
        let failed = |entry: &str, source| {
            let entry = entry.to_owned();
            layer_error(&of.blob, ContentError::Write { entry, source })
        };
        let own = Root::open(&disk.layer(&of.diff_id)).map_err(|e| failed("/", e))?;
        let below: Vec<Root> = below
            .iter()
            .map(|dir| Root::open(dir))
            .collect::<io::Result<_>>()
            .map_err(|e| failed("/", e))?;
        for name in &record.implied {
            take_over(&own, &below, Path::new(name)).map_err(|e| failed(name, e))?;
        }
        let record = LayerRecord {
            implied: Vec::new(),
            ..record
        };
        records::write_unsynced(&path, &record)?;
        changed = true;
    }
    Ok(changed)
}

/// From the topmost of the layers below that has something of this name. If that is no directory, the
/// implied one replaces it.
fn take_over(own: &Root, below: &[Root], name: &Path) -> io::Result<()> {
    for lower in below {
        match lower.directory_file(name) {
            Ok(from) => return copy(&from, &own.directory_file(name)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if is_no_directory(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A file, a whiteout, or a link that leads nowhere.
fn is_no_directory(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTDIR | libc::ELOOP | libc::EXDEV)
    )
}

/// Owner first, because changing it clears set-id bits.
fn copy(from: &File, to: &File) -> io::Result<()> {
    let seen = from.metadata()?;
    fchown(to, Some(seen.uid()), Some(seen.gid()))?;
    to.set_permissions(std::fs::Permissions::from_mode(seen.mode() & 0o7777))?;
    for name in from.list_xattr()? {
        // They say what of their own layer hides what is below that.
        if is_overlays(&name) {
            continue;
        }
        if let Some(value) = from.get_xattr(&name)? {
            to.set_xattr(&name, &value)?;
        }
    }
    let times = std::fs::FileTimes::new()
        .set_accessed(seen.accessed()?)
        .set_modified(seen.modified()?);
    to.set_times(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root: owners are what it is about.
    #[test]
    fn a_directory_is_as_the_topmost_below_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, mode: u32, owner: u32| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        make("bottom/tmp", 0o1777, 0);
        make("bottom/both", 0o700, 7);
        make("bottom/file", 0o700, 7);
        make("bottom/usr/lib", 0o750, 8);
        std::os::unix::fs::symlink("usr/lib", dir.path().join("bottom/lib")).unwrap();
        make("middle/both", 0o711, 9);
        std::fs::write(dir.path().join("middle/file"), "").unwrap();
        let both = File::open(dir.path().join("middle/both")).unwrap();
        both.set_xattr("trusted.overlay.opaque", b"y").unwrap();
        for name in ["tmp", "both", "file", "lib", "new"] {
            make(&format!("top/{name}"), 0o755, 0);
        }
        let open = |name: &str| Root::open(&dir.path().join(name)).unwrap();
        let (own, below) = (open("top"), [open("middle"), open("bottom")]);
        for (name, mode, owner) in [
            ("tmp", 0o1777, 0),
            ("both", 0o711, 9),
            ("file", 0o755, 0),
            ("lib", 0o750, 8),
            ("new", 0o755, 0),
        ] {
            take_over(&own, &below, Path::new(name)).unwrap();
            let seen = own.directory_file(Path::new(name)).unwrap();
            let is = seen.metadata().unwrap();
            assert_eq!((is.mode() & 0o7777, is.uid()), (mode, owner), "{name}");
            assert_eq!(seen.list_xattr().unwrap().count(), 0, "{name}");
        }
        let times = |path: &str| dir.path().join(path).metadata().unwrap().mtime();
        assert_eq!(times("top/tmp"), times("bottom/tmp"));
    }
}
