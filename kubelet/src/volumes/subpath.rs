// SPDX-License-Identifier: Apache-2.0
//! `subPath`: a place inside a volume, resolved so that nobody can move it in between.
//!
//! A container that shares the volume may swap a directory for a symbolic link at any moment
//! (CVE-2017-1002102, CVE-2021-25741). So the path is resolved by the kernel beneath the volume's
//! root (openat2(2), Linux 5.6), and what was opened is bound to a place that only the node can
//! change; the runtime gets that place. Links that stay inside the volume are followed, links
//! with an absolute target are refused even when they would end inside.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::FchmodatFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmodat, fstat, mkdirat};

use super::directory::make_private;

/// Why a `subPath` was not bound. The manager logs it; users get upstream's text, which says
/// nothing about the node's files.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubPathError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("preparing {path}: {message}")]
    Target { path: PathBuf, message: String },
}

fn io_at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> SubPathError {
    move |source| SubPathError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// Opens `sub` beneath `volume`, and makes it (as directories) when it is not there.
pub(super) fn open(volume: &Path, sub: &Path) -> Result<OwnedFd, SubPathError> {
    let root = open_root(volume)?;
    match beneath(&root, sub, OFlag::O_PATH) {
        Err(Errno::ENOENT) => make(&root, volume, sub),
        result => result.map_err(io_at("resolving", sub)),
    }
}

fn open_root(volume: &Path) -> Result<OwnedFd, SubPathError> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(volume)
        .map(OwnedFd::from)
        .map_err(io_at("opening", volume))
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN: something was renamed during the look-up and the kernel could not be sure.
    for _ in 0..32 {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
    Err(Errno::EAGAIN)
}

/// Makes the missing directories one by one. Each is made in a parent that is already open, with
/// the mode of the volume's root, and then resolved again from the root.
fn make(root: &OwnedFd, volume: &Path, sub: &Path) -> Result<OwnedFd, SubPathError> {
    let mode = fstat(root).map_err(io_at("reading", volume))?.st_mode & 0o7777;
    let mode = Mode::from_bits_truncate(mode);
    let mut parent = root.try_clone().map_err(io_at("opening", volume))?;
    let mut prefix = PathBuf::new();
    for name in sub.components() {
        prefix.push(name);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let next = match beneath(root, &prefix, flags) {
            Err(Errno::ENOENT) => {
                let name = name.as_os_str();
                match mkdirat(&parent, name, mode) {
                    Ok(()) => fchmodat(&parent, name, mode, FchmodatFlags::NoFollowSymlink)
                        .or_else(|error| tolerate_missing_support(error, &parent, name, mode))
                        .map_err(io_at("setting the mode of", &prefix))?,
                    Err(Errno::EEXIST) => {}
                    Err(error) => return Err(io_at("creating", &prefix)(error)),
                }
                beneath(root, &prefix, flags)
            }
            result => result,
        };
        parent = next.map_err(io_at("resolving", &prefix))?;
    }
    Ok(parent)
}

/// Older kernels can't change a mode without following links (fchmodat2(2) is from Linux 6.6);
/// an open directory can be changed instead.
fn tolerate_missing_support(
    error: Errno,
    parent: &OwnedFd,
    name: &std::ffi::OsStr,
    mode: Mode,
) -> Result<(), Errno> {
    if !matches!(error, Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) {
        return Err(error);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let dir = beneath(parent, Path::new(name), flags)?;
    nix::sys::stat::fchmod(&dir, mode)
}

/// Binds what `fd` refers to at `target`, in place of an earlier binding there.
pub(super) fn bind(fd: &OwnedFd, target: &Path) -> Result<(), SubPathError> {
    let wanted = fstat(fd).map_err(io_at("reading", target))?;
    release(target)?;
    place(target, is_dir(&wanted))?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(io_at("binding", target))?;
    let bound = nix::sys::stat::stat(target).map_err(io_at("reading", target))?;
    if (bound.st_dev, bound.st_ino) == (wanted.st_dev, wanted.st_ino) {
        return Ok(());
    }
    release(target)?;
    Err(SubPathError::Target {
        path: target.to_owned(),
        message: "something else was bound".to_owned(),
    })
}

/// Removes every binding at `target`. Containers keep theirs.
fn release(target: &Path) -> Result<(), SubPathError> {
    // Bounded: nobody stacks mounts here but an earlier attempt of ours.
    for _ in 0..16 {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(io_at("unmounting", target)(error)),
        }
    }
    Ok(())
}

/// Makes an empty directory or file of the wanted kind to bind on.
fn place(target: &Path, dir: bool) -> Result<(), SubPathError> {
    if let Some(parent) = target.parent() {
        make_private(parent).map_err(|error| SubPathError::Target {
            path: parent.to_owned(),
            message: error.to_string(),
        })?;
    }
    match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() && dir || meta.is_file() && !dir => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir(target).map_err(io_at("removing", target))?,
        Ok(_) => fs::remove_file(target).map_err(io_at("removing", target))?,
        Err(_) => {}
    }
    if dir {
        make_private(target).map_err(|error| SubPathError::Target {
            path: target.to_owned(),
            message: error.to_string(),
        })
    } else {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(target)
            .map(drop)
            .map_err(io_at("creating", target))
    }
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR
}

/// Refuses what upstream refuses before looking at any file.
pub(super) fn check(sub: &str) -> Result<(), String> {
    if sub.starts_with('/') {
        return Err(format!(
            "error SubPath '{sub}' must not be an absolute path"
        ));
    }
    if sub.split('/').any(|part| part == "..") {
        return Err(format!(
            "unable to provision SubPath '{sub}': must not contain '..'"
        ));
    }
    if sub.contains('\0') {
        return Err("unable to provision SubPath: must not contain a zero byte".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn absolute_paths_and_backsteps_are_refused_with_upstreams_text() {
        assert_eq!(
            check("/etc"),
            Err("error SubPath '/etc' must not be an absolute path".to_owned())
        );
        assert_eq!(
            check("a/../../b"),
            Err("unable to provision SubPath 'a/../../b': must not contain '..'".to_owned())
        );
        assert_eq!(check("a/..b/c"), Ok(()));
    }

    #[test]
    fn links_out_of_the_volume_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).expect("creates");
        fs::write(dir.path().join("secret"), "s").expect("writes");
        for (name, target) in [
            ("abs", "/etc"),
            ("up", "../secret"),
            ("proc", "/proc/self/root"),
        ] {
            symlink(target, volume.join(name)).expect("links");
            let sub = Path::new(name);
            assert!(open(&volume, sub).is_err(), "{name} was followed");
            assert!(
                open(&volume, &sub.join("made")).is_err(),
                "{name}/made was made"
            );
        }
        symlink("here", volume.join("inside")).expect("links");
        fs::write(volume.join("here"), "x").expect("writes");
        assert!(open(&volume, Path::new("inside")).is_ok());
    }

    /// CVE-2021-25741: a container exchanges a directory of the volume for a link to the node's
    /// files, as fast as it can, while the node looks the path up and makes what is missing.
    #[test]
    fn a_directory_that_is_exchanged_for_a_link_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().expect("a directory");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("sub")).expect("creates");
        fs::create_dir_all(outside.join("there")).expect("creates");
        symlink(&outside, volume.join("link")).expect("links");
        let stop = AtomicBool::new(false);
        let (mut opened, mut refused) = (0u32, 0u32);
        std::thread::scope(|scope| {
            let (from, to) = (volume.join("link"), volume.join("sub"));
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(
                        nix::fcntl::AT_FDCWD,
                        &from,
                        nix::fcntl::AT_FDCWD,
                        &to,
                        flags,
                    )
                    .expect("exchanges");
                }
            });
            for round in 0..4000u32 {
                let made = format!("sub/there/{}", round % 7);
                for sub in ["sub", "sub/there", made.as_str()] {
                    match open(&volume, Path::new(sub)) {
                        Err(_) => refused += 1,
                        Ok(fd) => {
                            opened += 1;
                            let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                            let path = path.expect("has a name");
                            assert!(!path.starts_with(&outside), "{sub} became {path:?}");
                        }
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(
            opened > 0 && refused > 0,
            "{opened} opened, {refused} refused"
        );
        let names = |path: &Path| fs::read_dir(path).expect("lists").count();
        assert_eq!(
            (names(&outside), names(&outside.join("there"))),
            (1, 0),
            "made outside"
        );
    }

    #[test]
    fn missing_directories_are_made_with_the_mode_of_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).expect("sets");
        open(dir.path(), Path::new("a/b")).expect("opens");
        let meta = fs::metadata(dir.path().join("a/b")).expect("exists");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o2777);
    }
}
