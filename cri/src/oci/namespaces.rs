// SPDX-License-Identifier: Apache-2.0
//! Which namespaces are new, joined, or the host's.

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
use shim::plan::{Clock, Namespace, Namespaces, TimeOffset};

use super::compile::{CompileError, invalid, unsupported};
use super::users;

/// `joins_mounts`: the caller's containers may be set up in a mount namespace that is there already.
pub(super) fn namespaces(linux: &Linux, joins_mounts: bool) -> Result<Namespaces, CompileError> {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    let find = |kind| once(all, kind).map(|found| found.map(source));
    let or_host = |found: Option<Namespace>| found.unwrap_or_default();
    let mount = mounts(find(LinuxNamespaceType::Mount)?, joins_mounts)?;
    let time = or_host(find(LinuxNamespaceType::Time)?);
    Ok(Namespaces {
        user: users::users(linux, find(LinuxNamespaceType::User)?)?,
        pid: or_host(find(LinuxNamespaceType::Pid)?),
        net: or_host(find(LinuxNamespaceType::Network)?),
        ipc: or_host(find(LinuxNamespaceType::Ipc)?),
        uts: or_host(find(LinuxNamespaceType::Uts)?),
        cgroup: or_host(find(LinuxNamespaceType::Cgroup)?),
        time_offsets: time_offsets(linux, &time)?,
        time,
        mount,
    })
}

/// As runc, a kind that is there twice is no slip to be guessed at.
fn once(
    all: &[LinuxNamespace],
    kind: LinuxNamespaceType,
) -> Result<Option<&LinuxNamespace>, CompileError> {
    let mut found = all.iter().filter(|namespace| namespace.typ() == kind);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(invalid(
            format!("linux.namespaces[{kind}]"),
            "it is there twice",
        )),
        (first, None) => Ok(first),
    }
}

fn source(namespace: &LinuxNamespace) -> Namespace {
    match namespace.path() {
        Some(path) if !path.as_os_str().is_empty() => {
            Namespace::Join(path.to_string_lossy().into_owned())
        }
        _ => Namespace::New,
    }
}

/// The path of the one to join, if it is not a new one.
fn mounts(found: Option<Namespace>, joins: bool) -> Result<Option<String>, CompileError> {
    match found {
        Some(Namespace::New) => Ok(None),
        Some(Namespace::Join(path)) if joins => Ok(Some(path)),
        Some(_) => Err(unsupported(
            "linux.namespaces[mount].path",
            "a container of a pod gets a mount namespace of its own: setting up a root file system \
             in another's would change that one's",
        )),
        None => Err(unsupported(
            "linux.namespaces",
            "without a mount namespace the container would change the host's mounts",
        )),
    }
}

/// Sorted, so that equal specs give equal plans.
fn time_offsets(linux: &Linux, time: &Namespace) -> Result<Vec<TimeOffset>, CompileError> {
    let mut offsets = Vec::new();
    for (name, offset) in linux.time_offsets().iter().flatten() {
        let field = format!("linux.timeOffsets[{name}]");
        if *time != Namespace::New {
            return Err(invalid(field, "it needs a new time namespace"));
        }
        let clock = match name.as_str() {
            "monotonic" => Clock::Monotonic,
            "boottime" => Clock::Boottime,
            _ => return Err(invalid(field, "only monotonic and boottime have offsets")),
        };
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(invalid(field, "nanosecs is a second or more"));
        }
        offsets.push(TimeOffset {
            clock,
            seconds: offset.secs().unwrap_or(0),
            nanoseconds,
        });
    }
    offsets.sort_by_key(|offset| offset.clock == Clock::Boottime);
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compile(linux: Value) -> Result<Namespaces, String> {
        let linux = serde_json::from_value(linux).expect("a linux part");
        namespaces(&linux, false).map_err(|error| error.to_string())
    }

    #[test]
    fn mounts_are_joined_where_the_caller_does_so() {
        let mounts = json!({"namespaces": [{"type": "mount", "path": "/x"}]});
        let linux = serde_json::from_value(mounts).expect("a linux part");
        let joined = namespaces(&linux, true).expect("compiles");
        assert_eq!(joined.mount.as_deref(), Some("/x"));
    }

    #[test]
    fn kinds_are_new_joined_or_the_hosts() {
        let spaces = compile(json!({"namespaces": [
            {"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/run/netns/x"},
            {"type": "time"}],
            "timeOffsets": {"boottime": {"secs": -5}, "monotonic": {"secs": 1, "nanosecs": 2}}}))
        .expect("compiles");
        assert_eq!(spaces.pid, Namespace::New);
        assert_eq!(spaces.net, Namespace::Join("/run/netns/x".into()));
        assert_eq!(spaces.ipc, Namespace::Host);
        assert_eq!(spaces.time_offsets[0].nanoseconds, 2);
        assert_eq!(spaces.time_offsets[1].seconds, -5);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (linux, expected) in [
            (
                json!({"namespaces": []}),
                "linux.namespaces is not supported",
            ),
            (
                json!({"namespaces": [{"type": "mount", "path": "/x"}]}),
                "linux.namespaces[mount].path is not supported",
            ),
            (
                json!({"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]}),
                "linux.namespaces[pid] is invalid: it is there twice",
            ),
            (
                json!({"namespaces": [{"type": "mount"}], "timeOffsets": {"boottime": {}}}),
                "linux.timeOffsets[boottime] is invalid: it needs a new time namespace",
            ),
            (
                json!({"namespaces": [{"type": "mount"}, {"type": "time"}],
                    "timeOffsets": {"realtime": {}}}),
                "linux.timeOffsets[realtime] is invalid",
            ),
        ] {
            let error = compile(linux).expect_err("refused");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
