// SPDX-License-Identifier: Apache-2.0
//! Calls beside the life of a pod: streamed lists, metrics, a pod's limits, events in order.

use std::collections::BTreeSet;

use cri::v1;
use tokio_stream::StreamExt as _;

use crate::node::{PATIENCE, shell, test};

/// All items of a stream of lists.
async fn gather<R, T>(mut stream: tonic::Streaming<R>, items: fn(R) -> Vec<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(message) = stream.next().await {
        let some = items(message.unwrap());
        assert!(!some.is_empty(), "a message without items");
        all.extend(some);
    }
    all
}

#[test]
fn a_streamed_list_is_the_list() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let request = v1::StreamPodSandboxesRequest::default();
        let empty = cri.stream_pod_sandboxes(request.clone()).await.unwrap();
        assert!(
            gather(empty.into_inner(), |m| m.pod_sandboxes)
                .await
                .is_empty()
        );
        let pods = [
            node.run_pod(node.pod("a")).await,
            node.run_pod(node.pod("b")).await,
        ];
        let id = node.launch(&pods[0], shell("main", "sleep 1000")).await;

        let streamed = cri.stream_pod_sandboxes(request).await.unwrap();
        assert_eq!(
            gather(streamed.into_inner(), |m| m.pod_sandboxes).await,
            node.pods().await
        );
        let filter = v1::PodSandboxFilter {
            label_selector: [("app".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let request = v1::StreamPodSandboxesRequest {
            filter: Some(filter),
        };
        let streamed = cri.stream_pod_sandboxes(request).await.unwrap();
        let found = gather(streamed.into_inner(), |m| m.pod_sandboxes).await;
        assert_eq!(found.iter().map(|p| &p.id).collect::<Vec<_>>(), [&pods[1]]);

        let request = v1::StreamContainersRequest::default();
        let streamed = cri.stream_containers(request).await.unwrap();
        assert_eq!(
            gather(streamed.into_inner(), |m| m.containers).await,
            node.containers().await
        );
        let request = v1::StreamContainerStatsRequest::default();
        let streamed = cri.stream_container_stats(request).await.unwrap();
        let stats = gather(streamed.into_inner(), |m| m.container_stats).await;
        assert_eq!(stats[0].attributes.as_ref().unwrap().id, id);
        let request = v1::StreamPodSandboxStatsRequest::default();
        let streamed = cri.stream_pod_sandbox_stats(request).await.unwrap();
        assert_eq!(
            gather(streamed.into_inner(), |m| m.pod_sandbox_stats)
                .await
                .len(),
            2
        );
        let mut images = node.images().await;
        let request = v1::StreamImagesRequest::default();
        let streamed = images.stream_images(request).await.unwrap().into_inner();
        let listed = images.list_images(v1::ListImagesRequest::default()).await;
        assert_eq!(
            gather(streamed, |m| m.images).await,
            listed.unwrap().into_inner().images
        );
    });
}

#[test]
fn metrics_are_described_and_there() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let pod = node.run_pod(node.pod("figures")).await;
        let mut config = shell("main", "sleep 1000");
        config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_period: 100_000,
            cpu_quota: 20_000,
            ..Default::default()
        });
        let id = node.launch(&pod, config).await;
        let request = v1::ContainerStatusRequest {
            container_id: id.clone(),
            verbose: true,
        };
        let status = cri.container_status(request).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        let shown = &info["runtimeSpec"]["linux"]["resources"];
        assert_eq!(shown["memory"]["limit"], 64 << 20, "{shown}");
        assert_eq!(shown["cpu"]["quota"], 20_000, "{shown}");
        let described = cri.list_metric_descriptors(v1::ListMetricDescriptorsRequest {});
        let described = described.await.unwrap().into_inner().descriptors;
        let found = cri.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {});
        let found = found.await.unwrap().into_inner().pod_metrics;
        assert_eq!(
            (found.len(), found[0].pod_sandbox_id.as_str()),
            (1, pod.as_str())
        );
        let of_container = &found[0].container_metrics[0];
        assert_eq!(of_container.container_id, id);
        let all = found[0].metrics.iter().chain(&of_container.metrics);
        for metric in all.clone() {
            let known = described.iter().find(|d| d.name == metric.name).unwrap();
            assert_eq!(
                known.label_keys.len(),
                metric.label_values.len(),
                "{metric:?}"
            );
        }
        // These depend on devices, huge pages and the kernel's accounting.
        let optional = ["blkio", "fs_reads", "fs_writes", "hugetlb", "pressure"];
        let there: BTreeSet<&str> = all.map(|m| m.name.as_str()).collect();
        for known in &described {
            let may_lack = optional.iter().any(|word| known.name.contains(word));
            assert!(
                may_lack || there.contains(known.name.as_str()),
                "{}",
                known.name
            );
        }
        let value = |name: &str| {
            let metric = of_container
                .metrics
                .iter()
                .find(|m| m.name == name)
                .unwrap();
            metric.value.unwrap().value
        };
        assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
        assert_eq!(value("container_spec_cpu_quota"), 20_000);
        assert_eq!(value("container_processes"), 1);
        assert!(value("container_memory_usage_bytes") > 0);
        assert!(value("container_file_descriptors") >= 3);
        let streamed = cri.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {});
        let streamed = streamed.await.unwrap().into_inner();
        assert_eq!(gather(streamed, |m| m.pod_sandbox_metrics).await.len(), 1);
    });
}

#[test]
fn a_pods_limits_change_where_they_are_ours() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let memory = |bytes| v1::LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..Default::default()
        };
        let mut config = node.pod("limited");
        config.linux.as_mut().unwrap().resources = Some(memory(100 << 20));
        let pod = node.run_pod(config).await;
        let update = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.clone(),
            overhead: Some(memory(8 << 20)),
            resources: Some(memory(120 << 20)),
        };
        cri.update_pod_sandbox_resources(update.clone())
            .await
            .unwrap();
        let limit = |cgroup: &str| {
            let files = [
                format!("/sys/fs/cgroup/memory{cgroup}/memory.limit_in_bytes"),
                format!("/sys/fs/cgroup{cgroup}/memory.max"),
            ];
            let text = files.iter().find_map(|f| std::fs::read_to_string(f).ok());
            text.unwrap().trim().parse::<u64>().unwrap_or(u64::MAX)
        };
        let parent = node.config().cgroup_parent;
        assert_eq!(limit(&format!("{parent}/{pod}")), 128 << 20);
        node.crash().await;
        let mut cri = node.cri().await;
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.clone(),
            verbose: true,
        };
        let status = cri.pod_sandbox_status(request).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        assert_eq!(info["resources"]["memoryLimitInBytes"], 120 << 20);
        assert_eq!(info["overhead"]["memoryLimitInBytes"], 8 << 20);
        let linux = &info["runtimeSpec"]["linux"];
        let network = serde_json::json!({"type": "network", "path": info["netns"]});
        assert_eq!(linux["namespaces"][0], network, "{linux}");

        // A kubelet's cgroup: its limits stay the kubelet's.
        let mut second = node.pod("kubelets");
        second.linux.as_mut().unwrap().cgroup_parent = format!("{parent}/{pod}");
        let second = node.run_pod(second).await;
        let update_second = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: second.clone(),
            ..update
        };
        cri.update_pod_sandbox_resources(update_second)
            .await
            .unwrap();
        assert_eq!(limit(&format!("{parent}/{pod}")), 128 << 20);
        let absent = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: "feed".into(),
            ..Default::default()
        };
        let error = cri.update_pod_sandbox_resources(absent).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        assert!(error.message().contains("feed"));
        node.remove_pod(&second).await;
    });
}

#[test]
fn events_tell_each_life_in_order() {
    test(|node| async move {
        let mut cri = node.cri().await;
        let events = cri.get_container_events(v1::GetEventsRequest {}).await;
        let mut events = events.unwrap().into_inner();
        let pod = node.run_pod(node.pod("told")).await;
        let mut ids = vec![pod.clone()];
        for round in 0..10 {
            // Some end before StartContainer has answered.
            let id = node.launch(&pod, shell(&format!("c{round}"), "true")).await;
            if round % 2 == 0 {
                node.ended(&id).await;
            }
            let request = v1::RemoveContainerRequest {
                container_id: id.clone(),
            };
            cri.remove_container(request).await.unwrap();
            ids.push(id);
        }
        node.remove_pod(&pod).await;
        let mut seen = Vec::new();
        while seen.len() < ids.len() * 4 {
            let next = tokio::time::timeout(PATIENCE, events.next()).await;
            seen.push(next.expect("an event").unwrap().unwrap());
        }
        for id in &ids {
            let life = seen.iter().filter(|e| e.container_id == *id);
            let life: Vec<i32> = life.map(|e| e.container_event_type).collect();
            assert_eq!(life, [0, 1, 2, 3], "created, started, stopped, deleted");
        }
    });
}

/// Asks with an id that nothing has, and one that is none.
macro_rules! refuses_strangers {
    ($client:expr, $($call:ident $request:ident.$field:ident),* $(,)?) => { $(
        for (id, code) in [("feed", tonic::Code::NotFound), ("", tonic::Code::InvalidArgument)] {
            let mut request = v1::$request::default();
            request.$field = id.to_owned();
            let error = $client.$call(request).await.unwrap_err();
            assert_eq!(error.code(), code, "{}: {error}", stringify!($call));
            assert!(error.message().contains(id), "{}: {error}", stringify!($call));
        }
    )* };
}

#[test]
fn whoever_is_not_there_is_named_by_every_call() {
    test(|node| async move {
        let mut cri = node.cri().await;
        refuses_strangers!(
            cri,
            pod_sandbox_status PodSandboxStatusRequest.pod_sandbox_id,
            pod_sandbox_stats PodSandboxStatsRequest.pod_sandbox_id,
            port_forward PortForwardRequest.pod_sandbox_id,
            update_pod_sandbox_resources UpdatePodSandboxResourcesRequest.pod_sandbox_id,
            start_container StartContainerRequest.container_id,
            container_status ContainerStatusRequest.container_id,
            container_stats ContainerStatsRequest.container_id,
            update_container_resources UpdateContainerResourcesRequest.container_id,
            reopen_container_log ReopenContainerLogRequest.container_id,
            exec_sync ExecSyncRequest.container_id,
        );
        let exec = v1::ExecRequest {
            container_id: "feed".to_owned(),
            cmd: vec!["true".to_owned()],
            stdout: true,
            ..Default::default()
        };
        let error = cri.exec(exec).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        let attach = v1::AttachRequest {
            container_id: "feed".to_owned(),
            stdout: true,
            ..Default::default()
        };
        let error = cri.attach(attach).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        // Whatever ends something has nothing to do.
        let pod_sandbox_id = "feed".to_owned();
        let stop = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        cri.stop_pod_sandbox(stop).await.unwrap();
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id };
        cri.remove_pod_sandbox(remove).await.unwrap();
        let container_id = "feed".to_owned();
        let stop = v1::StopContainerRequest {
            container_id: container_id.clone(),
            timeout: 1,
        };
        cri.stop_container(stop).await.unwrap();
        let remove = v1::RemoveContainerRequest { container_id };
        cri.remove_container(remove).await.unwrap();
    });
}
