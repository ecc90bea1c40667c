// SPDX-License-Identifier: Apache-2.0
//! The runtime port over CRI v1 on a unix socket. The connection is lazy and heals itself: tonic
//! dials again after the runtime was restarted. Every call has a deadline.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cri_v1 as cri;
use crate::cri_v1::image_service_client::ImageServiceClient;
use crate::cri_v1::runtime_service_client::RuntimeServiceClient;
use crate::pod::labels;
use crate::pod::state::{ContainerSeen, ContainerState, ImageSeen, SandboxSeen, Seen};
use crate::ports::{ExecOutput, Runtime, RuntimeError, RuntimePod, RuntimeResult};

/// A pull may be slow for a good reason; this only stops a runtime that has gone quiet.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);
/// Time that the runtime may take on top of a grace period or an exec's timeout.
const MARGIN: Duration = Duration::from_secs(30);
/// Large lists and exec outputs: upstream's `maxMsgSize`.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The socket's name is not one.
#[derive(Debug, thiserror::Error)]
#[error("container runtime endpoint {endpoint:?} is not a unix socket path")]
pub struct EndpointError {
    endpoint: String,
}

/// A CRI client. Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct CriClient {
    channel: Channel,
    timeout: Duration,
    name: Arc<OnceLock<String>>,
}

impl CriClient {
    /// Prepares a connection to `endpoint` (a path, or `unix:///path`). Dials on first use. Must be
    /// called inside a tokio runtime.
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Self, EndpointError> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(EndpointError {
                endpoint: endpoint.to_owned(),
            });
        }
        let path = PathBuf::from(path);
        // The address is not used: the connector below always dials the socket.
        let channel = Endpoint::from_static("http://cri.invalid")
            .connect_timeout(Duration::from_secs(3))
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    tokio::net::UnixStream::connect(path)
                        .await
                        .map(TokioIo::new)
                }
            }));
        Ok(CriClient {
            channel,
            timeout,
            name: Arc::default(),
        })
    }

    /// The generated client, for calls outside the [`Runtime`] port (exec URLs, stats, status).
    /// The caller brings its own deadline.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The generated image client; see [`CriClient::runtime`].
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Asks the runtime for its name and version, and remembers the name.
    pub async fn version(&self) -> RuntimeResult<cri::VersionResponse> {
        let request = cri::VersionRequest {
            version: "v1".to_owned(),
        };
        let mut client = self.runtime();
        let answer = within("Version", self.timeout, client.version(request)).await?;
        // A second answer with another name would mean another runtime on the same socket.
        let _ = self.name.set(answer.runtime_name.clone());
        Ok(answer)
    }

    async fn seen(&self, uid: &str) -> RuntimeResult<Seen> {
        let selector: std::collections::HashMap<String, String> =
            [(labels::POD_UID.to_owned(), uid.to_owned())].into();
        let mut client = self.runtime();
        let mut other = self.runtime();
        let sandboxes = within(
            "ListPodSandbox",
            self.timeout,
            client.list_pod_sandbox(cri::ListPodSandboxRequest {
                filter: Some(cri::PodSandboxFilter {
                    label_selector: selector.clone(),
                    ..Default::default()
                }),
            }),
        );
        let containers = within(
            "ListContainers",
            self.timeout,
            other.list_containers(cri::ListContainersRequest {
                filter: Some(cri::ContainerFilter {
                    label_selector: selector,
                    ..Default::default()
                }),
            }),
        );
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        let mut seen = Seen::default();
        for item in sandboxes.items {
            seen.sandboxes.extend(self.sandbox(item.id).await?);
        }
        for item in containers.containers {
            seen.containers
                .extend(self.container(item.id, item.pod_sandbox_id).await?);
        }
        seen.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        seen.containers.sort_by_key(|container| {
            std::cmp::Reverse((container.created_at, container.restart_count))
        });
        Ok(seen)
    }

    async fn sandbox(&self, id: String) -> RuntimeResult<Option<SandboxSeen>> {
        let mut client = self.runtime();
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id,
            verbose: false,
        };
        let call = client.pod_sandbox_status(request);
        match within("PodSandboxStatus", self.timeout, call).await {
            Ok(answer) => Ok(answer.status.map(sandbox_seen)),
            // Removed between the listing and this call.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn container(&self, id: String, sandbox: String) -> RuntimeResult<Option<ContainerSeen>> {
        let mut client = self.runtime();
        let request = cri::ContainerStatusRequest {
            container_id: id,
            verbose: false,
        };
        let call = client.container_status(request);
        match within("ContainerStatus", self.timeout, call).await {
            // ContainerStatus does not say which sandbox the container is in; the listing does.
            Ok(answer) => Ok(answer.status.map(|status| container_seen(status, sandbox))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn listing(&self) -> RuntimeResult<Vec<RuntimePod>> {
        let mut client = self.runtime();
        let mut other = self.runtime();
        let (sandboxes, containers) = tokio::try_join!(
            within(
                "ListPodSandbox",
                self.timeout,
                client.list_pod_sandbox(cri::ListPodSandboxRequest::default())
            ),
            within(
                "ListContainers",
                self.timeout,
                other.list_containers(cri::ListContainersRequest::default())
            )
        )?;
        Ok(group_listing(sandboxes.items, containers.containers))
    }
}

/// One call with its deadline, its answer unwrapped.
async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> RuntimeResult<T> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(refused(call, &status)),
        Err(_) => Err(RuntimeError::Deadline {
            call,
            after: deadline,
        }),
    }
}

fn refused(call: &'static str, status: &tonic::Status) -> RuntimeError {
    // A status that the transport made has the transport's error as its source; a runtime may say
    // Unavailable itself, about a registry.
    let transport = std::error::Error::source(status).is_some();
    if transport {
        return RuntimeError::Unreachable {
            call,
            message: status.message().to_owned(),
        };
    }
    RuntimeError::Refused {
        call,
        not_found: status.code() == tonic::Code::NotFound,
        unimplemented: status.code() == tonic::Code::Unimplemented,
        message: format!(
            "rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        ),
    }
}

fn gone_is_fine(result: RuntimeResult<()>) -> RuntimeResult<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos > 0)
        .then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok())
        .flatten()
}

fn sandbox_seen(status: cri::PodSandboxStatus) -> SandboxSeen {
    let ready = status.state() == cri::PodSandboxState::SandboxReady;
    let network = status.network.unwrap_or_default();
    let mut ips = Vec::new();
    if !network.ip.is_empty() {
        ips.push(network.ip);
    }
    ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    SandboxSeen {
        id: status.id,
        attempt: status.metadata.unwrap_or_default().attempt,
        ready,
        created_at: timestamp(status.created_at).unwrap_or_default(),
        ips,
    }
}

fn container_seen(mut status: cri::ContainerStatus, sandbox: String) -> ContainerSeen {
    let state = match status.state() {
        cri::ContainerState::ContainerCreated => ContainerState::Created,
        cri::ContainerState::ContainerRunning => ContainerState::Running,
        cri::ContainerState::ContainerExited => ContainerState::Exited,
        cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
    };
    let metadata = status.metadata.take().unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned();
    let termination_path = annotation(labels::TERMINATION_PATH).unwrap_or_default();
    let termination_log = status
        .mounts
        .iter()
        .find(|mount| !termination_path.is_empty() && mount.container_path == termination_path)
        .map(|mount| mount.host_path.clone());
    let image = status.image.take().unwrap_or_default();
    ContainerSeen {
        sandbox,
        restart_count: annotation(labels::RESTART_COUNT)
            .and_then(|count| count.parse().ok())
            .unwrap_or(metadata.attempt),
        name: status
            .labels
            .get(labels::CONTAINER_NAME)
            .cloned()
            .unwrap_or(metadata.name),
        state,
        created_at: timestamp(status.created_at).unwrap_or_default(),
        started_at: timestamp(status.started_at),
        finished_at: timestamp(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: if image.user_specified_image.is_empty() {
            image.image
        } else {
            image.user_specified_image
        },
        image_ref: status.image_ref.clone(),
        hash: annotation(labels::CONTAINER_HASH).unwrap_or_default(),
        log_path: status.log_path.clone(),
        termination_log,
        id: status.id,
    }
}

/// Sorts a node-wide listing into pods. Objects without a pod uid are not ours and are left alone.
fn group_listing(
    sandboxes: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
) -> Vec<RuntimePod> {
    let mut pods: BTreeMap<String, RuntimePod> = BTreeMap::new();
    let mut entry = |labels_of: &std::collections::HashMap<String, String>,
                     annotations: &std::collections::HashMap<String, String>,
                     id: String,
                     state: i32,
                     running: bool| {
        let label = |key: &str| labels_of.get(key).cloned().unwrap_or_default();
        let uid = label(labels::POD_UID);
        if uid.is_empty() {
            return;
        }
        let pod = pods.entry(uid.clone()).or_insert_with(|| RuntimePod {
            uid,
            namespace: label(labels::POD_NAMESPACE),
            name: label(labels::POD_NAME),
            fingerprint: Vec::new(),
            running: false,
            grace_secs: None,
        });
        pod.fingerprint.push((id, state));
        pod.running |= running;
        let grace = annotations.get(labels::GRACE_PERIOD);
        pod.grace_secs = pod
            .grace_secs
            .or_else(|| grace.and_then(|value| value.parse().ok()));
    };
    for sandbox in sandboxes {
        let ready = sandbox.state() == cri::PodSandboxState::SandboxReady;
        let (labels, annotations) = (&sandbox.labels, &sandbox.annotations);
        entry(
            labels,
            annotations,
            sandbox.id.clone(),
            sandbox.state,
            ready,
        );
    }
    for container in containers {
        let runs = container.state() == cri::ContainerState::ContainerRunning;
        let (labels, annotations) = (&container.labels, &container.annotations);
        entry(
            labels,
            annotations,
            container.id.clone(),
            container.state,
            runs,
        );
    }
    for pod in pods.values_mut() {
        pod.fingerprint.sort();
    }
    pods.into_values().collect()
}

fn event_uid(event: &cri::ContainerEventResponse) -> Option<String> {
    let from_sandbox = event
        .pod_sandbox_status
        .as_ref()
        .and_then(|status| status.metadata.as_ref())
        .map(|metadata| metadata.uid.clone());
    from_sandbox.filter(|uid| !uid.is_empty()).or_else(|| {
        event
            .containers_statuses
            .iter()
            .find_map(|status| status.labels.get(labels::POD_UID).cloned())
    })
}

impl Runtime for CriClient {
    fn name(&self) -> String {
        self.name
            .get()
            .cloned()
            .unwrap_or_else(|| "unknown".to_owned())
    }

    fn list(&self) -> BoxFuture<'_, RuntimeResult<Vec<RuntimePod>>> {
        Box::pin(self.listing())
    }

    fn pod(&self, uid: &str) -> BoxFuture<'_, RuntimeResult<Seen>> {
        let uid = uid.to_owned();
        Box::pin(async move { self.seen(&uid).await })
    }

    fn handlers(&self) -> BoxFuture<'_, RuntimeResult<Vec<cri::RuntimeHandler>>> {
        Box::pin(async move {
            let request = cri::StatusRequest { verbose: false };
            let mut client = self.runtime();
            let answer = within("Status", self.timeout, client.status(request)).await?;
            Ok(answer.runtime_handlers)
        })
    }

    fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        Box::pin(async move {
            let request = cri::RunPodSandboxRequest {
                config: Some(config),
                runtime_handler,
            };
            let mut client = self.runtime();
            // Sandboxes may pull their image and run network plugins: upstream doubles the deadline.
            let call = client.run_pod_sandbox(request);
            let answer = within("RunPodSandbox", self.timeout * 2, call).await?;
            Ok(answer.pod_sandbox_id)
        })
    }

    fn stop_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let pod_sandbox_id = id.to_owned();
        Box::pin(async move {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id };
            let mut client = self.runtime();
            let call = client.stop_pod_sandbox(request);
            gone_is_fine(
                within("StopPodSandbox", self.timeout, call)
                    .await
                    .map(|_| ()),
            )
        })
    }

    fn remove_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let pod_sandbox_id = id.to_owned();
        Box::pin(async move {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
            let mut client = self.runtime();
            let call = client.remove_pod_sandbox(request);
            gone_is_fine(
                within("RemovePodSandbox", self.timeout, call)
                    .await
                    .map(|_| ()),
            )
        })
    }

    fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        let pod_sandbox_id = sandbox.to_owned();
        Box::pin(async move {
            let request = cri::CreateContainerRequest {
                pod_sandbox_id,
                config: Some(config),
                sandbox_config: Some(sandbox_config),
            };
            let mut client = self.runtime();
            let call = client.create_container(request);
            let answer = within("CreateContainer", self.timeout, call).await?;
            Ok(answer.container_id)
        })
    }

    fn start_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let container_id = id.to_owned();
        Box::pin(async move {
            let request = cri::StartContainerRequest { container_id };
            let mut client = self.runtime();
            let call = client.start_container(request);
            within("StartContainer", self.timeout, call)
                .await
                .map(|_| ())
        })
    }

    fn stop_container(&self, id: &str, grace: Duration) -> BoxFuture<'_, RuntimeResult<()>> {
        let container_id = id.to_owned();
        Box::pin(async move {
            let request = cri::StopContainerRequest {
                container_id,
                timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
            };
            let mut client = self.runtime();
            let call = client.stop_container(request);
            let deadline = grace.saturating_add(MARGIN);
            gone_is_fine(within("StopContainer", deadline, call).await.map(|_| ()))
        })
    }

    fn remove_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let container_id = id.to_owned();
        Box::pin(async move {
            let request = cri::RemoveContainerRequest { container_id };
            let mut client = self.runtime();
            let call = client.remove_container(request);
            gone_is_fine(
                within("RemoveContainer", self.timeout, call)
                    .await
                    .map(|_| ()),
            )
        })
    }

    fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> BoxFuture<'_, RuntimeResult<ExecOutput>> {
        let container_id = id.to_owned();
        Box::pin(async move {
            let request = cri::ExecSyncRequest {
                container_id,
                cmd: command,
                timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            };
            let mut client = self.runtime();
            // The runtime ends the command at `timeout`; the margin covers one that does not.
            let call = client.exec_sync(request);
            let answer = within("ExecSync", timeout + Duration::from_secs(2), call).await?;
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            Ok(ExecOutput {
                output,
                exit_code: answer.exit_code,
            })
        })
    }

    fn image(&self, reference: &str) -> BoxFuture<'_, RuntimeResult<Option<ImageSeen>>> {
        let image = reference.to_owned();
        Box::pin(async move {
            let request = cri::ImageStatusRequest {
                image: Some(cri::ImageSpec {
                    image,
                    ..Default::default()
                }),
                verbose: false,
            };
            let mut client = self.images();
            let call = client.image_status(request);
            let answer = match within("ImageStatus", self.timeout, call).await {
                Err(error) if error.is_not_found() => return Ok(None),
                other => other?,
            };
            Ok(answer.image.map(|image| ImageSeen {
                id: image.id,
                size: image.size,
                uid: image.uid.map(|uid| uid.value),
                username: image.username,
            }))
        })
    }

    fn pull(
        &self,
        reference: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        let image = reference.to_owned();
        Box::pin(async move {
            let request = cri::PullImageRequest {
                image: Some(cri::ImageSpec {
                    image,
                    ..Default::default()
                }),
                auth,
                sandbox_config: Some(sandbox_config),
            };
            let mut client = self.images();
            let call = client.pull_image(request);
            Ok(within("PullImage", PULL_DEADLINE, call).await?.image_ref)
        })
    }

    fn events(&self) -> BoxFuture<'_, RuntimeResult<BoxStream<'static, RuntimeResult<String>>>> {
        Box::pin(async move {
            let mut client = self.runtime();
            let call = client.get_container_events(cri::GetEventsRequest {});
            // A server that sends no headers before its first event answers late: then this waits
            // in the background of the relist, which does not depend on it.
            let stream = call
                .await
                .map_err(|status| refused("GetContainerEvents", &status))?
                .into_inner();
            let uids = stream.filter_map(|event| async move {
                match event {
                    Ok(event) => event_uid(&event).map(Ok),
                    Err(status) => Some(Err(refused("GetContainerEvents", &status))),
                }
            });
            Ok(uids.boxed())
        })
    }
}
