// SPDX-License-Identifier: Apache-2.0
//! A command that is killed after any of its steps leaves nothing that `delete --force` does not
//! find.

use std::process::{Command, Stdio};

use crate::oci::Bundle;
use crate::trace::{Victim, kill_after};

/// More steps than any command has: a loop that never ends is a failure too.
const STEPS_MAX: usize = 500;

/// Kills a command after its first step, then again after its second, and so on until it gets
/// through. `before` and `after` run around each.
fn after_each_step(
    bundle: &mut Bundle,
    victim: Victim,
    arguments: &[&str],
    before: impl Fn(&Bundle),
    after: impl Fn(&Bundle),
) {
    let name = bundle.id.clone();
    for step in 1..STEPS_MAX {
        bundle.id = format!("{name}-{step}");
        before(bundle);
        let all = [arguments, &[&bundle.id]].concat();
        let killed = kill_after(quiet(&mut bundle.command(&all)), victim, step);
        after(bundle);
        bundle.nothing_left();
        if !killed {
            assert!(step > 5, "it has more steps than {step}");
            return;
        }
    }
    panic!("{arguments:?} has too many steps");
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

fn create(bundle: &Bundle) {
    bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
}

fn delete(bundle: &Bundle) {
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn create_killed_after_any_step_leaves_what_delete_finds() {
    let mut bundle = Bundle::new("sleep 1000", &[]);
    let dir = bundle.bundle().to_owned();
    let arguments = ["create", "--bundle", &dir];
    after_each_step(&mut bundle, Victim::Command, &arguments, |_| {}, delete);
}

#[test]
fn start_killed_after_any_step_leaves_what_delete_finds() {
    let mut bundle = Bundle::new("sleep 1000", &[]);
    // It has few steps of its own.
    for step in 1..6 {
        bundle.id = format!("{}-{step}", bundle.id);
        create(&bundle);
        let mut start = bundle.command(&["start", &bundle.id]);
        kill_after(quiet(&mut start), Victim::Command, step);
        delete(&bundle);
        bundle.nothing_left();
    }
}

#[test]
fn delete_killed_after_any_step_can_be_repeated() {
    let mut bundle = Bundle::new("sleep 1000", &[]);
    let start = |bundle: &Bundle| {
        create(bundle);
        bundle.ok(&["start", &bundle.id]);
    };
    let arguments = ["delete", "--force"];
    after_each_step(&mut bundle, Victim::Command, &arguments, start, delete);
}

/// The other way round: the command sees it and cleans up by itself.
fn run_leaves_nothing(victim: Victim) {
    let mut bundle = Bundle::new("exit 0", &[]);
    let dir = bundle.bundle().to_owned();
    let arguments = ["run", "--bundle", &dir];
    after_each_step(&mut bundle, victim, &arguments, |_| {}, |_| {});
}

#[test]
fn run_leaves_nothing_when_its_launcher_is_killed_after_any_step() {
    run_leaves_nothing(Victim::Launcher);
}

#[test]
fn run_leaves_nothing_when_its_child_is_killed_after_any_step() {
    run_leaves_nothing(Victim::Child);
}
