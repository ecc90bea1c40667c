// SPDX-License-Identifier: Apache-2.0
//! The end of processes: collecting them, what goes with them, and their records.

use super::complain;
use super::kill::signal_cgroup;
use super::processes::{News, Processes, Stage, first};
use super::records;
use crate::plan::CgroupJoin;
use crate::protocol::{ExitRecord, ProcessId};
use crate::sys;

impl Processes {
    /// Collects every child that has ended; orphans of containers are collected too, unnamed.
    pub(super) fn reap(&mut self) {
        while let Ok(Some(child)) = sys::reap(None, false) {
            if !self.was_hook_runner(child.pid) {
                self.bury(child);
            }
        }
    }

    pub(super) fn bury(&mut self, child: sys::Ended) {
        if self.outside_ended(&child) {
            return;
        }
        let mut living = self.all.iter().filter(|(_, process)| !process.has_exited());
        let Some((id, process)) = living.find(|(_, process)| process.pid == child.pid) else {
            return;
        };
        let id = id.clone();
        let oom_killed = id.exec.is_none() && oom_kills(&process.cgroup) > 0;
        let launching = matches!(process.stage, Stage::Launching(_));
        let oom = oom_killed && child.signal == libc::SIGKILL;
        let never_was = launching && self.launch_ended(&id, &child, oom);
        // An exec whose container was removed before it ended.
        let forgotten = never_was || !self.all.contains_key(&first(&id.container));
        let Some(process) = self.all.get_mut(&id) else {
            return;
        };
        let started_at = match process.stage {
            Stage::Running { started_at } => started_at,
            _ => 0,
        };
        let record = ExitRecord {
            pid: child.pid,
            code: child.code,
            signal: child.signal,
            oom_killed,
            started_at,
            finished_at: sys::now(),
        };
        process.stage = Stage::Exited(record);
        let poststop = process.poststop.take();
        if id.exec.is_none() && !process.own_pid_namespace && !Self::is_sandbox(&id) {
            signal_cgroup(&process.cgroup, libc::SIGKILL);
        }
        if let Some(streams) = &mut process.streams {
            streams.drain(record.finished_at);
            streams.close_input();
        }
        if forgotten {
            self.all.remove(&id);
        } else if id.exec.is_none() {
            self.keep(&id, &record);
        }
        self.run_poststop(poststop);
        self.news.push(News::Ended(id, record));
    }

    fn keep(&self, id: &ProcessId, record: &ExitRecord) {
        if self.dir_goes {
            return;
        }
        if let Err(error) = records::write(&self.dir, &id.container, record) {
            complain(format_args!(
                "writing the exit record of {}: {error}",
                id.container
            ));
        }
    }
}

/// How many processes of the cgroup the kernel has killed for lack of memory.
fn oom_kills(join: &CgroupJoin) -> u64 {
    let text = join.oom_file.as_ref().map(std::fs::read_to_string);
    let Some(Ok(text)) = text else { return 0 };
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}
