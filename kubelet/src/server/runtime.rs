// SPDX-License-Identifier: Apache-2.0
//! What the node API asks the runtime, each with a deadline.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use tonic::{Code, Response, Status};

use super::stats;
use crate::cri_v1 as cri;
use crate::node::{ImageClient, RuntimeClient};

const DEADLINE: Duration = Duration::from_secs(30);
/// `/run` has no limit of its own upstream; this one keeps a forgotten command from staying.
const RUN_DEADLINE: Duration = Duration::from_secs(10 * 60);
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The runtime's clients. Cheap to clone.
#[derive(Clone)]
pub(super) struct Runtime {
    pub(super) runtime: RuntimeClient,
    pub(super) images: ImageClient,
}

async fn within<T>(
    deadline: Duration,
    request: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, request).await {
        Ok(result) => result.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer from the runtime within {} s",
            deadline.as_secs()
        ))),
    }
}

impl Runtime {
    /// The newest running container of a pod by its name.
    pub(super) async fn running(&self, uid: &str, name: &str) -> Result<Option<String>, Status> {
        let labels = [(POD_UID, uid), (CONTAINER_NAME, name)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let filter = cri::ContainerFilter {
            state: Some(cri::ContainerStateValue {
                state: cri::ContainerState::ContainerRunning.into(),
            }),
            label_selector: HashMap::from(labels),
            ..cri::ContainerFilter::default()
        };
        let list = self.containers(Some(filter)).await?;
        let newest = list
            .into_iter()
            .max_by_key(|container| container.created_at);
        Ok(newest.map(|container| container.id))
    }

    pub(super) async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let mut client = self.runtime.clone();
        let request = cri::ListContainersRequest { filter };
        let list = within(DEADLINE, client.list_containers(request)).await?;
        Ok(list.containers)
    }

    /// Ready sandboxes: of one pod, or all.
    pub(super) async fn sandboxes(
        &self,
        uid: Option<&str>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        let mut client = self.runtime.clone();
        let labels = uid.map(|uid| (POD_UID.to_owned(), uid.to_owned()));
        let filter = cri::PodSandboxFilter {
            state: Some(cri::PodSandboxStateValue {
                state: cri::PodSandboxState::SandboxReady.into(),
            }),
            label_selector: labels.into_iter().collect(),
            ..cri::PodSandboxFilter::default()
        };
        let request = cri::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let mut list = within(DEADLINE, client.list_pod_sandbox(request))
            .await?
            .items;
        list.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        Ok(list)
    }

    /// A container's status; `None` when it is gone.
    pub(super) async fn status(&self, id: &str) -> Result<Option<cri::ContainerStatus>, Status> {
        let mut client = self.runtime.clone();
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        match within(DEADLINE, client.container_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub(super) async fn exec_url(&self, request: cri::ExecRequest) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        Ok(within(DEADLINE, client.exec(request)).await?.url)
    }

    pub(super) async fn attach_url(&self, request: cri::AttachRequest) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        Ok(within(DEADLINE, client.attach(request)).await?.url)
    }

    pub(super) async fn port_forward_url(
        &self,
        request: cri::PortForwardRequest,
    ) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        Ok(within(DEADLINE, client.port_forward(request)).await?.url)
    }

    /// Runs a command to its end; both of its outputs, one after the other.
    pub(super) async fn run(&self, id: String, cmd: Vec<String>) -> Result<(Vec<u8>, i32), Status> {
        let mut client = self.runtime.clone();
        let request = cri::ExecSyncRequest {
            container_id: id,
            cmd,
            timeout: i64::try_from(RUN_DEADLINE.as_secs()).unwrap_or(i64::MAX),
        };
        let answer = within(RUN_DEADLINE + DEADLINE, client.exec_sync(request)).await?;
        Ok(([answer.stdout, answer.stderr].concat(), answer.exit_code))
    }

    /// Per pod; from the containers' when the runtime has no pod statistics.
    pub(super) async fn stats(&self) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let mut client = self.runtime.clone();
        let request = cri::ListPodSandboxStatsRequest::default();
        match within(DEADLINE, client.list_pod_sandbox_stats(request)).await {
            Ok(answer) => return Ok(answer.stats),
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(status),
        }
        let request = cri::ListContainerStatsRequest::default();
        let answer = within(DEADLINE, client.list_container_stats(request)).await?;
        Ok(stats::group(answer.stats))
    }

    /// Where images are kept, as the runtime says.
    pub(super) async fn image_dir(&self) -> Option<String> {
        let mut images = self.images.clone();
        let request = cri::ImageFsInfoRequest::default();
        let info = within(DEADLINE, images.image_fs_info(request)).await.ok()?;
        let first = info.image_filesystems.into_iter().next()?;
        first.fs_id.map(|id| id.mountpoint)
    }

    /// Containers by state, in upstream's words for metrics.
    pub(super) async fn states(&self) -> Result<BTreeMap<&'static str, usize>, Status> {
        let mut states = BTreeMap::new();
        for container in self.containers(None).await? {
            let state = match container.state() {
                cri::ContainerState::ContainerCreated => "created",
                cri::ContainerState::ContainerRunning => "running",
                cri::ContainerState::ContainerExited => "exited",
                cri::ContainerState::ContainerUnknown => "unknown",
            };
            *states.entry(state).or_default() += 1;
        }
        Ok(states)
    }
}
