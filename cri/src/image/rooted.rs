// SPDX-License-Identifier: Apache-2.0
//! Paths beneath a root directory that the content itself may try to leave.
//!
//! Parents are resolved by the kernel with `RESOLVE_IN_ROOT` (openat2(2), Linux 5.6): absolute
//! symbolic links and `..` inside links stay beneath the root. The last component is then worked on
//! by `*at` calls that don't follow links. Nothing here joins strings and hopes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// A directory that nothing resolves out of.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

/// A name from an archive, cleaned: no empty, `.` or `..` components, not absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelativePath(PathBuf);

impl RelativePath {
    /// `None` when the name has a `..` component or a NUL byte. A leading slash is dropped, as
    /// every container tool does.
    pub(crate) fn clean(name: &[u8]) -> Option<RelativePath> {
        if name.contains(&0) {
            return None;
        }
        let mut path = PathBuf::new();
        for component in name.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return None,
                component => path.push(OsStr::from_bytes(component)),
            }
        }
        Some(RelativePath(path))
    }

    /// Parent and last component; `None` for the root itself.
    pub(crate) fn split(&self) -> Option<(&Path, &OsStr)> {
        Some((self.0.parent()?, self.0.file_name()?))
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Root { fd })
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(self.fd.as_fd(), path, how)
    }

    /// An existing directory, for `*at` calls.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?)
    }

    /// A directory opened for reading, so that attributes can be set on it.
    pub(crate) fn directory_file(&self, path: &Path) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        Ok(self.resolve(path, flags)?.into())
    }

    /// A directory, made (0755) with its parents where missing. Returns how many were made.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<(OwnedFd, u64)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut missing: Vec<&OsStr> = Vec::new();
        let mut existing = path;
        let mut fd = loop {
            match self.resolve(existing, flags) {
                Ok(fd) => break fd,
                Err(Errno::ENOENT) => {
                    let (parent, name) = existing
                        .parent()
                        .zip(existing.file_name())
                        .ok_or(Errno::ENOENT)?;
                    missing.push(name);
                    existing = parent;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let made = missing.len() as u64;
        while let Some(name) = missing.pop() {
            mkdirat(fd.as_fd(), name, Mode::from_bits_truncate(0o755))?;
            // The umask took its part of the mode above.
            let mode = Mode::from_bits_truncate(0o755);
            fchmodat(fd.as_fd(), name, mode, FchmodatFlags::FollowSymlink)?;
            let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            fd = openat(fd.as_fd(), name, flags, Mode::empty())?;
        }
        Ok((fd, made))
    }

    /// Opens a regular file for reading, following links beneath the root.
    pub(crate) fn file(&self, path: &Path) -> io::Result<File> {
        // Not blocking: the path may lead to a FIFO.
        let fd = self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        regular(File::from(fd))
    }

    /// Reads a regular file of at most `limit` bytes, following links beneath the root.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(self.file(path)?, limit)
    }
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// All of a file, or an error when it is larger than `limit` bytes.
pub(crate) fn read_bounded(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    file.take(limit + 1).read_to_end(&mut data)?;
    if data.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        ));
    }
    Ok(data)
}

/// What is at a name, not following a link: the file type bits of the mode and the device number.
pub(crate) fn look(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<libc::stat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn is_directory(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Overlay's whiteout: a character device 0:0.
pub(crate) fn is_whiteout(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// Removes a file or a whole tree, which need not exist.
///
/// Content decides how deep a tree is, so this neither recurses nor holds a descriptor per level: it
/// walks down one directory at a time and comes back by `..`. Nobody else works in the tree.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    let mut here = open_dir(parent, name)?;
    let mut pending = unlink_files(&here)?;
    // Names of the directories above `here`, each with its subdirectories still to do.
    let mut above: Vec<(OsString, Vec<OsString>)> = Vec::new();
    loop {
        if let Some(child) = pending.pop() {
            here = open_dir(here.as_fd(), &child)?;
            let below = unlink_files(&here)?;
            above.push((child, std::mem::replace(&mut pending, below)));
        } else if let Some((done, rest)) = above.pop() {
            here = open_dir(here.as_fd(), OsStr::new(".."))?;
            unlinkat(here.as_fd(), done.as_os_str(), UnlinkatFlags::RemoveDir)?;
            pending = rest;
        } else {
            return Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?);
        }
    }
}

/// Removes what is not a directory; the names of those that are.
fn unlink_files(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut left = Vec::new();
    for name in names(directory)? {
        if !unlink(directory.as_fd(), &name)? {
            left.push(name);
        }
    }
    Ok(left)
}

/// Removes `path` and all below it, which need not exist.
pub(crate) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match Root::open(parent) {
        Ok(parent) => match remove_tree(parent.fd.as_fd(), name) {
            // Somebody else removed the same leftovers at the same time, and won.
            Err(_) if fs::symlink_metadata(path).is_err() => Ok(()),
            result => result,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the name is gone now; false for a directory.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut dir = Dir::from_fd(open_dir(directory.as_fd(), OsStr::new("."))?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let clean = |name: &str| {
            RelativePath::clean(name.as_bytes()).map(|path| path.0.to_string_lossy().into_owned())
        };
        assert_eq!(clean("./a//b/./c/").as_deref(), Some("a/b/c"));
        assert_eq!(clean("/etc/passwd").as_deref(), Some("etc/passwd"));
        assert_eq!(clean("./").as_deref(), Some(""));
        assert_eq!(clean("a..b").as_deref(), Some("a..b"));
        for bad in ["..", "../x", "a/../b", "a/..", "/..", "a\0b"] {
            assert_eq!(clean(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tree_deeper_than_the_stack_or_the_path_limit_is_removed() {
        // In memory: a journal makes thousands of directories slow.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut fd = root.directory(Path::new("")).unwrap();
        for _ in 0..5000 {
            mkdirat(fd.as_fd(), "d", Mode::S_IRWXU).unwrap();
            mkdirat(fd.as_fd(), "e", Mode::S_IRWXU).unwrap();
            fd = open_dir(fd.as_fd(), OsStr::new("d")).unwrap();
        }
        remove_path(&dir.path().join("d")).unwrap();
        remove_path(&dir.path().join("d")).unwrap();
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("up")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
        let root = Root::open(&inside).unwrap();
        for name in ["up", "absolute"] {
            let error = root.read(Path::new(name), 100).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name}");
        }
        // The same links work when the root has what they name.
        std::fs::write(inside.join("secret"), "inside").unwrap();
        assert_eq!(root.read(Path::new("up"), 100).unwrap(), b"inside");
        assert!(root.read(Path::new("up"), 3).is_err());
    }
}
