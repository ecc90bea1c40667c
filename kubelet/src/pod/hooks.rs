// SPDX-License-Identifier: Apache-2.0
//! Runs lifecycle hooks: exec, httpGet, sleep. The caller brings the deadline.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::ports::Runtime;
use crate::probe::{handler, http};

/// A hook command may run this long at most; stopping has its own, shorter deadline.
const EXEC_DEADLINE: Duration = Duration::from_secs(3600);

/// Runs one hook in a container.
///
/// # Errors
/// The text for the log; events carry upstream's fixed words.
pub async fn run(
    hook: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    runtime: &dyn Runtime,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = runtime
            .exec(container_id, command.clone(), EXEC_DEADLINE)
            .await;
        let output = answer.map_err(|error| error.to_string())?;
        return match output.exit_code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {}",
                command.join(" "),
                String::from_utf8_lossy(&output.output)
            )),
        };
    }
    if let Some(action) = &hook.http_get {
        let port = handler::port(&action.port, container)?;
        let url = http::url(action, pod_ip, port);
        let headers = action.http_headers.as_deref().unwrap_or_default();
        // Any answer counts: a hook says that something is about to happen, it asks nothing.
        return http::get(&url, headers)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string());
    }
    if let Some(sleep) = &hook.sleep {
        let secs = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(secs)).await;
        return Ok(());
    }
    // tcpSocket is in the API for old objects only; upstream has never run it.
    Err(format!("invalid handler for container {}", container.name))
}
