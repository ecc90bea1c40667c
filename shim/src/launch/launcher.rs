// SPDX-License-Identifier: Apache-2.0
//! Launches by a process of its own: the launcher, which runs from a file that nobody can write to.
//!
//! ```text
//! whoever launches                      launcher
//! start it, go on with other things     get ready
//! order: a plan, the gate      ------>  prepare, clone
//! see the new process through  <------  its pid, descriptor and channel, or why not; ends
//! ```
//!
//! The new process is a copy of the launcher, so what a container finds under /proc/<pid>/exe is the
//! launcher's file. It is a child of the launcher's parent. Both are of one build: the order has the
//! form of [`crate::format`], but nothing of it has to stay.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::report::{LaunchError, Step, Words};
use super::{Gate, Kinship, Launched, Made, Stdio, prepare, spawn};
use crate::plan::{CgroupJoin, LaunchPlan, ProcessPlan};
use crate::protocol;
use crate::sys::{self, Errno};
use crate::wire::{self, Packet};

/// What is to be launched. The descriptor that comes with it is the gate's or the target's.
#[derive(Serialize, Deserialize)]
enum Order<Plan, Cgroup, Process> {
    Container(Plan),
    Exec { cgroup: Cgroup, process: Process },
}

type Wanted = Order<Box<LaunchPlan>, CgroupJoin, Box<ProcessPlan>>;
type Asked<'a> = Order<&'a LaunchPlan, &'a CgroupJoin, &'a ProcessPlan>;

/// With the order: what a plan does not carry.
#[derive(Serialize, Deserialize)]
struct Message<T> {
    order: T,
    preserved_fds: u32,
}

/// The descriptors that come with it are the process's own and our end of its channel.
#[derive(Serialize, Deserialize)]
struct Begun {
    pid: u32,
    in_two_steps: bool,
    notes: Vec<String>,
}

/// A launcher that was started and waits for its order. It ends when this is dropped.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
}

impl Launcher {
    /// `socket` is our end of a pair of packet sockets; [`serve`] has the other. It has to be a
    /// child of this process, and be collected by the caller.
    pub fn new(socket: OwnedFd) -> Launcher {
        Launcher { socket }
    }

    /// As [`begin`](super::begin). The streams are the launcher's own.
    ///
    /// # Errors
    /// As there, and when the launcher is gone.
    pub fn begin(&self, plan: &LaunchPlan, gate: Gate) -> Result<Launched, LaunchError> {
        let gate = match gate {
            Gate::Parent => None,
            Gate::Fifo(fifo) => Some(fifo),
        };
        let fds: Vec<BorrowedFd<'_>> = gate.iter().map(AsFd::as_fd).collect();
        let order: Asked<'_> = Order::Container(plan);
        let (made, notes) = self.order(order, plan.process.preserved_fds, &fds)?;
        drop(gate);
        Launched::of_container(plan, made, notes, Words::of_plan(plan))
    }

    /// As [`begin_execute`](super::begin_execute). The streams are the launcher's own.
    ///
    /// # Errors
    /// As there, and when the launcher is gone.
    pub fn begin_execute(
        &self,
        target: BorrowedFd<'_>,
        cgroup: &CgroupJoin,
        process: &ProcessPlan,
    ) -> Result<Launched, LaunchError> {
        let order: Asked<'_> = Order::Exec { cgroup, process };
        let (made, notes) = self.order(order, process.preserved_fds, &[target])?;
        Launched::of_process(target, process, made, notes, Words::of_process(process))
    }

    fn order(
        &self,
        order: Asked<'_>,
        preserved_fds: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Made, Vec<String>), LaunchError> {
        let message = Message {
            order,
            preserved_fds,
        };
        say(&self.socket, &message, fds).map_err(lost)?;
        let (bytes, mut fds) = wire::receive(self.socket.as_fd())
            .map_err(lost)?
            .ok_or_else(|| lost(libc::ECONNRESET))?;
        let begun: Result<Begun, LaunchError> =
            protocol::decode(&bytes).map_err(|_| lost(libc::EBADMSG))?;
        let begun = begun?;
        let (Some(channel), Some(pidfd)) = (fds.pop(), fds.pop()) else {
            return Err(lost(libc::EBADMSG));
        };
        let made = Made {
            pid: begun.pid,
            pidfd,
            channel,
            in_two_steps: begun.in_two_steps,
        };
        Ok((made, begun.notes))
    }
}

fn lost(errno: Errno) -> LaunchError {
    LaunchError::prepare("talking to the launcher", errno)
}

fn say<T: Serialize>(socket: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) -> sys::Sys<()> {
    let bytes = protocol::encode(message).map_err(|_| libc::EINVAL)?;
    Packet::new(&bytes)?.send(socket.as_fd(), fds)
}

/// The launcher: carries out one order that comes over `socket`, the pair's other end. Its parent is
/// who orders; without that it ends.
///
/// Call it from a process with one thread (see [`sys::clone3`]).
///
/// # Errors
/// What went wrong with the socket. What went wrong with the launch is for the other end.
pub fn serve(socket: &OwnedFd) -> sys::Sys<()> {
    // Whoever orders may be killed: nobody would see the new process through.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize, 0)?;
    let Some((bytes, fds)) = wire::receive(socket.as_fd())? else {
        return Ok(());
    };
    let message: Message<Wanted> = protocol::decode(&bytes).map_err(|_| libc::EBADMSG)?;
    let (pidfd, channel, begun) = match carry_out(message, fds) {
        Ok((made, notes)) => {
            let begun = Begun {
                pid: made.pid,
                in_two_steps: made.in_two_steps,
                notes,
            };
            (Some(made.pidfd), Some(made.channel), Ok(begun))
        }
        Err(error) => (None, None, Err(error)),
    };
    let fds: Vec<BorrowedFd<'_>> = pidfd.iter().chain(&channel).map(AsFd::as_fd).collect();
    let begun: Result<Begun, LaunchError> = begun;
    say(socket, &begun, &fds)
}

fn carry_out(
    message: Message<Wanted>,
    fds: Vec<OwnedFd>,
) -> Result<(Made, Vec<String>), LaunchError> {
    let mut fds = fds.into_iter();
    match message.order {
        Order::Container(mut plan) => {
            plan.process.preserved_fds = message.preserved_fds;
            let gate = fds.next().map_or(Gate::Parent, Gate::Fifo);
            let stdio = stdio(&plan.process)?;
            let (prepared, notes) = prepare::container(&plan, None)?;
            let words = Words::of_plan(&plan);
            let made = spawn(prepared, &stdio, &gate, Kinship::Sibling, &words)?;
            Ok((made, notes))
        }
        Order::Exec {
            cgroup,
            mut process,
        } => {
            process.preserved_fds = message.preserved_fds;
            let target = fds.next().ok_or_else(|| lost(libc::EBADMSG))?;
            let stdio = stdio(&process)?;
            let (prepared, notes) = prepare::exec(target.as_fd(), &cgroup, &process)?;
            let words = Words::of_process(&process);
            let made = spawn(prepared, &stdio, &Gate::Parent, Kinship::Sibling, &words)?;
            Ok((made, notes))
        }
    }
}

/// Our own streams, or a terminal.
fn stdio(process: &ProcessPlan) -> Result<Stdio, LaunchError> {
    if process.terminal {
        return Ok(Stdio::Terminal);
    }
    let copy = |number| {
        sys::dup_above_stdio(sys::stdio(number)).map_err(|errno| LaunchError {
            step: Step::Stdio,
            ..LaunchError::prepare("copying standard streams", errno)
        })
    };
    Ok(Stdio::Streams([copy(0)?, copy(1)?, copy(2)?]))
}
