// SPDX-License-Identifier: Apache-2.0
//! `exec --cgroup`: an existing cgroup below the container's.

use std::path::Path;

use shim::plan::CgroupJoin;

use super::{Failure, Outcome};

/// The container's cgroups with the asked for ones below them instead: `path`, or on v1
/// `controller[,controller]:path` for some of them.
pub(super) fn join(mut join: CgroupJoin, asked: &[String]) -> Outcome<CgroupJoin> {
    let mut seen: Vec<&str> = Vec::new();
    for argument in asked {
        let Some((controllers, below)) = argument.split_once(':') else {
            if asked.len() != 1 {
                return Err(invalid(argument, "missing <controller>: prefix"));
            }
            return everywhere(join, argument);
        };
        if controllers.split(',').any(str::is_empty) {
            return Err(invalid(argument, "empty <controller> prefix"));
        }
        for controller in controllers.split(',') {
            if seen.contains(&controller) {
                let reason = format!("controller {controller} specified multiple times");
                return Err(invalid(argument, &reason));
            }
            seen.push(controller);
            let dir = join.v1.iter_mut().find(|dir| manages(dir, controller));
            let unknown = || invalid(argument, &format!("unknown controller {controller}"));
            let dir = dir.ok_or_else(unknown)?;
            *dir = existing(dir, below, argument)?;
        }
    }
    Ok(join)
}

fn everywhere(mut join: CgroupJoin, below: &str) -> Outcome<CgroupJoin> {
    for dir in join.v1.iter_mut().chain(&mut join.unified) {
        *dir = existing(dir, below, below)?;
    }
    Ok(join)
}

/// Hierarchies are mounted side by side: `/sys/fs/cgroup/<controllers>/<path of the cgroup>`.
fn manages(dir: &str, controller: &str) -> bool {
    const PARTS_OF_THE_ROOT: usize = 4;
    let hierarchy = dir.split('/').nth(PARTS_OF_THE_ROOT).unwrap_or_default();
    hierarchy.split(',').any(|name| name == controller)
}

fn existing(dir: &str, below: &str, argument: &str) -> Outcome<String> {
    let parts: Vec<&str> = below
        .split('/')
        .filter(|p| !matches!(*p, "" | "."))
        .collect();
    if parts.contains(&"..") {
        let reason = "bad sub cgroup path: it leads out of the container's cgroup";
        return Err(invalid(argument, reason));
    }
    let path = parts
        .iter()
        .fold(dir.to_owned(), |path, part| format!("{path}/{part}"));
    match Path::new(&path).is_dir() {
        true => Ok(path),
        // As runc says it, which finds out when it has a process.
        false => Err(invalid(
            argument,
            &format!("error adding pid to {path}: no such file or directory"),
        )),
    }
}

fn invalid(argument: &str, reason: &str) -> Failure {
    Failure::new(format!("invalid --cgroup argument: {argument} ({reason})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1() -> CgroupJoin {
        CgroupJoin {
            v1: vec![
                "/sys/fs/cgroup/cpu,cpuacct/c".into(),
                "/sys/fs/cgroup/pids/c".into(),
            ],
            ..CgroupJoin::default()
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (asked, reason) in [
            (&["a", "b"][..], "missing <controller>: prefix"),
            (&["cpu,:x"], "empty <controller> prefix"),
            (&["nosuch:x"], "unknown controller"),
            (&["../x"], "out of the container's cgroup"),
            (&["cpuacct:no-such-group"], "adding pid to /sys/fs/cgroup"),
        ] {
            let asked: Vec<String> = asked.iter().map(|s| (*s).to_owned()).collect();
            let message = join(v1(), &asked).expect_err("refused").message;
            assert!(message.contains(reason), "{message}");
        }
        assert_eq!(join(v1(), &[]).expect("as it was"), v1());
    }
}
