// SPDX-License-Identifier: Apache-2.0
//! Starts one container: image, environment, mounts, create, start, postStart. Runs as a job of the
//! pod's actor; may be cancelled between any two calls. Events and waiting reasons are upstream's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio_util::sync::CancellationToken;

use super::deps::Deps;
use super::image::{self, PullPolicy};
use super::memory::{StartStage, Waiting};
use super::spec::{self, Kind};
use super::state::ImageSeen;
use super::{cri_config, hooks, runtime_class, security};
use crate::cri_v1 as cri;
use crate::ports::EventType;
use crate::volumes::{MountContext, PreparedVolumes};

/// All that one start needs, copied: the actor goes on meanwhile.
pub struct Start {
    /// Everything shared.
    pub deps: Arc<Deps>,
    /// The pod.
    pub pod: Pod,
    /// The container's role.
    pub kind: Kind,
    /// The container.
    pub container: Container,
    /// Its restart count.
    pub restart_count: u32,
    /// The sandbox it goes into.
    pub sandbox_id: String,
    /// That sandbox's configuration.
    pub sandbox: cri::PodSandboxConfig,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The pod's volumes.
    pub volumes: PreparedVolumes,
    /// Ends the start early.
    pub cancel: CancellationToken,
}

/// Why a container did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// The pod is ending.
    Cancelled,
    /// It failed here, and this is what the status shows.
    Failed(StartStage, Waiting),
}

fn failed(stage: StartStage, reason: &str, message: impl ToString) -> StartError {
    StartError::Failed(
        stage,
        Waiting {
            reason: reason.to_owned(),
            message: message.to_string(),
        },
    )
}

/// An error with its causes, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Start {
    fn event(&self, kind: EventType, reason: &str, message: String) {
        let about = spec::reference(&self.pod, Some((self.kind, &self.container.name)));
        self.deps.events.record(about, kind, reason, message);
    }

    /// Runs `work` unless the start is cancelled first.
    async fn or_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, StartError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(StartError::Cancelled),
            done = work => Ok(done),
        }
    }

    /// Does it all. Answers when the container runs and its postStart has finished.
    ///
    /// # Errors
    /// See [`StartError`]; the event has been recorded.
    pub async fn run(self) -> Result<(), StartError> {
        let image = self.image().await?;
        let config = self.config(&image).await?;
        let deps = Arc::clone(&self.deps);
        if self.cancel.is_cancelled() {
            return Err(StartError::Cancelled);
        }
        // From here on the calls run to their ends: a container half made must be known.
        let created = deps
            .runtime
            .create_container(&self.sandbox_id, config, self.sandbox.clone());
        let id = created.await.map_err(|error| {
            self.event(EventType::Warning, "Failed", format!("Error: {error}"));
            failed(StartStage::Create, "CreateContainerError", error)
        })?;
        self.event(EventType::Normal, "Created", "Container created".to_owned());
        if let Err(error) = deps.runtime.start_container(&id).await {
            self.event(EventType::Warning, "Failed", format!("Error: {error}"));
            return Err(failed(StartStage::Run, "RunContainerError", error));
        }
        self.event(EventType::Normal, "Started", "Container started".to_owned());
        self.post_start(&id).await
    }

    /// Makes sure that the image is there, by its policy.
    async fn image(&self) -> Result<ImageSeen, StartError> {
        let name = self.container.image.as_deref().unwrap_or_default();
        let reference = image::with_default_tag(name).map_err(|problem| {
            let message = format!("Failed to apply default image tag \"{name}\": {problem}");
            self.event(EventType::Warning, "InspectFailed", message.clone());
            self.event(
                EventType::Warning,
                "Failed",
                "Error: InvalidImageName".to_owned(),
            );
            failed(StartStage::Create, "InvalidImageName", message)
        })?;
        let present = self
            .or_cancelled(self.deps.runtime.image(&reference))
            .await?;
        let present = present.map_err(|error| {
            let message = format!("Failed to inspect image \"{name}\": {error}");
            self.event(EventType::Warning, "InspectFailed", message.clone());
            failed(StartStage::Create, "ImageInspectError", message)
        })?;
        match (image::pull_policy(&self.container), present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
                let message = format!(
                    "Container image \"{name}\" already present on machine and can be accessed by the pod"
                );
                self.event(EventType::Normal, "Pulled", message);
                Ok(image)
            }
            (PullPolicy::Never, None) => {
                let message =
                    format!("Container image \"{name}\" is not present with pull policy of Never");
                self.event(EventType::Warning, "ErrImageNeverPull", message.clone());
                self.event(
                    EventType::Warning,
                    "Failed",
                    "Error: ErrImageNeverPull".to_owned(),
                );
                Err(failed(StartStage::Create, "ErrImageNeverPull", message))
            }
            _ => self.pull(name, &reference).await,
        }
    }

    async fn pull(&self, name: &str, reference: &str) -> Result<ImageSeen, StartError> {
        self.event(
            EventType::Normal,
            "Pulling",
            format!("Pulling image \"{name}\""),
        );
        let begin = Instant::now();
        let credentials = self.credentials(reference).await;
        let mut last = None;
        // Upstream tries every matching credential; none at all counts as one try.
        for auth in credentials {
            let pull = self
                .deps
                .runtime
                .pull(reference, auth, self.sandbox.clone());
            match self.or_cancelled(pull).await? {
                Ok(_) => {
                    last = None;
                    break;
                }
                Err(error) => last = Some(error),
            }
        }
        if let Some(error) = last {
            self.event(
                EventType::Warning,
                "Failed",
                format!("Failed to pull image \"{name}\": {error}"),
            );
            let (reason, message) = image::pull_failure(name, &error.to_string());
            self.event(EventType::Warning, "Failed", format!("Error: {reason}"));
            return Err(failed(StartStage::Pull, reason, message));
        }
        let image = self
            .or_cancelled(self.deps.runtime.image(reference))
            .await?;
        let image = image.ok().flatten().ok_or_else(|| {
            let message = format!("image \"{name}\" is not in the runtime after it was pulled");
            failed(StartStage::Pull, "ErrImagePull", message)
        })?;
        let took = go_precise(begin.elapsed());
        let message = format!(
            "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
            image.size
        );
        self.event(EventType::Normal, "Pulled", message);
        Ok(image)
    }

    /// Credentials from imagePullSecrets that match the registry; `None` when there are none.
    async fn credentials(&self, reference: &str) -> Vec<Option<cri::AuthConfig>> {
        let found =
            super::credentials::lookup(&self.pod, reference, self.deps.objects.as_ref()).await;
        for problem in &found.problems {
            let message = format!(
                "Unable to retrieve some image pull secrets ({problem}); attempting to pull the image may not succeed."
            );
            let about = spec::reference(&self.pod, None);
            let reason = "FailedToRetrieveImagePullSecret";
            self.deps
                .events
                .record(about, EventType::Warning, reason, message);
        }
        match found.auths.is_empty() {
            true => vec![None],
            false => found.auths.into_iter().map(Some).collect(),
        }
    }

    /// Environment, mounts, user: everything that can be wrong with the container's configuration.
    async fn config(&self, image: &ImageSeen) -> Result<cri::ContainerConfig, StartError> {
        let config_error = |message: String| {
            self.event(EventType::Warning, "Failed", format!("Error: {message}"));
            failed(StartStage::Create, "CreateContainerConfigError", message)
        };
        security::verify_non_root(&self.pod, &self.container, image).map_err(config_error)?;
        let deps = &self.deps;
        let build = crate::env::build(
            &self.pod,
            &self.container,
            deps.objects.as_ref(),
            &deps.facts,
            &self.pod_ips,
        );
        let env = self
            .or_cancelled(build)
            .await?
            .map_err(|error| config_error(chain(&error)))?;
        let hostname = cri_config::hostname(&self.pod);
        let host_domain = cri_config::host_domain(&self.pod, &deps.settings.cluster_domain);
        let asked = runtime_class::recursive_read_only_mounts(deps, &self.pod, &self.container);
        let recursive_read_only_mounts = self.or_cancelled(asked).await?;
        let context = MountContext {
            env: &env,
            pod_ips: &self.pod_ips,
            hostname: &hostname,
            host_domain: &host_domain,
            recursive_read_only_mounts,
        };
        let mounts = deps
            .volumes
            .mounts(&self.pod, &self.container, &self.volumes, context);
        let mounts = self
            .or_cancelled(mounts)
            .await?
            .map_err(|error| config_error(chain(&error)))?;
        let logs = PathBuf::from(&self.sandbox.log_directory).join(&self.container.name);
        tokio::fs::create_dir_all(&logs).await.map_err(|error| {
            config_error(format!("create log directory {}: {error}", logs.display()))
        })?;
        let context = cri_config::ContainerContext {
            restart_count: self.restart_count,
            env,
            mounts: mounts.mounts,
            node_memory_bytes: deps.facts.allocatable_memory_bytes,
            image: image.clone(),
            userns: userns_of(&self.sandbox),
        };
        Ok(cri_config::container(&self.pod, &self.container, &context))
    }

    async fn post_start(&self, id: &str) -> Result<(), StartError> {
        let hooks = self.container.lifecycle.as_ref();
        let Some(hook) = hooks.and_then(|hooks| hooks.post_start.as_ref()) else {
            return Ok(());
        };
        let pod_ip = self
            .pod_ips
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let run = hooks::run(
            hook,
            &self.container,
            id,
            &pod_ip,
            self.deps.runtime.as_ref(),
        );
        let Err(problem) = self.or_cancelled(run).await? else {
            return Ok(());
        };
        tracing::warn!(
            pod = spec::display(&self.pod),
            container = self.container.name,
            problem,
            "postStart failed"
        );
        self.event(
            EventType::Warning,
            "FailedPostStartHook",
            "PostStartHook failed".to_owned(),
        );
        self.event(
            EventType::Normal,
            "Killing",
            "FailedPostStartHook".to_owned(),
        );
        let grace = Duration::from_secs(u64::try_from(spec::grace_secs(&self.pod)).unwrap_or(30));
        // If this fails too, the container still runs and the next plan sees it running.
        let _ = self.deps.runtime.stop_container(id, grace).await;
        Err(failed(
            StartStage::Run,
            "PostStartHookError",
            "PostStartHook failed",
        ))
    }
}

/// A container has the sandbox's user namespace, whatever the pod says by now.
fn userns_of(sandbox: &cri::PodSandboxConfig) -> cri::UserNamespace {
    let context = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    context
        .and_then(|context| context.namespace_options.as_ref()?.userns_options.clone())
        .unwrap_or_default()
}

/// Go's `Duration.String()` cut to milliseconds: `1.204s`, `35ms`.
fn go_precise(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let secs = duration.as_secs();
    let rest = format!("{}.{:03}", secs % 60, duration.subsec_millis());
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    if secs < 60 {
        format!("{rest}s")
    } else {
        format!("{}m{rest}s", secs / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_cut_to_milliseconds() {
        let cases = [
            (35, "35ms"),
            (1204, "1.204s"),
            (2000, "2s"),
            (61_500, "1m1.5s"),
        ];
        for (millis, text) in cases {
            assert_eq!(go_precise(Duration::from_millis(millis)), text);
        }
    }
}
