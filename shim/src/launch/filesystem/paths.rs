// SPDX-License-Identifier: Apache-2.0
//! Paths of the container: looked up, and made where they are missing, beneath its root.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{Sys, mounts};

const BENEATH: u64 = mounts::RESOLVE_IN_ROOT | mounts::RESOLVE_NO_MAGICLINKS;
const PATH_MAX: usize = libc::PATH_MAX as usize;
/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

/// What symbolic links on the way do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// They are followed, but not out of the root, and not those of /proc.
    Follow,
    /// They are an error (ELOOP).
    Refuse,
}

/// A place to mount on.
pub(super) struct Place {
    pub file: OwnedFd,
    pub was_there: bool,
}

pub(super) fn resolve(top: BorrowedFd<'_>, path: &CStr) -> Sys<OwnedFd> {
    look_up(top, path, Links::Follow)
}

pub(super) fn look_up(top: BorrowedFd<'_>, path: &CStr, links: Links) -> Sys<OwnedFd> {
    let how = match links {
        Links::Follow => BENEATH,
        Links::Refuse => BENEATH | mounts::RESOLVE_NO_SYMLINKS,
    };
    mounts::openat2(top, path, libc::O_PATH, how)
}

/// Nothing, if it does not exist.
pub(super) fn existing(top: BorrowedFd<'_>, path: &CStr) -> Sys<Option<OwnedFd>> {
    match resolve(top, path) {
        Ok(target) => Ok(Some(target)),
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a path beneath the root and makes what is missing of it: directories, and in the end a
/// directory or an empty file. A symbolic link to nothing is followed to where it points.
pub(super) fn make(top: BorrowedFd<'_>, path: &CStr, directory: bool, links: Links) -> Sys<Place> {
    match look_up(top, path, links) {
        Err(libc::ENOENT) => {}
        found => {
            return found.map(|file| Place {
                file,
                was_there: true,
            });
        }
    }
    let mut walk = Walk::new(path.to_bytes())?;
    for _ in 0..LINKS_MAX {
        if let Some(file) = walk.make(top, directory, links)? {
            return Ok(Place {
                file,
                was_there: false,
            });
        }
    }
    Err(libc::ELOOP)
}

/// A path that changes while links are followed; without allocation.
struct Walk {
    /// Ends with a null byte.
    path: [u8; PATH_MAX],
    length: usize,
}

impl Walk {
    fn new(path: &[u8]) -> Sys<Walk> {
        let mut walk = Walk {
            path: [0; PATH_MAX],
            length: 0,
        };
        walk.push(path)?;
        Ok(walk)
    }

    fn push(&mut self, part: &[u8]) -> Sys<()> {
        let end = self.length + part.len();
        if end >= PATH_MAX {
            return Err(libc::ENAMETOOLONG);
        }
        let free = self.path.get_mut(self.length..end);
        free.ok_or(libc::ENAMETOOLONG)?.copy_from_slice(part);
        self.length = end;
        Ok(())
    }

    /// One try; nothing, when a link changed the path.
    fn make(&mut self, top: BorrowedFd<'_>, directory: bool, links: Links) -> Sys<Option<OwnedFd>> {
        let mut parent: Option<OwnedFd> = None;
        let mut start = 0;
        while let Some((from, end)) = self.next_part(start) {
            let last = self.next_part(end).is_none();
            let here = match self.up_to(0, end, |so_far| look_up(top, so_far, links))? {
                Err(libc::ENOENT) => {
                    let dir = parent.as_ref().map_or(top, AsFd::as_fd);
                    let link = self.up_to(from, end, |name| {
                        mounts::openat(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
                    })?;
                    match link {
                        Ok(link) => {
                            self.follow(link.as_fd(), from, end)?;
                            return Ok(None);
                        }
                        Err(libc::ENOENT) => {}
                        Err(errno) => return Err(errno),
                    }
                    self.up_to(from, end, |name| make_entry(dir, name, directory || !last))??
                }
                other => other?,
            };
            parent = Some(here);
            start = end;
        }
        parent.map_or(Err(libc::ENOENT), |made| Ok(Some(made)))
    }

    /// Where the next part of the path begins and ends.
    fn next_part(&self, start: usize) -> Option<(usize, usize)> {
        let path = self.path.get(..self.length)?;
        let from = start + path.get(start..)?.iter().position(|byte| *byte != b'/')?;
        let rest = path.get(from..)?;
        let length = rest.iter().position(|byte| *byte == b'/');
        Some((from, from + length.unwrap_or(rest.len())))
    }

    /// Calls with the C string between two places.
    fn up_to<T>(&mut self, from: usize, end: usize, call: impl FnOnce(&CStr) -> T) -> Sys<T> {
        let kept = std::mem::replace(self.path.get_mut(end).ok_or(libc::ENAMETOOLONG)?, 0);
        let part = self.path.get(from..=end).unwrap_or_default();
        let result = CStr::from_bytes_until_nul(part).map(call);
        if let Some(byte) = self.path.get_mut(end) {
            *byte = kept;
        }
        result.map_err(|_| libc::EINVAL)
    }

    /// Replaces the part from `from` to `end` by what the link says.
    fn follow(&mut self, link: BorrowedFd<'_>, from: usize, end: usize) -> Sys<()> {
        let mut target = [0; PATH_MAX];
        // What is no link was made by somebody else in between: the path stays, and is tried again.
        let length = match mounts::readlinkat(link, c"", &mut target) {
            Err(libc::ENOENT | libc::EINVAL) => return Ok(()),
            length => length?,
        };
        let target = target.get(..length).unwrap_or_default();
        let before = match target.first() {
            Some(b'/') => &[],
            _ => self.path.get(..from).unwrap_or_default(),
        };
        let mut new = Walk::new(before)?;
        new.push(target)?;
        new.push(self.path.get(end..self.length).unwrap_or_default())?;
        *self = new;
        Ok(())
    }
}

fn make_entry(dir: BorrowedFd<'_>, name: &CStr, directory: bool) -> Sys<OwnedFd> {
    let path = libc::O_PATH | libc::O_NOFOLLOW;
    if directory {
        mounts::mkdirat(dir, name, 0o755)?;
        return mounts::openat(dir, name, path | libc::O_DIRECTORY, 0);
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    mounts::openat(dir, name, flags, 0o644)?;
    mounts::openat(dir, name, path, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_are_made_where_links_point_and_never_outside() {
        let dir = std::env::temp_dir().join(format!("podwright-paths-{}", std::process::id()));
        let root = dir.join("root");
        std::fs::create_dir_all(&root).expect("creates");
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at));
        link("/jump/../../../a/b", "absolute").expect("links");
        link("x/y", "relative").expect("links");
        link("loop", "loop").expect("links");
        let top = std::fs::File::open(&root).expect("opens");
        let make = |path: &CStr, directory| make(top.as_fd(), path, directory, Links::Follow);
        let made = make(c"/absolute/c/file", false).map(|place| place.was_there);
        let there = make(c"/relative", true).and_then(|_| make(c"/x/y", true));
        let looped = make(c"/loop/z", true).map(|_| ());
        let refused = super::make(top.as_fd(), c"/absolute/d", true, Links::Refuse).map(|_| ());
        let file = root.join("a/b/c/file").is_file();
        let outside = dir.read_dir().expect("reads").count();
        std::fs::remove_dir_all(&dir).expect("removes");
        assert_eq!(made, Ok(false));
        assert!(file);
        assert_eq!(there.map(|place| place.was_there), Ok(true));
        assert_eq!(looped, Err(libc::ELOOP));
        assert_eq!(refused, Err(libc::ELOOP));
        assert_eq!(outside, 1);
    }
}
