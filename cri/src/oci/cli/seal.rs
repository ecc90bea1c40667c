// SPDX-License-Identifier: Apache-2.0
//! The commands that enter a container run from a mount that nobody can write through.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;

use shim::launch;
use shim::sys::mounts;

use super::{Attempt, Outcome};

/// Runs this program again from a read-only mount of its directory, unless it already does.
///
/// The child that enters the container is a copy of this process, so a process in there could
/// find our executable under /proc/<pid>/exe and, if it were writable, replace it (CVE-2019-5736).
pub(super) fn seal() -> Outcome<()> {
    let own = std::fs::File::open("/proc/self/exe").attempt("opening this program")?;
    let readonly = mounts::is_readonly(own.as_fd()).map_err(std::io::Error::from_raw_os_error);
    if readonly.attempt("looking at this program")? {
        return Ok(());
    }
    let path = std::env::current_exe().attempt("finding this program")?;
    let file = launch::readonly_file(&path.to_string_lossy()).attempt("sealing this program")?;
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    Err(error).attempt("running this program from a read-only mount")
}
