// SPDX-License-Identifier: Apache-2.0
//! The hooks that follow a container's end. They run in a process of their own, one after the other:
//! the pod's other containers do not wait for them.

use super::complain;
use super::kill::signal_tree;
use super::processes::Processes;
use crate::launch::{hooks, reason};
use crate::plan::{CgroupJoin, Hooks};
use crate::sys::{self, Clone};

/// The poststop hooks among those of a container; none when there are none.
pub(super) fn of(hooks: &Hooks) -> Option<Box<Hooks>> {
    let some = !hooks.poststop.is_empty();
    some.then(|| {
        Box::new(Hooks {
            state: hooks.state.clone(),
            poststop: hooks.poststop.clone(),
            ..Hooks::default()
        })
    })
}

impl Processes {
    /// Nothing depends on these hooks any more, so a failure is told in the pod's log and no more.
    pub(super) fn run_poststop(&mut self, hooks: Option<Box<Hooks>>) {
        let Some(hooks) = hooks else {
            return;
        };
        match sys::clone3(0, None) {
            Ok(Clone::Parent { pid, .. }) => self.hook_runners.push(pid),
            Ok(Clone::Child) => run(&hooks),
            Err(errno) => complain(format_args!("running poststop hooks: {}", reason(errno))),
        }
    }

    /// Whether an ended child was one that ran hooks.
    pub(super) fn was_hook_runner(&mut self, pid: u32) -> bool {
        let before = self.hook_runners.len();
        self.hook_runners.retain(|runner| *runner != pid);
        self.hook_runners.len() != before
    }

    /// Ends hooks that are still running, with all that they started.
    pub(super) fn kill_hooks(&self) {
        for runner in &self.hook_runners {
            signal_tree(*runner, &CgroupJoin::default(), libc::SIGKILL);
        }
    }
}

/// In a process of its own, which is a copy of the shim with one thread.
fn run(list: &Hooks) -> ! {
    // Clients would wait for the end of the copies. It fails on kernels that no shim starts on.
    let _ = sys::close_all_from(3, &[]);
    for error in hooks::run_poststop(list) {
        complain(format_args!("{error}"));
    }
    sys::exit(0)
}
