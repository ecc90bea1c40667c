// SPDX-License-Identifier: Apache-2.0
//! Kills for want of memory, as they happen: on v1 an eventfd that the kernel signals when a cgroup
//! reaches its limit, on v2 changes of memory.events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::CgroupError;
use super::files::{self, failed};

/// What [`OomWatch::next`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// So many more processes were killed since the last event. On v1 it may be 0: the kernel tells
    /// that the limit is reached before it kills, and with the killer disabled it kills nobody.
    Killed(u64),
    /// The cgroup is gone, or (v2) nobody is left in it.
    Over,
}

/// A source of events. Readable (see [`AsFd`]) when [`next`](Self::next) has something to say.
#[derive(Debug)]
pub struct OomWatch {
    source: Source,
    /// The file with the line `oom_kill N`.
    counter: PathBuf,
    seen: u64,
}

#[derive(Debug)]
enum Source {
    /// memory.oom_control stays open: the kernel wants it while the registration lasts.
    Signalled { event: EventFd, _control: OwnedFd },
    /// Watches memory.events and cgroup.events.
    Changed { inotify: Inotify, events: PathBuf },
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Signalled { event, .. } => event.as_fd(),
            Source::Changed { inotify, .. } => inotify.as_fd(),
        }
    }
}

impl OomWatch {
    /// For the directory of a cgroup in the v1 memory tree.
    pub(super) fn signalled(dir: &Path) -> Result<OomWatch, CgroupError> {
        let counter = dir.join("memory.oom_control");
        let control = std::fs::File::open(&counter).map_err(failed("opening", &counter))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags)
            .map_err(|error| failed("making an eventfd for", &counter)(error.into()))?;
        let numbers = format!("{} {}", raw(&event), raw(&control));
        files::write(&dir.join("cgroup.event_control"), &numbers)?;
        let source = Source::Signalled {
            event,
            _control: control.into(),
        };
        OomWatch::new(source, counter)
    }

    /// For the directory of a cgroup in the v2 tree.
    pub(super) fn changed(dir: &Path) -> Result<OomWatch, CgroupError> {
        let (counter, events) = (dir.join("memory.events"), dir.join("cgroup.events"));
        let at = |error: nix::Error| failed("watching", &counter)(error.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(at)?;
        for file in [&counter, &events] {
            inotify
                .add_watch(file, AddWatchFlags::IN_MODIFY)
                .map_err(|error| failed("watching", file)(error.into()))?;
        }
        OomWatch::new(Source::Changed { inotify, events }, counter)
    }

    fn new(source: Source, counter: PathBuf) -> Result<OomWatch, CgroupError> {
        let seen = files::keyed(&files::read(&counter)?, "oom_kill");
        Ok(OomWatch {
            source,
            counter,
            seen,
        })
    }

    /// Waits for the next event, at most so long; `None` when there was none.
    ///
    /// # Errors
    /// When waiting or reading fails.
    pub fn next(&mut self, timeout: std::time::Duration) -> Result<Option<OomEvent>, CgroupError> {
        let start = std::time::Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let readable = shim::sys::events::wait_readable(self.as_fd(), left_ms);
            let readable = readable.map_err(|errno| {
                failed("watching", &self.counter)(std::io::Error::from_raw_os_error(errno))
            })?;
            if !readable {
                return Ok(None);
            }
            self.drain();
            if let Some(event) = self.look()? {
                return Ok(Some(event));
            }
        }
    }

    /// Takes what made the descriptor readable. It fails only when there is nothing more.
    fn drain(&self) {
        match &self.source {
            Source::Signalled { event, .. } => {
                let _ = event.read();
            }
            Source::Changed { inotify, .. } => while inotify.read_events().is_ok() {},
        }
    }

    /// What has changed since the last look.
    fn look(&mut self) -> Result<Option<OomEvent>, CgroupError> {
        let text = match std::fs::read_to_string(&self.counter) {
            Err(error) if files::absent(&error) => return Ok(Some(OomEvent::Over)),
            other => other.map_err(failed("reading", &self.counter))?,
        };
        let count = files::keyed(&text, "oom_kill");
        let new = count.saturating_sub(self.seen);
        self.seen = count;
        match &self.source {
            _ if new > 0 => Ok(Some(OomEvent::Killed(new))),
            Source::Signalled { .. } => Ok(Some(OomEvent::Killed(0))),
            Source::Changed { events, .. } => {
                let text = std::fs::read_to_string(events).unwrap_or_default();
                let empty = files::keyed(&text, "populated") == 0;
                Ok(empty.then_some(OomEvent::Over))
            }
        }
    }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}
