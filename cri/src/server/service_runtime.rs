// SPDX-License-Identifier: Apache-2.0
//! RuntimeService: which function serves which call. What is not served says so by name.

use tonic::{Request, Response, Status};

use super::events::EventStream;
use super::list_stream::{Chunks, stream};
use super::{
    Server, container_create, container_start, container_status, container_stop, container_update,
    events, exec_sync, metrics, sandbox_run, sandbox_status, sandbox_stop, sandbox_update, stats,
    status, stream_urls,
};
use crate::fault::{Fault, Kind};
use crate::v1;

/// The answer to a call that is not served.
fn unserved(call: &str) -> Status {
    Fault::new(
        Kind::Unimplemented,
        format!("{call} is not implemented by podwright"),
    )
    .status()
}

#[tonic::async_trait]
impl v1::runtime_service_server::RuntimeService for Server {
    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(status::version()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_run::run(&self.runtime, request).await?,
        ))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_stop::stop(&self.runtime, request).await?,
        ))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_stop::remove(&self.runtime, request).await?,
        ))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(sandbox_status::status(
            &self.runtime,
            &request,
        )?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::ListPodSandboxResponse {
            items: sandbox_status::list(&self.runtime, request.filter.as_ref()),
        }))
    }

    type StreamPodSandboxesStream = Chunks<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = request.into_inner().filter;
        let found = sandbox_status::list(&self.runtime, filter.as_ref());
        Ok(stream(found, |pod_sandboxes| {
            v1::StreamPodSandboxesResponse { pod_sandboxes }
        }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_create::create(&self.runtime, request).await?,
        ))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_start::start(&self.runtime, request).await?,
        ))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_stop::stop(&self.runtime, request).await?,
        ))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_stop::remove(&self.runtime, request).await?,
        ))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::ListContainersResponse {
            containers: container_status::list(&self.runtime, request.filter.as_ref()),
        }))
    }

    type StreamContainersStream = Chunks<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = request.into_inner().filter;
        let found = container_status::list(&self.runtime, filter.as_ref());
        Ok(stream(found, |containers| v1::StreamContainersResponse {
            containers,
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_status::status(&self.runtime, &request).await?,
        ))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_update::update(&self.runtime, request).await?,
        ))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            container_status::reopen_log(&self.runtime, &request).await?,
        ))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            exec_sync::exec_sync(&self.runtime, request).await?,
        ))
    }

    async fn exec(
        &self,
        request: Request<v1::ExecRequest>,
    ) -> Result<Response<v1::ExecResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(stream_urls::exec(&self.runtime, request)?))
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(stream_urls::attach(&self.runtime, &request)?))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(stream_urls::port_forward(
            &self.runtime,
            &request,
        )?))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            stats::container(&self.runtime, &request).await?,
        ))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::ListContainerStatsResponse {
            stats: stats::containers(&self.runtime, request.filter.as_ref()).await,
        }))
    }

    type StreamContainerStatsStream = Chunks<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let filter = request.into_inner().filter;
        let found = stats::containers(&self.runtime, filter.as_ref()).await;
        Ok(stream(found, |container_stats| {
            v1::StreamContainerStatsResponse { container_stats }
        }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            stats::sandbox(&self.runtime, &request).await?,
        ))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::ListPodSandboxStatsResponse {
            stats: stats::sandboxes(&self.runtime, request.filter.as_ref()).await,
        }))
    }

    type StreamPodSandboxStatsStream = Chunks<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let filter = request.into_inner().filter;
        let found = stats::sandboxes(&self.runtime, filter.as_ref()).await;
        Ok(stream(found, |pod_sandbox_stats| {
            v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(status::update_runtime_config(&request)))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            status::status(&self.runtime, &request).await?,
        ))
    }

    async fn checkpoint_container(
        &self,
        _request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        Err(unserved("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        Err(unserved("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        Err(unserved("RestorePod"))
    }

    type GetContainerEventsStream = EventStream;

    async fn get_container_events(
        &self,
        _request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        Ok(Response::new(events::subscribe(&self.runtime)))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(metrics::descriptors()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        Ok(Response::new(v1::ListPodSandboxMetricsResponse {
            pod_metrics: metrics::list(&self.runtime).await,
        }))
    }

    type StreamPodSandboxMetricsStream = Chunks<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let found = metrics::list(&self.runtime).await;
        Ok(stream(found, |pod_sandbox_metrics| {
            v1::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        }))
    }

    async fn runtime_config(
        &self,
        _request: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        Ok(Response::new(status::runtime_config(
            &self.runtime.config.settings.get(),
        )))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            sandbox_update::update(&self.runtime, request).await?,
        ))
    }
}
