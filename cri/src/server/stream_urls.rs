// SPDX-License-Identifier: Apache-2.0
//! Exec, Attach, PortForward: the request is checked and kept under a one-time token; the answer is
//! the URL at which the streaming server takes it up.

use std::sync::Arc;

use crate::fault::{Fault, Result};
use crate::runtime::Runtime;
use crate::sandbox::Phase;
use crate::streaming::Stream;
use crate::v1;

/// The URL of an exec.
///
/// # Errors
/// Not found; not running; or a combination of streams that cannot be.
pub(crate) fn exec(runtime: &Arc<Runtime>, request: v1::ExecRequest) -> Result<v1::ExecResponse> {
    let container = runtime.container(&request.container_id)?;
    let record = container.record.get();
    record.state.check_running(&record.id)?;
    check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let url = runtime.tokens.keep(Stream::Exec {
        container: record.id.clone(),
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(v1::ExecResponse { url })
}

/// The URL of an attachment.
///
/// # Errors
/// As for exec; or the container's terminal is not as the client thinks.
pub(crate) fn attach(
    runtime: &Arc<Runtime>,
    request: &v1::AttachRequest,
) -> Result<v1::AttachResponse> {
    let container = runtime.container(&request.container_id)?;
    let record = container.record.get();
    record.state.check_running(&record.id)?;
    check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let url = runtime.tokens.keep(Stream::Attach {
        container: record.id.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(v1::AttachResponse { url })
}

/// The URL of a port-forward.
///
/// # Errors
/// Not found; not ready; or a port out of range.
pub(crate) fn port_forward(
    runtime: &Arc<Runtime>,
    request: &v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse> {
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    let record = sandbox.record.get();
    if record.phase != Phase::Ready {
        return Err(Fault::precondition(format!(
            "sandbox {:?} is not running",
            record.id
        )));
    }
    let ports: Result<Vec<u16>> = request
        .port
        .iter()
        .map(|port| {
            u16::try_from(*port)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| Fault::invalid(format!("port {port} is outside 1..=65535")))
        })
        .collect();
    let url = runtime.tokens.keep(Stream::PortForward {
        sandbox: record.id.clone(),
        ports: ports?,
    })?;
    Ok(v1::PortForwardResponse { url })
}

fn check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<()> {
    if tty && stderr {
        return Err(Fault::invalid("tty and stderr cannot both be true"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Fault::invalid(
            "one of stdin, stdout, or stderr must be set",
        ));
    }
    Ok(())
}
