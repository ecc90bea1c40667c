// SPDX-License-Identifier: Apache-2.0
//! An overlay as a detached mount, with id-mapped layers where the plan wants them.
//!
//! Layers are named by descriptor: any number of them fits, any character may be in a path, and
//! the container's mount table tells nothing of the host's directories.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use super::idmap::Idmaps;
use super::{Prepare, elsewhere, open, text};
use crate::launch::report::LaunchError;
use crate::plan::{IdMapping, IdMappings};
use crate::sys::{self, mounts};

/// Longest option string that mount(2) takes, less its terminator.
const MOUNT_OPTIONS_MAX: usize = 4095;

/// The directories of an overlay, opened.
struct Layers {
    lower: Vec<OwnedFd>,
    /// Upper and work directory; none where nothing is to be written.
    writable: Option<(OwnedFd, OwnedFd)>,
    /// Id-mapped mounts that the directories are seen through, each with where it was copied from.
    mapped: Vec<(OwnedFd, CString)>,
    _creator: Option<Creator>,
}

/// Where they are.
struct Paths<'a> {
    lower: &'a [String],
    writable: Option<(&'a str, &'a str)>,
}

/// While it lives, this process makes files as the container's root. Overlayfs makes some of its
/// own, as whoever mounts it; the host's root has no id on an id-mapped layer, and with it the
/// kernel gives up and mounts read-only.
struct Creator {
    own: (u32, u32),
}

impl Creator {
    fn new(mappings: &IdMappings) -> Prepare<Self> {
        let attempt =
            |errno| LaunchError::prepare("acting as the owner of id-mapped layers", errno);
        let root = |list| IdMapping::host_id(list, 0).ok_or_else(|| attempt(libc::EINVAL));
        let (uid, gid) = (root(&mappings.uid)?, root(&mappings.gid)?);
        let all = sys::permitted_capabilities().map_err(attempt)?;
        let creator = Self {
            own: sys::set_filesystem_ids(uid, gid),
        };
        // With another id, the kernel took the privileges over files, which mounting needs.
        sys::capset(all, all, 0).map_err(attempt)?;
        Ok(creator)
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        sys::set_filesystem_ids(self.own.0, self.own.1);
    }
}

/// Mounts an overlay, `lower` topmost first, with an upper and a work directory or read-only.
/// `volatile` (kernel 5.10) spares syncing a layer that no one reads after a crash.
pub(super) fn overlay(
    lower: &[String],
    writable: Option<(&str, &str)>,
    label: Option<&str>,
    idmap: Option<&IdMappings>,
    idmaps: &mut Idmaps,
) -> Prepare<OwnedFd> {
    let label = label.map(text).transpose()?;
    let paths = Paths { lower, writable };
    let layers = match idmap {
        None => plain(&paths)?,
        Some(mappings) => id_mapped(&paths, mappings, idmaps)?,
    };
    // `lowerdir+` came with 6.7; 6.15 allows layers on detached mounts.
    let needed = if idmap.is_some() { (6, 15) } else { (6, 7) };
    if kernel() < needed {
        return by_mount(&layers, &paths, label.as_deref());
    }
    by_options(&layers, label.as_deref())
        .map_err(|errno| LaunchError::prepare("mounting an overlay", errno))
}

/// (major, minor). Asking overlayfs itself would leave an error in the kernel's log each time.
fn kernel() -> (u32, u32) {
    static KERNEL: OnceLock<(u32, u32)> = OnceLock::new();
    *KERNEL.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split('.').map_while(|number| number.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    })
}

fn plain(paths: &Paths<'_>) -> Prepare<Layers> {
    let dir = |path: &str| open(path, libc::O_PATH | libc::O_DIRECTORY);
    let lower = paths.lower.iter().map(|path| dir(path));
    Ok(Layers {
        lower: lower.collect::<Prepare<_>>()?,
        writable: match paths.writable {
            Some((upper, work)) => Some((dir(upper)?, dir(work)?)),
            None => None,
        },
        mapped: Vec::new(),
        _creator: None,
    })
}

/// The upper and the work directory are mapped as well: a file that the container's root makes
/// belongs to root on disk, as it does without a user namespace, and no directory needs another
/// owner before. Both have to be on one mount, so their common parent is copied.
fn id_mapped(paths: &Paths<'_>, mappings: &IdMappings, idmaps: &mut Idmaps) -> Prepare<Layers> {
    let mut mapped = Vec::with_capacity(paths.lower.len() + 1);
    let parent = paths.writable.map(|(upper, work)| {
        let parent = common_parent(Path::new(upper), Path::new(work));
        parent.to_string_lossy().into_owned()
    });
    for path in paths.lower.iter().chain(&parent) {
        let name = text(path)?;
        let tree = mounts::open_tree(mounts::cwd(), &name, false)
            .map_err(|errno| LaunchError::prepare(format!("opening layer {path:?}"), errno))?;
        // As a peer of the host's mount, it would pass on to it what is mounted on it.
        mounts::set_attributes(tree.as_fd(), 0, 0, libc::MS_PRIVATE, false)
            .map_err(|errno| LaunchError::prepare(format!("isolating layer {path:?}"), errno))?;
        idmaps.apply(&tree, path, mappings, false)?;
        mapped.push((tree, name));
    }
    let copy = |tree: &OwnedFd| {
        sys::dup_above_stdio(tree.as_fd())
            .map_err(|errno| LaunchError::prepare("copying a layer's descriptor", errno))
    };
    let (trees, base) = mapped.split_at(paths.lower.len());
    let writable = match (paths.writable, &parent, base.first()) {
        (Some((upper, work)), Some(parent), Some((base, _))) => {
            Some((through(base, parent, upper)?, through(base, parent, work)?))
        }
        _ => None,
    };
    Ok(Layers {
        lower: trees
            .iter()
            .map(|(tree, _)| copy(tree))
            .collect::<Prepare<_>>()?,
        // Only a writable overlay makes files of its own.
        _creator: match writable {
            Some(_) => Some(Creator::new(mappings)?),
            None => None,
        },
        writable,
        mapped,
    })
}

fn common_parent(a: &Path, b: &Path) -> PathBuf {
    let common = a.components().zip(b.components());
    common
        .take_while(|(a, b)| a == b && *a != Component::ParentDir)
        .map(|(part, _)| part)
        .collect()
}

/// `path` seen through a copy of the mount at `parent`, which must show the same directory.
fn through(base: &OwnedFd, parent: &str, path: &str) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare(format!("opening {path:?} id-mapped"), errno);
    let rest = Path::new(path)
        .strip_prefix(parent)
        .map_err(|_| attempt(libc::EXDEV))?;
    let rest = text(&rest.to_string_lossy())?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let seen = mounts::openat(base.as_fd(), &rest, flags, 0).map_err(attempt)?;
    let real = open(path, flags)?;
    let file = |fd: &OwnedFd| mounts::fstat(fd.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
    match file(&seen).map_err(attempt)? == file(&real).map_err(attempt)? {
        true => Ok(seen),
        false => Err(attempt(libc::EXDEV)),
    }
}

fn name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn by_options(layers: &Layers, label: Option<&CStr>) -> sys::Sys<OwnedFd> {
    let context = mounts::fsopen(c"overlay")?;
    let set = |key: &CStr, layer: &OwnedFd| {
        let name = CString::new(name(layer)).map_err(|_| libc::EINVAL)?;
        mounts::fsconfig(context.as_fd(), key, Some(&name))
    };
    mounts::fsconfig(context.as_fd(), c"source", Some(c"overlay"))?;
    for layer in &layers.lower {
        set(c"lowerdir+", layer)?;
    }
    if let Some((upper, work)) = &layers.writable {
        set(c"upperdir", upper)?;
        set(c"workdir", work)?;
        mounts::fsconfig(context.as_fd(), c"volatile", None)?;
    }
    if let Some(label) = label {
        mounts::fsconfig(context.as_fd(), c"context", Some(label))?;
    }
    mounts::fsmount(context.as_fd(), 0)
}

/// As older kernels want it: options as one string, and layers in the mount namespace of the caller,
/// which is a passing one here. Id-mapped layers are attached there, others are opened again.
fn by_mount(layers: &Layers, paths: &Paths<'_>, label: Option<&CStr>) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare("mounting an overlay", errno);
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let opened = |path: &str| {
        let path = CString::new(path).map_err(|_| libc::EINVAL)?;
        mounts::openat(mounts::cwd(), &path, flags, 0)
    };
    let options = || {
        if layers.mapped.is_empty() {
            let lower: sys::Sys<Vec<_>> = paths.lower.iter().map(|path| opened(path)).collect();
            let here = Layers {
                lower: lower?,
                writable: match paths.writable {
                    Some((upper, work)) => Some((opened(upper)?, opened(work)?)),
                    None => None,
                },
                mapped: Vec::new(),
                _creator: None,
            };
            return Ok((one_string(&here, label)?, Some(here)));
        }
        for (tree, place) in &layers.mapped {
            let place = mounts::openat(mounts::cwd(), place, libc::O_PATH, 0)?;
            mounts::attach(tree.as_fd(), place.as_fd())?;
        }
        Ok((one_string(layers, label)?, None))
    };
    // Any directory will do: nobody else sees this mount namespace.
    let target = paths.writable.map_or("/proc", |(upper, _)| upper);
    let target = text(target)?;
    elsewhere::mount((c"overlay", c"overlay"), &target, options)?.map_err(attempt)
}

fn one_string(layers: &Layers, label: Option<&CStr>) -> sys::Sys<CString> {
    let lower: Vec<String> = layers.lower.iter().map(name).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = &layers.writable {
        let (upper, work) = (name(upper), name(work));
        options += &format!(",upperdir={upper},workdir={work},volatile");
    }
    if let Some(label) = label {
        options += &format!(",context=\"{}\"", label.to_string_lossy());
    }
    match options.len() > MOUNT_OPTIONS_MAX {
        true => Err(libc::E2BIG),
        false => CString::new(options).map_err(|_| libc::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_and_work_are_reached_through_their_common_parent() {
        let common = |a, b| common_parent(Path::new(a), Path::new(b));
        assert_eq!(common("/a/b/upper", "/a/b/work"), Path::new("/a/b"));
        assert_eq!(common("/a/upper", "/b/work"), Path::new("/"));
        assert_eq!(common("/a/b", "/a/b/work"), Path::new("/a/b"));
    }

    /// The way of kernels older than this one must be tried somewhere. Needs root.
    #[test]
    fn an_older_kernel_mounts_id_mapped_layers_in_a_passing_namespace() {
        let dir = std::env::temp_dir().join(format!("podwright-overlay-{}", std::process::id()));
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        for name in ["a", "b", "upper", "work"] {
            std::fs::create_dir_all(path(name)).expect("creates");
        }
        std::fs::write(path("b/file"), "").expect("writes");
        let line = crate::plan::IdMapping {
            container: 0,
            host: 100_000,
            size: 1000,
        };
        let mappings = IdMappings {
            uid: vec![line],
            gid: vec![line],
        };
        let (mut idmaps, lower) = (Idmaps::default(), [path("a"), path("b")]);
        let table = || std::fs::read("/proc/thread-self/mountinfo").expect("reads");
        // Everything is shared, as systemd has it; for this thread only.
        sys::unshare(libc::CLONE_NEWNS).expect("needs root");
        for flag in [libc::MS_PRIVATE, libc::MS_SHARED] {
            mounts::set_all_propagation(flag).expect("changes");
        }
        let before = table();
        let (upper, work) = (path("upper"), path("work"));
        let paths = Paths {
            lower: &lower,
            writable: Some((&upper, &work)),
        };
        let layers = id_mapped(&paths, &mappings, &mut idmaps).expect("maps");
        let (seen, _) = layers.writable.as_ref().expect("is writable");
        let seen = mounts::fstat(seen.as_fd()).expect("stats").st_uid;
        assert_eq!(seen, 100_000, "the upper directory is mapped");
        let tree = by_mount(&layers, &paths, None);
        if let Ok(tree) = &tree {
            mounts::mkdirat(tree.as_fd(), c"made", 0o755).expect("makes");
        }
        drop(layers);
        let made = std::fs::metadata(path("upper/made")).expect("is there");
        let owner = tree.as_ref().map(|tree| {
            let file = mounts::openat(tree.as_fd(), c"file", libc::O_PATH, 0).expect("is there");
            mounts::fstat(file.as_fd()).expect("stats").st_uid
        });
        assert_eq!(table(), before, "nothing is mounted in our own namespace");
        std::fs::remove_dir_all(&dir).expect("removes");
        assert_eq!(owner.expect("mounts"), 100_000);
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0);
    }

    /// As above.
    #[test]
    fn an_older_kernel_mounts_plain_layers_in_a_passing_namespace() {
        let dir = std::env::temp_dir().join(format!("podwright-plain-{}", std::process::id()));
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        for name in ["a", "b", "upper", "work"] {
            std::fs::create_dir_all(path(name)).expect("creates");
        }
        std::fs::write(path("b/file"), "").expect("writes");
        let (lower, upper, work) = ([path("a"), path("b")], path("upper"), path("work"));
        let paths = Paths {
            lower: &lower,
            writable: Some((&upper, &work)),
        };
        let layers = plain(&paths).expect("opens");
        let tree = by_mount(&layers, &paths, None);
        let found = tree
            .as_ref()
            .map(|tree| mounts::openat(tree.as_fd(), c"file", libc::O_PATH, 0).is_ok());
        let found = found.map_err(ToString::to_string);
        drop(tree);
        std::fs::remove_dir_all(&dir).expect("removes");
        assert_eq!(found, Ok(true));
    }
}
