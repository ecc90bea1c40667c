// SPDX-License-Identifier: Apache-2.0
//! Taking a pod's directory away: unmount what is mounted in it, then remove the files.
//!
//! The tree is hostile: containers made it. So links are never followed, another file system is
//! never entered (a binding that was missed must not cost the node its data), and neither depth
//! nor the length of a path costs stack or descriptors without bound.

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{SetUpError, at};

/// Deeper directories are first moved up, so recursion and open descriptors stay bounded.
const MAX_DEPTH: usize = 64;
/// Attempts to empty a directory that somebody still fills.
const MAX_ROUNDS: usize = 10_000;

/// Unmounts everything beneath `dir` and removes it. Absent is fine.
pub(super) fn remove_pod_dir(dir: &Path) -> Result<(), SetUpError> {
    let real = match fs::canonicalize(dir) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("resolving", dir)(error)),
    };
    unmount_beneath(&real)?;
    remove_tree(&real)
}

/// Newest first, and once more for what was hidden under another mount.
fn unmount_beneath(dir: &Path) -> Result<(), SetUpError> {
    for _ in 0..16 {
        let mounts = mounts_beneath(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for target in mounts.iter().rev() {
            match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Already gone with its parent.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(at("unmounting", target)(error.into())),
            }
        }
    }
    Err(SetUpError::Refused(format!(
        "mounts keep appearing beneath {}",
        dir.display()
    )))
}

fn mounts_beneath(dir: &Path) -> Result<Vec<PathBuf>, SetUpError> {
    // Of this thread: it may be in a mount namespace of its own.
    let table = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read(table).map_err(at("reading", table))?;
    Ok(parse_mountinfo(&text)
        .filter(|target| target.starts_with(dir))
        .collect())
}

/// The mount points of proc_pid_mountinfo(5), field 5, with its octal escapes undone.
fn parse_mountinfo(text: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescape(field))))
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        let value = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        if let Some(value) = value {
            out.push(value);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn remove_tree(dir: &Path) -> Result<(), SetUpError> {
    let root = fs::File::open(dir).map_err(at("opening", dir))?;
    let root = OwnedFd::from(root);
    let mut hoisted = 0u64;
    let fail = |errno: Errno| at("emptying", dir)(errno.into());
    for _ in 0..MAX_ROUNDS {
        let names = list(&root).map_err(fail)?;
        if names.is_empty() {
            return fs::remove_dir(dir).map_err(at("removing", dir));
        }
        for (name, kind) in names {
            remove_entry(&root, &root, &name, kind, 0, &mut hoisted).map_err(fail)?;
        }
    }
    Err(SetUpError::Refused(format!(
        "files keep appearing in {}",
        dir.display()
    )))
}

fn remove_entry(
    root: &OwnedFd,
    parent: &OwnedFd,
    name: &CStr,
    kind: Option<Type>,
    depth: usize,
    hoisted: &mut u64,
) -> Result<(), Errno> {
    if kind != Some(Type::Directory) {
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    if depth >= MAX_DEPTH {
        return hoist(root, parent, name, hoisted);
    }
    let dir = open_dir(parent, name)?;
    for (child, kind) in list(&dir)? {
        remove_entry(root, &dir, &child, kind, depth + 1, hoisted)?;
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        // Something was hoisted over, or is still being written: the next round sees it.
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Moves a deep directory to the top, where the next round finds it.
fn hoist(root: &OwnedFd, parent: &OwnedFd, name: &CStr, hoisted: &mut u64) -> Result<(), Errno> {
    loop {
        *hoisted += 1;
        let Ok(new) = CString::new(format!(".deep-{hoisted}")) else {
            return Err(Errno::EINVAL);
        };
        match renameat(parent, name, root, new.as_c_str()) {
            Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
            result => return result,
        }
    }
}

fn open_dir(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(parent, name, how)
}

fn list(dir: &OwnedFd) -> Result<Vec<(CString, Option<Type>)>, Errno> {
    // A description of its own, so that reading always starts at the beginning.
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let mut dir = Dir::from_fd(openat2(dir, ".", how)?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = b"36 35 98:0 /mnt1 /a\\040b/c rw,noatime master:1 - ext3 /dev/root rw\n\
            37 35 0:5 / /plain rw - tmpfs tmpfs rw\n\n";
        let got: Vec<PathBuf> = parse_mountinfo(text).collect();
        assert_eq!(got, [PathBuf::from("/a b/c"), PathBuf::from("/plain")]);
        assert_eq!(unescape(b"x\\9\\134y\\"), b"x\\9\\y\\");
    }

    #[test]
    fn links_are_removed_and_their_targets_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let (outside, pod) = (dir.path().join("outside"), dir.path().join("pod"));
        fs::create_dir_all(outside.join("data")).expect("creates");
        fs::create_dir_all(pod.join("volumes/x")).expect("creates");
        symlink(&outside, pod.join("volumes/link")).expect("links");
        symlink("/", pod.join("volumes/x/root")).expect("links");
        fs::write(pod.join("volumes/x/f"), "1").expect("writes");
        remove_pod_dir(&pod).expect("removes");
        assert!(!pod.exists());
        assert!(outside.join("data").is_dir());
        remove_pod_dir(&pod).expect("absent is fine");
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let pod = dir.path().join("pod");
        fs::create_dir(&pod).expect("creates");
        let mut at = OwnedFd::from(fs::File::open(&pod).expect("opens"));
        for _ in 0..1000 {
            nix::sys::stat::mkdirat(&at, "deep", nix::sys::stat::Mode::S_IRWXU).expect("creates");
            at = open_dir(&at, c"deep").expect("opens");
        }
        remove_pod_dir(&pod).expect("removes");
        assert!(!pod.exists());
    }
}
