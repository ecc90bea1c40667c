// SPDX-License-Identifier: Apache-2.0
//! Runs one probe once: exec, httpGet, tcpSocket, grpc. Each has the probe's timeout as its
//! deadline. Messages are upstream's, because users grep events for them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::state::Outcome;
use super::{grpc, http};
use crate::ports::{Runtime, RuntimeError};

/// Upstream cuts a failing command's output here.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// Where and in what a probe runs.
#[derive(Debug, Clone)]
pub struct Target {
    /// The runtime's container id.
    pub container_id: String,
    /// The container, for its named ports.
    pub container: Container,
    /// The pod's primary address.
    pub pod_ip: String,
}

/// The probe's `timeoutSeconds`, 1 by default.
pub fn timeout(probe: &Probe) -> Duration {
    let secs = probe
        .timeout_seconds
        .and_then(|secs| u64::try_from(secs).ok());
    Duration::from_secs(secs.filter(|secs| *secs > 0).unwrap_or(1))
}

/// A port by number or by its name in the container.
///
/// # Errors
/// The text for the event.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => {
                let ports = container.ports.as_deref().unwrap_or_default();
                let named = ports.iter().find(|port| port.name.as_deref() == Some(name));
                named.map(|port| port.container_port)
            }
        },
    };
    let number = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!(
            "couldn't find port: \"{name}\" in container {}",
            container.name
        ),
    })
}

/// Runs the probe once. Dropping the future abandons it.
pub async fn run(probe: &Probe, target: &Target, runtime: &dyn Runtime) -> Outcome {
    let limit = timeout(probe);
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return run_exec(&command, target, runtime, limit).await;
    }
    if let Some(action) = &probe.http_get {
        return match port(&action.port, &target.container) {
            Ok(port) => run_http(action, target, port, limit).await,
            Err(problem) => Outcome::Unknown(problem),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        return match port(&action.port, &target.container) {
            Ok(port) => run_tcp(host.unwrap_or(&target.pod_ip), port, limit).await,
            Err(problem) => Outcome::Unknown(problem),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        return match u16::try_from(action.port) {
            Ok(port) => grpc::check(&target.pod_ip, port, service, limit).await,
            Err(_) => Outcome::Unknown(format!("invalid port number: {}", action.port)),
        };
    }
    Outcome::Unknown(format!(
        "missing probe handler for {}",
        target.container.name
    ))
}

async fn run_exec(
    command: &[String],
    target: &Target,
    runtime: &dyn Runtime,
    limit: Duration,
) -> Outcome {
    let answer = runtime.exec(&target.container_id, command.to_vec(), limit);
    match answer.await {
        Ok(output) => {
            let end = output.output.len().min(OUTPUT_BYTES_MAX);
            let text = String::from_utf8_lossy(&output.output[..end]).into_owned();
            match output.exit_code {
                0 => Outcome::Success(text),
                _ => Outcome::Failure(text),
            }
        }
        Err(RuntimeError::Deadline { .. }) => Outcome::Failure(timed_out(command, limit)),
        Err(error) => {
            let text = error.to_string();
            // Runtimes report the command's own timeout as DeadlineExceeded. A runtime that cannot
            // be reached says nothing about the container.
            let answered = matches!(error, RuntimeError::Refused { .. });
            if answered && (text.contains("DeadlineExceeded") || text.contains("timeout")) {
                return Outcome::Failure(timed_out(command, limit));
            }
            Outcome::Unknown(text)
        }
    }
}

fn timed_out(command: &[String], limit: Duration) -> String {
    format!(
        "command timed out: \"{}\" timed out after {}s",
        command.join(" "),
        limit.as_secs()
    )
}

async fn run_http(
    action: &k8s_openapi::api::core::v1::HTTPGetAction,
    target: &Target,
    port: u16,
    limit: Duration,
) -> Outcome {
    let url = http::url(action, &target.pod_ip, port);
    let headers = action.http_headers.as_deref().unwrap_or_default();
    match tokio::time::timeout(limit, http::get(&url, headers)).await {
        Err(_) => Outcome::Failure(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(error)) => Outcome::Failure(error.to_string()),
        Ok(Ok(answer)) => match answer.redirected_away {
            Some(to) => Outcome::Warning(format!(
                "Probe terminated redirects, Response body: redirect to {to}"
            )),
            None if (200..400).contains(&answer.status) => Outcome::Success(String::new()),
            None => Outcome::Failure(format!(
                "HTTP probe failed with statuscode: {}",
                answer.status
            )),
        },
    }
}

async fn run_tcp(host: &str, port: u16, limit: Duration) -> Outcome {
    let connect = tokio::net::TcpStream::connect((host, port));
    match tokio::time::timeout(limit, connect).await {
        Err(_) => {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Outcome::Failure(http::dial_error(host, port, &late))
        }
        Ok(Err(error)) => Outcome::Failure(http::dial_error(host, port, &error)),
        Ok(Ok(_)) => Outcome::Success(String::new()),
    }
}
