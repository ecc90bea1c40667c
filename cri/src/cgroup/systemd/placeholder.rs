// SPDX-License-Identifier: Apache-2.0
//! A process that does nothing, for a scope to begin with.

use std::os::fd::{AsFd, OwnedFd};

use shim::sys::{self, Clone};

use super::CgroupError;

/// Ended when dropped; by itself when its owner was killed.
#[derive(Debug)]
pub(super) struct Placeholder {
    pid: u32,
    pidfd: OwnedFd,
}

/// Longer than any container takes to be made.
const LIFETIME_SECS: libc::c_uint = 120;

impl Placeholder {
    pub(super) fn start() -> Result<Placeholder, CgroupError> {
        let failed = |errno| CgroupError::Systemd {
            action: "making a process for the scope".to_owned(),
            reason: std::io::Error::from_raw_os_error(errno).to_string(),
        };
        match sys::clone3(0, None).map_err(failed)? {
            // What the owner holds (sockets, locks) must not outlive it here. Handlers are the default ones after this clone, so the alarm ends it, once it is not
            // blocked, as it is in a runtime that passes signals on. Nothing here allocates.
            Clone::Child => {
                if sys::reset_signals().is_err() || sys::close_all_from(0, &[]).is_err() {
                    sys::exit(1);
                }
                nix::unistd::alarm::set(LIFETIME_SECS);
                loop {
                    nix::unistd::pause();
                }
            }
            Clone::Parent { pid, pidfd } => Ok(Placeholder { pid, pidfd }),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::reap(Some(self.pid), true);
    }
}
