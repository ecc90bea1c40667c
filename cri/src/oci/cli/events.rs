// SPDX-License-Identifier: Apache-2.0
//! `events`: statistics at an interval and kills for want of memory as they happen, one JSON object
//! to a line.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use shim::sys::events as descriptors;

use super::cgroups::Cgroup;
use super::store::{self, Record};
use super::{Attempt, Context, Failure, Outcome};
use crate::cgroup::{self, OomEvent, OomWatch, Stats};

pub(super) fn events(context: &Context, id: &str, interval: &str, once: bool) -> Outcome {
    let interval = duration(interval)?;
    let record = context.store.load(id)?;
    let process = store::first_process(&record)
        .ok_or_else(|| Failure::new(format!("container with id {id} is not running")))?;
    let stream = Stream {
        cgroup: Cgroup::of_record(&record)?,
        record,
        process,
    };
    if once {
        emit(&stream.stats()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    stream.run(context, interval)
}

/// As Go writes durations: `5s`, `100ms`, `1m30s`.
fn duration(text: &str) -> Outcome<Duration> {
    let parsed: jiff::SignedDuration = text
        .parse()
        .attempt(format_args!("--interval: {text:?} is no duration"))?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(Failure::new("duration interval must be greater than 0")),
    }
}

/// One line, with its fields in runc's order: some who read it compare its beginning.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

struct Stream {
    cgroup: Cgroup,
    record: Record,
    process: OwnedFd,
}

impl Stream {
    fn event(&self, kind: &'static str, data: Option<Stats>) -> Event<'_> {
        Event {
            kind,
            id: &self.record.id,
            data,
        }
    }

    fn stats(&self) -> Outcome<Event<'_>> {
        let Cgroup { manager, path } = &self.cgroup;
        let mut stats = manager.stats(path).attempt("reading statistics")?;
        // As seen from the container's network namespace.
        let net = std::fs::read_to_string(format!("/proc/{}/net/dev", self.record.pid));
        stats.network_interfaces = cgroup::interfaces(&net.unwrap_or_default());
        Ok(self.event("stats", Some(stats)))
    }

    /// Until the container ends.
    fn run(&self, context: &Context, interval: Duration) -> Outcome {
        let Cgroup { manager, path } = &self.cgroup;
        let mut watch = manager.watch_oom(path).attempt("watching the cgroup")?;
        let mut due = Instant::now() + interval;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let mut fds = [watch.as_fd(), self.process.as_fd()]
                .map(|fd| descriptors::interest(fd, libc::POLLIN));
            // Rounded up, or it would spin through the last millisecond.
            let left_ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            descriptors::poll(&mut fds, left_ms)
                .map_err(std::io::Error::from_raw_os_error)
                .attempt("waiting for events")?;
            if self.kills(&mut watch)? || fds[1].revents != 0 {
                return Ok(ExitCode::SUCCESS);
            }
            if Instant::now() >= due {
                due += interval;
                match self.stats() {
                    Ok(stats) => emit(&stats)?,
                    Err(failure) => context.log.warn(&failure.message),
                }
            }
        }
    }

    /// Tells of every kill that is known; whether the cgroup is gone.
    fn kills(&self, watch: &mut OomWatch) -> Outcome<bool> {
        let next = |watch: &mut OomWatch| watch.next(Duration::ZERO).attempt("watching the cgroup");
        while let Some(event) = next(watch)? {
            match event {
                OomEvent::Killed(_) => emit(&self.event("oom", None))?,
                OomEvent::Over => return Ok(true),
            }
        }
        Ok(false)
    }
}

fn emit(event: &Event<'_>) -> Outcome<()> {
    let line = serde_json::to_string(event).attempt("encoding an event")?;
    let mut out = std::io::stdout();
    writeln!(out, "{line}").attempt("writing to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_gos_and_not_zero() {
        assert_eq!(duration("5s").ok(), Some(Duration::from_secs(5)));
        assert_eq!(duration("100ms").ok(), Some(Duration::from_millis(100)));
        assert_eq!(duration("1m30s").ok(), Some(Duration::from_secs(90)));
        for bad in ["0s", "-1s", "5", "x", ""] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
