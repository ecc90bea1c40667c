// SPDX-License-Identifier: Apache-2.0
//! The agent that answers for a seccomp filter: it gets the notify descriptor, with what the OCI
//! specification calls the ContainerProcessState.

use std::os::fd::{AsFd, OwnedFd};

use super::report::LaunchError;
use crate::plan::SeccompListener;
use crate::sys::socket;

/// Sends the descriptor. `container` is the container's process where `pid` is one executed in it.
pub(super) fn tell(
    listener: &SeccompListener,
    pid: u32,
    container: Option<u32>,
    descriptor: &OwnedFd,
) -> Result<(), LaunchError> {
    let message = message(listener, pid, container);
    socket::connect_stream(listener.path.as_bytes())
        .and_then(|agent| socket::send(agent.as_fd(), message.as_bytes(), &[descriptor.as_fd()]))
        .map_err(|errno| {
            let path = &listener.path;
            let what = format!(
                "linux.seccomp.listenerPath: failed to connect with seccomp agent {path:?}"
            );
            LaunchError::prepare(what, errno)
        })
}

/// The numbers are put into objects that are not empty.
fn message(listener: &SeccompListener, pid: u32, container: Option<u32>) -> String {
    let process = listener.process.strip_suffix('}').unwrap_or_default();
    let state = listener.state.strip_prefix('{').unwrap_or("}");
    let (status, of_container) = match container {
        Some(container) => ("running", container),
        None => ("creating", pid),
    };
    format!(r#"{process},"pid":{pid},"state":{{"status":"{status}","pid":{of_container},{state}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pids_are_put_in() {
        let listener = SeccompListener {
            path: String::new(),
            process: r#"{"fds":["seccompFd"]}"#.into(),
            state: r#"{"id":"c"}"#.into(),
        };
        assert_eq!(
            message(&listener, 7, None),
            r#"{"fds":["seccompFd"],"pid":7,"state":{"status":"creating","pid":7,"id":"c"}}"#
        );
        assert_eq!(
            message(&listener, 7, Some(3)),
            r#"{"fds":["seccompFd"],"pid":7,"state":{"status":"running","pid":3,"id":"c"}}"#
        );
    }
}
