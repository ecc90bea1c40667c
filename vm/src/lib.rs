// SPDX-License-Identifier: Apache-2.0
//! A QEMU guest with Debian's cloud kernel and cgroup v2, in which one script runs to its end.
//!
//! The kernel comes from Debian's package, unpacked into a cache directory and never installed. The
//! guest's root is an ext4 disk that is filled without being mounted; what a scenario needs is
//! copied there. The guest has no network to the outside. Its output and exit code come back over
//! virtio-serial ports, so kernel messages never mix with them.
//!
//! [`run`] blocks until the guest has powered off or the deadline has passed; the QEMU process is a
//! child that is killed by its own pid in either case. [`run_pair`] does the same with two guests
//! that reach each other, and nobody else, over IPv4 and IPv6.

mod accel;
mod disk;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod qemu;
mod wire;

pub use accel::Accel;
pub use guest::{GuestConfig, Outcome, run, run_pair, shell};
pub use kernel::Kernel;
pub use wire::Place;

use std::io;
use std::path::PathBuf;

/// Why a guest could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program of the host is missing.
    #[error("{program} is missing; Debian's package {package} has it")]
    Missing {
        /// What was to be run.
        program: &'static str,
        /// Where to get it.
        package: &'static str,
    },
    /// A program of the host ended with an error.
    #[error("{program} ended with {status}: {stderr}")]
    Failed {
        /// What was run.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// QEMU gave up by itself.
    #[error("qemu-system-x86_64 ended with {status}: {stderr}")]
    Qemu {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file or directory could not be read or written.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The lower error.
        #[source]
        source: io::Error,
    },
    /// The package of the kernel is not what was expected.
    #[error("the kernel package has no {0}")]
    KernelPackage(String),
    /// A guest did not power off in time. Its text is what each of them had to say until then.
    #[error("not ended within {0:?}: {1}")]
    Deadline(std::time::Duration, String),
}

impl Error {
    fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            attempt,
            path,
            source,
        }
    }
}

/// Runs a program of the host to its end; an error has what it said.
fn host_program(
    program: &'static str,
    package: &'static str,
    configure: impl FnOnce(&mut std::process::Command) -> &mut std::process::Command,
) -> Result<String, Error> {
    let mut command = std::process::Command::new(program);
    let output = configure(&mut command)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing { program, package },
            _ => Error::io("running", program)(error),
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        program,
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
