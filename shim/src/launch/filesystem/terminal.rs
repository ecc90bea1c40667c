// SPDX-License-Identifier: Apache-2.0
//! The terminal of a process, from the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::paths::{self, Links};
use crate::launch::prepare::Root;
use crate::sys::{self, Sys, mounts};

const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Both sides of a new terminal.
pub(in crate::launch) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens a terminal of the container's own devpts and puts it on /dev/console.
///
/// That is a file which the container can put something else in place of while it is used: no link
/// is followed, and the terminal is mounted on what was found.
pub(super) fn console(top: BorrowedFd<'_>, root: &Root) -> Sys<Terminal> {
    let pair = open_terminal(top)?;
    if root.console {
        let place = paths::make(top, c"/dev/console", false, Links::Refuse)?;
        let tree = mounts::open_tree(pair.slave.as_fd(), c"", false)?;
        mounts::attach(tree.as_fd(), place.file.as_fd())?;
    }
    Ok(pair)
}

pub(super) fn in_running_container() -> Sys<Terminal> {
    let top = mounts::openat(mounts::cwd(), c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    open_terminal(top.as_fd())
}

/// No symbolic link may lead to the multiplexer, and it has to be devpts' own.
fn open_terminal(top: BorrowedFd<'_>) -> Sys<Terminal> {
    let resolve = mounts::RESOLVE_IN_ROOT | mounts::RESOLVE_NO_SYMLINKS;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = mounts::openat2(top, c"/dev/pts/ptmx", flags, resolve)?;
    if mounts::filesystem_type(master.as_fd())? != DEVPTS_MAGIC {
        return Err(libc::ENOTTY);
    }
    let slave = sys::terminal_peer(master.as_fd())?;
    Ok(Terminal { master, slave })
}
