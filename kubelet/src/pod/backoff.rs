// SPDX-License-Identifier: Apache-2.0
//! Exponential back-off with memory, as client-go's `flowcontrol.Backoff` defines it: a delay is
//! counted from an event (a container's end, a failed pull), doubles each time, and starts over
//! when more than twice the longest delay has passed between two events.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// First delay and longest delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The first delay.
    pub first: Duration,
    /// No delay is longer.
    pub max: Duration,
}

/// Restarts of crashing containers, and image pulls: 10 s doubling to 5 minutes.
pub const CRASH: Limits = Limits {
    first: Duration::from_secs(10),
    max: Duration::from_secs(300),
};
/// Image pulls: as for restarts.
pub const PULL: Limits = CRASH;
/// Volumes: upstream's nested pending operations, 0.5 s doubling to 2 min 2 s.
pub const VOLUMES: Limits = Limits {
    first: Duration::from_millis(500),
    max: Duration::from_secs(122),
};
/// Sandboxes and clean-up: quick at first, then the pod worker's 10 s.
pub const SYNC: Limits = Limits {
    first: Duration::from_secs(1),
    max: Duration::from_secs(10),
};

/// One thing's back-off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

fn add(at: Timestamp, delay: Duration) -> Timestamp {
    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
    at.saturating_add(delay).unwrap_or(Timestamp::MAX)
}

impl Backoff {
    /// Until when to wait after `event`, if that is in the future.
    pub fn wait_until(
        &self,
        limits: Limits,
        event: Timestamp,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let entry = self.entry.filter(|entry| !entry.expired(limits, event))?;
        let until = add(event, entry.delay);
        (until > now).then_some(until)
    }

    /// Notes that the thing is tried again after `event`: the next wait will be longer.
    pub fn step(&mut self, limits: Limits, event: Timestamp, now: Timestamp) {
        let delay = match self.entry.filter(|entry| !entry.expired(limits, event)) {
            Some(entry) => entry.delay.saturating_mul(2).min(limits.max),
            None => limits.first.min(limits.max),
        };
        self.entry = Some(Entry {
            delay,
            updated: now,
        });
    }

    /// The current delay, for messages.
    pub fn delay(&self) -> Duration {
        self.entry.map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// The thing worked: start over.
    pub fn reset(&mut self) {
        self.entry = None;
    }
}

impl Entry {
    fn expired(&self, limits: Limits, event: Timestamp) -> bool {
        event > add(self.updated, limits.max.saturating_mul(2))
    }
}

/// Go's way to print whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).expect("small numbers are timestamps")
    }

    #[test]
    fn the_first_restart_is_immediate_then_delays_double_to_the_cap() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let finished = at(now);
            let until = backoff.wait_until(CRASH, finished, finished);
            waits.push(until.map_or(0, |until| until.as_second() - now));
            now += waits.last().copied().unwrap_or(0);
            backoff.step(CRASH, finished, at(now));
            now += 1;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_run_of_more_than_ten_minutes_starts_over() {
        let mut backoff = Backoff::default();
        backoff.step(CRASH, at(0), at(0));
        backoff.step(CRASH, at(10), at(10));
        assert!(backoff.wait_until(CRASH, at(20), at(20)).is_some());
        let later = at(10 + 601);
        assert_eq!(backoff.wait_until(CRASH, later, later), None);
        backoff.step(CRASH, later, later);
        assert_eq!(backoff.delay(), Duration::from_secs(10));
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (10, "10s"),
            (80, "1m20s"),
            (300, "5m0s"),
            (3600, "1h0m0s"),
        ];
        for (secs, text) in cases {
            assert_eq!(go_duration(Duration::from_secs(secs)), text);
        }
    }
}
