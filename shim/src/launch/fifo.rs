// SPDX-License-Identifier: Apache-2.0
//! Lets a process go that waits at a FIFO ([`Gate::Fifo`](super::Gate)), from a process that is not
//! its parent.
//!
//! The waiting process has the FIFO open for both directions, until its exec closes it. So the end
//! of the FIFO is the news that it has executed or died, and what it writes there first is why not.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::hooks::HookPoint;
use super::patience_ms;
use super::report::{self, LaunchError, Step, Words};
use crate::plan::Hooks;
use crate::sys::events;

/// Releases the process and waits until it has executed. The FIFO's name is gone afterwards.
///
/// `program` is asked for only for an error message. The poststart hooks are the caller's.
///
/// # Errors
/// A startContainer hook that failed, why the program could not be executed, or that the process
/// died before.
pub fn release(
    fifo: &Path,
    hooks: &Hooks,
    program: impl FnOnce() -> String,
) -> Result<(), LaunchError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            LaunchError::prepare(format_args!("{what} {}", fifo.display()), errno)
        }
    };
    let open = |options: &mut OpenOptions| {
        let opened = options.custom_flags(libc::O_NONBLOCK).open(fifo);
        opened.map_err(failed("opening"))
    };
    let mut reader = open(OpenOptions::new().read(true))?;
    let mut writer = open(OpenOptions::new().write(true))?;
    writer.write_all(&[1]).map_err(failed("writing to"))?;
    drop(writer);
    std::fs::remove_file(fifo).map_err(failed("removing"))?;
    let budget = HookPoint::StartContainer.budget(hooks);
    // No event is asked for: the end is always reported, and our own byte must not wake us.
    let mut fds = [events::interest(reader.as_fd(), 0)];
    let words = |hooks, program: String| Words::of_start(program, hooks);
    match events::poll(&mut fds, patience_ms(budget)) {
        Ok(0) => Err(words(hooks, String::new()).error(Step::Gate, 0, libc::ETIMEDOUT)),
        Err(errno) => Err(words(hooks, String::new()).error(Step::Gate, 0, errno)),
        Ok(_) => {
            let mut report = Vec::new();
            reader.read_to_end(&mut report).map_err(failed("reading"))?;
            match (&*report, report::decode(&report)) {
                ([], _) => Ok(()),
                (_, Some((step, index, number, output))) => {
                    Err(words(hooks, program()).reported(step, index, number, output))
                }
                // Our own byte, which nobody has taken.
                _ => Err(words(hooks, program()).error(Step::Gate, 0, libc::ESRCH)),
            }
        }
    }
}
