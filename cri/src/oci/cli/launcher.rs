// SPDX-License-Identifier: Apache-2.0
//! The commands that enter a container do it by a launcher: this program once more, from a mount that
//! nobody can write through.
//!
//! What enters the container is a copy of the launcher, so a process in there could find our
//! executable under /proc/<pid>/exe and, if it were writable, replace it (CVE-2019-5736). The launcher
//! starts while the command reads its files, so it costs next to nothing where there are two
//! processors.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use shim::launch::{self, Gate, LaunchError, Launched};
use shim::plan::{CgroupJoin, LaunchPlan, ProcessPlan};
use shim::sys::{self, mounts};

use super::io::{self, Inherited};
use super::{Attempt, NAME, Outcome};

/// The launcher's verb. Not for people: its argument is the number of a descriptor.
pub(super) const VERB: &str = ".launch";

/// A launcher at work.
pub(super) struct Launcher {
    /// Goes first: without it, the process ends.
    orders: launch::Launcher,
    _process: Collected,
}

/// A process that is waited for when this goes.
struct Collected(Child);

impl Drop for Collected {
    fn drop(&mut self) {
        // Fails only when somebody else has collected it.
        let _ = self.0.wait();
    }
}

impl Launcher {
    /// Starts the launcher, and says which descriptors the new process gets beside its streams.
    ///
    /// Call it before anything else is opened, as [`io::inherited`].
    pub(super) fn start_for(preserve: u32, activation: bool) -> Outcome<(Launcher, Inherited)> {
        let inherited = io::inherited(preserve, activation)?;
        Ok((Launcher::start(inherited)?, inherited))
    }

    fn start(inherited: Inherited) -> Outcome<Launcher> {
        let raw = std::io::Error::from_raw_os_error;
        let (ours, theirs) = sys::socket::pair().map_err(raw).attempt("making sockets")?;
        let given = sys::dup_for_exec(theirs.as_fd(), inherited.end());
        let given = given.map_err(raw).attempt("making sockets")?;
        let program = readonly_program()?;
        let process = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0(NAME)
            .arg(VERB)
            .arg(given.as_raw_fd().to_string())
            .stdin(Stdio::inherit())
            .spawn()
            .attempt("running this program from a read-only mount")?;
        Ok(Launcher {
            orders: launch::Launcher::new(ours),
            _process: Collected(process),
        })
    }

    pub(super) fn begin(&self, plan: &LaunchPlan, gate: Gate) -> Result<Launched, LaunchError> {
        self.orders.begin(plan, gate)
    }

    pub(super) fn begin_execute(
        &self,
        target: BorrowedFd<'_>,
        cgroup: &CgroupJoin,
        process: &ProcessPlan,
    ) -> Result<Launched, LaunchError> {
        self.orders.begin_execute(target, cgroup, process)
    }
}

/// This program, through a mount that nobody can write through; or as it is, where that is so already.
fn readonly_program() -> Outcome<OwnedFd> {
    let own = std::fs::File::open("/proc/self/exe").attempt("opening this program")?;
    let readonly = mounts::is_readonly(own.as_fd()).map_err(std::io::Error::from_raw_os_error);
    if readonly.attempt("looking at this program")? {
        return Ok(OwnedFd::from(own));
    }
    match launch::through_readonly_mount(own.as_fd()) {
        Ok(program) => Ok(program),
        // Its mount is gone since it was started, so there is none to copy.
        Err(_) => sealed_copy(own).attempt("copying this program"),
    }
}

/// A copy in memory that can never be written again.
fn sealed_copy(mut program: std::fs::File) -> std::io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = std::fs::File::from(memfd_create(c"podwright", flags)?);
    std::io::copy(&mut program, &mut copy)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    // What somebody could write to is not executed, sealed or not.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(OwnedFd::from(std::fs::File::open(path)?))
}

/// What the launcher does.
pub(super) fn main(socket: &OsStr) -> ExitCode {
    let number = socket.to_str().and_then(|text| text.parse().ok());
    let served = number
        .ok_or(libc::EINVAL)
        .and_then(sys::take_inherited)
        .and_then(|socket| launch::serve(&socket));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            eprintln!("podwright oci: launcher: {}", launch::reason(errno));
            ExitCode::FAILURE
        }
    }
}
