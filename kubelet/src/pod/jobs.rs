// SPDX-License-Identifier: Apache-2.0
//! The work that an actor hands out, except starting containers (`start`). Each function copies what
//! it needs and answers a future that the actor spawns.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio_util::sync::CancellationToken;

use super::deps::Deps;
use super::dns::{self, Dns, NodeDns};
use super::memory::Job;
use super::start::{StartError, chain};
use super::{cri_config, hooks, runtime_class, spec};
use crate::cri_v1 as cri;
use crate::ports::{EventType, RuntimeResult};
use crate::volumes::PreparedVolumes;

/// A clean-up that failed keeps its job for this long, so that it is not tried in a tight loop.
const CLEANUP_PAUSE: Duration = Duration::from_secs(2);
/// The time that the runtime always gets for the stop signal, however long preStop took.
const STOP_MIN: Duration = Duration::from_secs(2);

/// A job and what came of it.
#[derive(Debug)]
pub struct Done {
    /// Which one.
    pub job: Job,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// Look at the runtime to see.
    Done,
    /// Volumes are there, or the event's text.
    Volumes(Result<PreparedVolumes, String>),
    /// Volumes are gone, or why not.
    VolumesGone(Result<(), String>),
    /// The sandbox was made, or why not.
    Sandbox(Result<(), String>),
    /// A container was started, or why not.
    Started(Result<(), StartError>),
    /// The pod is out of the API.
    Finished,
}

/// `<pod_logs_dir>/<namespace>_<name>_<uid>`.
pub fn log_directory(deps: &Deps, pod: &Pod) -> PathBuf {
    let name = format!(
        "{}_{}_{}",
        spec::namespace(pod),
        spec::name(pod),
        spec::uid(pod)
    );
    deps.settings.pod_logs_dir.join(name)
}

/// The sandbox's configuration, and what is to be said about its DNS.
pub fn sandbox_config(
    deps: &Deps,
    pod: &Pod,
    attempt: u32,
) -> (cri::PodSandboxConfig, Vec<dns::Warning>) {
    let settings = &deps.settings;
    // A node without a resolver configuration has no DNS; that is not the pod's failure.
    let text = std::fs::read_to_string(&settings.resolv_conf).unwrap_or_default();
    let node = NodeDns {
        cluster: settings.cluster_dns.clone(),
        domain: settings.cluster_domain.clone(),
        host: Dns::parse(&text),
    };
    let (dns, warnings) = dns::resolve(pod, &node);
    let context = cri_config::SandboxContext {
        log_directory: log_directory(deps, pod).display().to_string(),
        cgroup_parent: settings.cgroup_parent.clone(),
        dns: Some(dns),
        cluster_domain: settings.cluster_domain.clone(),
        node_name: settings.node_name.clone(),
        userns: deps.userns.of(pod),
    };
    (cri_config::sandbox(pod, attempt, &context), warnings)
}

/// Mounts the pod's volumes.
pub fn prepare_volumes(deps: &Arc<Deps>, pod: &Pod) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = deps.volumes.prepare(&pod).await;
        Outcome::Volumes(result.map_err(|error| chain(&error)))
    }
}

/// Brings volume content up to date. The old content stays when that fails.
pub fn refresh_volumes(deps: &Arc<Deps>, pod: &Pod) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        if let Err(error) = deps.volumes.refresh(&pod).await {
            let about = spec::reference(&pod, None);
            deps.events
                .record(about, EventType::Warning, "FailedMount", chain(&error));
        }
        Outcome::Done
    }
}

/// Unmounts and removes the pod's volumes.
pub fn teardown_volumes(deps: &Arc<Deps>, pod: &Pod) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = deps.volumes.teardown(spec::uid(&pod)).await;
        if result.is_ok() {
            deps.userns.release(spec::uid(&pod));
        }
        Outcome::VolumesGone(result.map_err(|error| chain(&error)))
    }
}

/// Makes the sandbox, its log directory first.
pub fn create_sandbox(
    deps: &Arc<Deps>,
    pod: &Pod,
    attempt: u32,
) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = run_sandbox(&deps, &pod, attempt).await;
        if let Err(problem) = &result {
            let message = format!("Failed to create pod sandbox: {problem}");
            let about = spec::reference(&pod, None);
            deps.events
                .record(about, EventType::Warning, "FailedCreatePodSandBox", message);
        }
        Outcome::Sandbox(result)
    }
}

async fn run_sandbox(deps: &Deps, pod: &Pod, attempt: u32) -> Result<(), String> {
    let handler = runtime_class::handler(deps.objects.as_ref(), pod).await;
    let handler = handler.map_err(|error| error.to_string())?;
    if !spec::host_users(pod) {
        let features = runtime_class::features(deps, &handler).await;
        let features = features.map_err(|error| error.to_string())?;
        let ids = deps.userns.ensure(pod, &handler, features).await;
        ids.map_err(|error| error.to_string())?;
    }
    let (config, warnings) = sandbox_config(deps, pod, attempt);
    for (reason, message) in warnings {
        let about = spec::reference(pod, None);
        deps.events
            .record(about, EventType::Warning, reason, message);
    }
    let logs = PathBuf::from(&config.log_directory);
    tokio::fs::create_dir_all(&logs)
        .await
        .map_err(|error| format!("create pod log directory {}: {error}", logs.display()))?;
    let made = deps.runtime.run_sandbox(config, handler).await;
    made.map(drop).map_err(|error| error.to_string())
}

/// After a failed clean-up: says so, and pauses.
async fn cleaned(deps: &Deps, pod: &Pod, what: &str, result: RuntimeResult<()>) {
    let Err(error) = result else {
        return;
    };
    tracing::warn!(pod = spec::display(pod), %error, "{what} failed");
    let message = format!("error killing pod: {what}: {error}");
    let about = spec::reference(pod, None);
    deps.events
        .record(about, EventType::Warning, "FailedKillPod", message);
    tokio::time::sleep(CLEANUP_PAUSE).await;
}

/// Stops a sandbox.
pub fn stop_sandbox(
    deps: &Arc<Deps>,
    pod: &Pod,
    id: String,
) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = deps.runtime.stop_sandbox(&id).await;
        cleaned(&deps, &pod, "stopping the sandbox", result).await;
        Outcome::Done
    }
}

/// Removes a sandbox, stopping it first: removing a running one is an error in some runtimes.
pub fn remove_sandbox(
    deps: &Arc<Deps>,
    pod: &Pod,
    id: String,
) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = match deps.runtime.stop_sandbox(&id).await {
            Ok(()) => deps.runtime.remove_sandbox(&id).await,
            failed => failed,
        };
        cleaned(&deps, &pod, "removing the sandbox", result).await;
        Outcome::Done
    }
}

/// Removes a dead container, and its log: crash loops must not fill the disk.
pub fn remove_container(
    deps: &Arc<Deps>,
    pod: &Pod,
    id: String,
    log: Option<PathBuf>,
) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let result = deps.runtime.remove_container(&id).await;
        let removed = result.is_ok();
        cleaned(&deps, &pod, "removing a container", result).await;
        if let Some(log) = log.filter(|_| removed) {
            // A log that is not there, or that the pod's clean-up will find, is no failure here.
            let _ = tokio::fs::remove_file(log).await;
        }
        Outcome::Done
    }
}

/// Runs preStop within the grace period, then stops with what is left of it. Cancelling gives up
/// waiting; the caller stops again with less grace.
pub fn stop_container(
    deps: &Arc<Deps>,
    pod: &Pod,
    container: Option<Container>,
    id: String,
    pod_ip: String,
    grace: Duration,
    cancel: CancellationToken,
) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let work = async {
            let begin = tokio::time::Instant::now();
            if let Some(container) = &container {
                pre_stop(&deps, &pod, container, &id, &pod_ip, grace).await;
            }
            let left = grace.saturating_sub(begin.elapsed());
            let left = if begin.elapsed() >= Duration::from_secs(1) {
                left.max(STOP_MIN)
            } else {
                left
            };
            let result = deps.runtime.stop_container(&id, left).await;
            cleaned(&deps, &pod, "stopping a container", result).await;
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = work => {}
        }
        Outcome::Done
    }
}

async fn pre_stop(
    deps: &Deps,
    pod: &Pod,
    container: &Container,
    id: &str,
    pod_ip: &str,
    grace: Duration,
) {
    let hooks = container.lifecycle.as_ref();
    let Some(hook) = hooks.and_then(|hooks| hooks.pre_stop.as_ref()) else {
        return;
    };
    let run = hooks::run(hook, container, id, pod_ip, deps.runtime.as_ref());
    let problem = match tokio::time::timeout(grace, run).await {
        Ok(Ok(())) => return,
        Ok(Err(problem)) => problem,
        Err(_) => "it did not end within the grace period".to_owned(),
    };
    tracing::warn!(
        pod = spec::display(pod),
        container = container.name,
        problem,
        "preStop failed"
    );
    let role =
        spec::container(pod, &container.name).map(|(role, _)| (role, container.name.as_str()));
    let about = spec::reference(pod, role);
    deps.events.record(
        about,
        EventType::Warning,
        "FailedPreStopHook",
        "PreStopHook failed".to_owned(),
    );
}

/// Removes the logs, writes the last status, removes the pod from the API.
pub fn finish(deps: &Arc<Deps>, pod: &Pod, orphan: bool) -> impl Future<Output = Outcome> + use<> {
    let (deps, pod) = (Arc::clone(deps), pod.clone());
    async move {
        let logs = log_directory(&deps, &pod);
        match tokio::fs::remove_dir_all(&logs).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %logs.display(), %error, "cannot remove the pod's logs")
            }
        }
        if !orphan {
            let status = pod.status.clone().unwrap_or_default();
            deps.sink.finish(&pod, status).await;
        }
        Outcome::Finished
    }
}
