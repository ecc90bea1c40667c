// SPDX-License-Identifier: Apache-2.0
//! Is the node short of something: measurements against thresholds, with a memory.
//!
//! Pure: the caller measures and tells the time. A pressure lasts for a while after its cause is
//! gone (`evictionPressureTransitionPeriod`), so that a node on the edge doesn't flap.

use jiff::{SignedDuration, Timestamp};

use super::machine::Room;
use crate::quantity::Quantity;

/// Limits below which the node is under pressure (`evictionHard`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Memory that is left, in bytes.
    pub memory_available_bytes: u64,
    /// Room on the file system of the kubelet's directory, in percent.
    pub nodefs_available_percent: u64,
    /// Free inodes there, in percent.
    pub nodefs_inodes_free_percent: u64,
    /// Room on the file system of the images, in percent.
    pub imagefs_available_percent: u64,
    /// Free process numbers, in percent; upstream's defaults have no limit on them.
    pub pid_available_percent: Option<u64>,
    /// How long a pressure lasts after its cause is gone (`evictionPressureTransitionPeriod`).
    pub transition_period: SignedDuration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory_available_bytes: 100 << 20,
            nodefs_available_percent: 10,
            nodefs_inodes_free_percent: 5,
            imagefs_available_percent: 15,
            pid_available_percent: None,
            transition_period: SignedDuration::from_mins(5),
        }
    }
}

/// A threshold that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("threshold {0:?}: {1}")]
pub struct ThresholdError(String, &'static str);

impl std::str::FromStr for Thresholds {
    type Err = ThresholdError;

    /// Reads `--eviction-hard`: `memory.available<100Mi,nodefs.available<10%,…`. As upstream, what
    /// is not named has no limit.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut thresholds = Self {
            memory_available_bytes: 0,
            nodefs_available_percent: 0,
            nodefs_inodes_free_percent: 0,
            imagefs_available_percent: 0,
            ..Self::default()
        };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = |why| ThresholdError(part.to_owned(), why);
            let (signal, limit) = part
                .split_once('<')
                .ok_or_else(|| wrong("it is written signal<limit"))?;
            let percent = || {
                let number = limit.strip_suffix('%').and_then(|n| n.parse().ok());
                number
                    .filter(|percent| *percent <= 100)
                    .ok_or_else(|| wrong("its limit is a percentage such as 10%"))
            };
            match signal {
                "memory.available" => {
                    thresholds.memory_available_bytes = Quantity::parse(limit)
                        .ok()
                        .and_then(|quantity| u64::try_from(quantity.value()).ok())
                        .ok_or_else(|| wrong("its limit is a quantity such as 100Mi"))?;
                }
                "nodefs.available" => thresholds.nodefs_available_percent = percent()?,
                "nodefs.inodesFree" => thresholds.nodefs_inodes_free_percent = percent()?,
                "imagefs.available" => thresholds.imagefs_available_percent = percent()?,
                "pid.available" => thresholds.pid_available_percent = Some(percent()?),
                _ => return Err(wrong("this signal is not supported")),
            }
        }
        Ok(thresholds)
    }
}

/// The answer for one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pressure {
    pub(super) memory: bool,
    pub(super) disk: bool,
    pub(super) pid: bool,
}

/// When each pressure was last seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pid: Option<Timestamp>,
}

impl Memory {
    /// Takes a measurement in and says what holds now.
    pub(super) fn observe(
        &mut self,
        room: &Room,
        thresholds: &Thresholds,
        now: Timestamp,
    ) -> Pressure {
        let seen = under_pressure(room, thresholds);
        let lasts = |memory: &mut Option<Timestamp>, seen: bool| {
            if seen {
                *memory = Some(now);
            }
            memory.is_some_and(|at| now.duration_since(at) < thresholds.transition_period)
        };
        Pressure {
            memory: lasts(&mut self.memory, seen.memory),
            disk: lasts(&mut self.disk, seen.disk),
            pid: lasts(&mut self.pid, seen.pid),
        }
    }
}

fn under_pressure(room: &Room, limits: &Thresholds) -> Pressure {
    let pids_free = room.pids_max.saturating_sub(room.pids_used);
    let nodefs = &room.nodefs;
    Pressure {
        memory: room.memory_available_bytes < limits.memory_available_bytes,
        disk: below(
            nodefs.available_bytes,
            nodefs.capacity_bytes,
            limits.nodefs_available_percent,
        ) || below(
            nodefs.inodes_free,
            nodefs.inodes,
            limits.nodefs_inodes_free_percent,
        ) || below(
            room.imagefs.available_bytes,
            room.imagefs.capacity_bytes,
            limits.imagefs_available_percent,
        ),
        pid: limits
            .pid_available_percent
            .is_some_and(|percent| below(pids_free, room.pids_max, percent)),
    }
}

/// Filesystems without a count (inodes of btrfs) report zero of zero: no pressure.
fn below(free: u64, total: u64, percent: u64) -> bool {
    total > 0 && u128::from(free) * 100 < u128::from(total) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::super::machine::Filesystem;
    use super::*;

    fn healthy() -> Room {
        let disk = Filesystem {
            capacity_bytes: 1000,
            available_bytes: 500,
            used_bytes: 500,
            inodes: 100,
            inodes_free: 50,
        };
        Room {
            memory_bytes: 8 << 30,
            memory_available_bytes: 4 << 30,
            nodefs: disk,
            imagefs: disk,
            pids_max: 1000,
            pids_used: 10,
        }
    }

    fn check(change: impl FnOnce(&mut Room), want: Pressure) {
        let mut room = healthy();
        change(&mut room);
        let limits = Thresholds {
            pid_available_percent: Some(5),
            ..Thresholds::default()
        };
        assert_eq!(under_pressure(&room, &limits), want);
    }

    #[test]
    fn each_measurement_has_its_condition() {
        let none = Pressure::default();
        let disk = Pressure { disk: true, ..none };
        check(|_| {}, none);
        check(
            |room| room.memory_available_bytes = (100 << 20) - 1,
            Pressure {
                memory: true,
                ..none
            },
        );
        check(|room| room.memory_available_bytes = 100 << 20, none);
        check(|room| room.nodefs.available_bytes = 99, disk);
        check(|room| room.nodefs.available_bytes = 100, none);
        check(|room| room.nodefs.inodes_free = 4, disk);
        check(|room| room.nodefs.inodes = 0, none);
        check(|room| room.imagefs.available_bytes = 149, disk);
        check(|room| room.pids_used = 951, Pressure { pid: true, ..none });
    }

    #[test]
    fn a_pressure_outlasts_its_cause() {
        let (mut memory, limits) = (Memory::default(), Thresholds::default());
        let mut at = |secs: i64, available: u64| {
            let mut room = healthy();
            room.memory_available_bytes = available;
            let now = Timestamp::from_second(1_000_000 + secs).expect("a time");
            memory.observe(&room, &limits, now).memory
        };
        assert!(!at(0, 4 << 30));
        assert!(at(10, 1));
        assert!(at(309, 4 << 30));
        assert!(!at(310, 4 << 30));
    }
}
