// SPDX-License-Identifier: Apache-2.0
//! The daemon dies again and again, `kill -9` at any moment, while every call of the interface is
//! under way: pods come and go, are changed, looked at and streamed, images are pulled and removed.
//! Afterwards nothing is left of what was cut off, and the node works.
//!
//! `PODWRIGHT_TEST_STORM_SECS` says for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cri::v1;
use tonic::{Code, Status};

use crate::node::{Handle, PATIENCE, assert_no_links, shell, test_apart, words};
use crate::registry::Registry;

const SECONDS: u64 = 15;
/// Pods at once, each with a life of its own.
const WORKERS: usize = 6;

#[derive(Default)]
struct Storm {
    over: AtomicBool,
    lives: AtomicUsize,
    calls: AtomicUsize,
    cut_off: AtomicUsize,
}

impl Storm {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// However slow the machine is, a pod gets to its end now and then.
    async fn another_life(&self) {
        let (lives, start) = (self.lives.load(Ordering::Relaxed), Instant::now());
        while self.lives.load(Ordering::Relaxed) == lives && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn a_kill_in_the_middle_of_any_call_leaves_nothing() {
    test_apart(|node| async move {
        let seconds = std::env::var("PODWRIGHT_TEST_STORM_SECS");
        let seconds = seconds.map_or(SECONDS, |n| n.parse().unwrap());
        let storm = Arc::new(Storm::default());
        let registry = Registry::start().await;
        let mut workers = tokio::task::JoinSet::new();
        for number in 0..WORKERS {
            let worker = Worker::new(&node, &storm);
            workers.spawn(async move { worker.pods(number).await });
        }
        let (onlooker, puller) = (Worker::new(&node, &storm), Worker::new(&node, &storm));
        workers.spawn(async move { onlooker.look().await });
        let image = registry.image.clone();
        workers.spawn(async move { puller.pull(&image).await });
        let (start, mut kills) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(seconds) {
            if rand::random_ratio(3, 4) {
                node.serves().await;
            }
            if kills == 0 || rand::random_ratio(1, 5) {
                storm.another_life().await;
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..700))).await;
            node.replace().await;
            kills += 1;
            assert!(workers.try_join_next().is_none(), "a worker failed");
        }
        node.serves().await;
        storm.over.store(true, Ordering::Relaxed);
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        println!(
            "{kills} kills in {:?}: {} calls, {} cut off, {} pods lived to their end",
            start.elapsed(),
            count(&storm.calls),
            count(&storm.cut_off),
            count(&storm.lives),
        );
        assert!(count(&storm.lives) > 0, "nothing was ever finished");
        for pod in node.pods().await {
            node.remove_pod(&pod.id).await;
        }
        Worker::new(&node, &storm)
            .image_works(&registry.image)
            .await;
        nothing_is_left(&node);
    });
}

fn nothing_is_left(node: &Handle) {
    for dir in [
        "data/cri/containers",
        "data/cri/sandboxes",
        "data/cri/network/results",
        "data/cri/images/leases",
        "data/cri/images/tmp",
        "run/cri/sandboxes",
        "run/cri/netns",
    ] {
        let left = std::fs::read_dir(node.root().join(dir)).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // A record that was being written: collected an hour later, when it is surely nobody's.
        let left: Vec<_> = left.filter(|name| !name.starts_with(".new-")).collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    assert_no_links();
}

struct Worker {
    node: Handle,
    storm: Arc<Storm>,
}

impl Worker {
    fn new(node: &Handle, storm: &Arc<Storm>) -> Worker {
        let (node, storm) = (node.clone(), storm.clone());
        Worker { node, storm }
    }

    /// Counts a call. The daemon may die under it: then there is no answer. Any other failure is
    /// one of `allowed`, which a predecessor's half-done work explains.
    fn answer<T>(
        &self,
        what: &str,
        answer: Result<tonic::Response<T>, Status>,
        allowed: &[Code],
    ) -> Option<T> {
        self.storm.calls.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) => {
                // A connection that broke is told of with these.
                let broken = [Code::Unavailable, Code::Cancelled];
                let cut_off = broken.contains(&status.code())
                    || status.message().contains("transport error")
                    || status.message().contains("h2 protocol error")
                    || status
                        .message()
                        .contains("error reading a body from connection");
                if cut_off {
                    self.storm.cut_off.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert!(allowed.contains(&status.code()), "{what}: {status:?}");
                }
                None
            }
        }
    }

    async fn pods(&self, number: usize) {
        let mut round = 0;
        while self.storm.goes_on() {
            round += 1;
            if self
                .one_pod(&format!("every{number}-{round}"))
                .await
                .is_some()
            {
                self.storm.lives.fetch_add(1, Ordering::Relaxed);
            } else {
                // What was cut off is removed by its name. Before the next one begins: pods that pile
                // up make the machine busy and the daemon's start long, and use up the network.
                let prefix = format!("every{number}-");
                while self.storm.goes_on() && self.remove_by_name(&prefix).await.is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// One pod's life with every call that belongs to one; nothing as soon as one is cut off.
    async fn one_pod(&self, name: &str) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let config = self.node.pod(name);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let pod = self
            .answer("run", cri.run_pod_sandbox(request).await, &[])?
            .pod_sandbox_id;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(shell("c", "while :; do echo on; sleep 0.05; done")),
            sandbox_config: Some(config),
        };
        let container_id = self
            .answer("create", cri.create_container(request).await, &[])?
            .container_id;
        let id = || container_id.clone();
        let request = v1::StartContainerRequest { container_id: id() };
        self.answer("start", cri.start_container(request).await, &[])?;
        self.use_container(&id()).await?;
        self.use_pod(&pod).await?;
        let request = v1::StopContainerRequest {
            container_id: id(),
            timeout: 0,
        };
        self.answer("stop", cri.stop_container(request).await, &[])?;
        let request = v1::RemoveContainerRequest { container_id: id() };
        self.answer("remove", cri.remove_container(request).await, &[])?;
        self.end_pod(&pod).await
    }

    async fn end_pod(&self, pod_sandbox_id: &str) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let pod_sandbox_id = pod_sandbox_id.to_owned();
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        self.answer("stop pod", cri.stop_pod_sandbox(request).await, &[])?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
        self.answer("remove pod", cri.remove_pod_sandbox(request).await, &[])?;
        Some(())
    }

    /// Nothing when it was cut off.
    async fn remove_by_name(&self, prefix: &str) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let listed = cri
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await;
        let listed = self.answer("list pods", listed, &[])?;
        let named = |pod: &v1::PodSandbox| {
            let metadata = pod.metadata.as_ref();
            metadata.is_some_and(|m| m.name.starts_with(prefix))
        };
        for pod in listed.items.into_iter().filter(named) {
            self.end_pod(&pod.id).await?;
        }
        Some(())
    }

    /// Every call on a running container.
    async fn use_container(&self, id: &str) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let container_id = || id.to_owned();
        let request = v1::UpdateContainerResourcesRequest {
            container_id: container_id(),
            linux: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: rand::random_range(32..64) << 20,
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = cri.update_container_resources(request).await;
        self.answer("update", answer, &[])?;
        let request = v1::ReopenContainerLogRequest {
            container_id: container_id(),
        };
        self.answer("reopen", cri.reopen_container_log(request).await, &[])?;
        let request = v1::ExecSyncRequest {
            container_id: container_id(),
            cmd: words(&["/bin/sh", "-c", "sleep 0.0$((RANDOM % 9))"]),
            timeout: 30,
        };
        self.answer("exec sync", cri.exec_sync(request).await, &[])?;
        let request = v1::ExecRequest {
            container_id: container_id(),
            cmd: words(&["/bin/sh"]),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        self.answer("exec", cri.exec(request).await, &[])?;
        let request = v1::AttachRequest {
            container_id: container_id(),
            stdout: true,
            ..Default::default()
        };
        self.answer("attach", cri.attach(request).await, &[])?;
        let request = v1::ContainerStatusRequest {
            container_id: container_id(),
            verbose: true,
        };
        self.answer("status", cri.container_status(request).await, &[])?;
        let request = v1::ContainerStatsRequest {
            container_id: container_id(),
        };
        self.answer("stats", cri.container_stats(request).await, &[])?;
        let request = v1::CheckpointContainerRequest {
            container_id: container_id(),
            ..Default::default()
        };
        let answer = cri.checkpoint_container(request).await;
        self.answer("checkpoint", answer, &[Code::Unimplemented]);
        Some(())
    }

    /// Every call on a running pod.
    async fn use_pod(&self, pod: &str) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let pod_sandbox_id = || pod.to_owned();
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod_sandbox_id(),
            verbose: true,
        };
        self.answer("pod status", cri.pod_sandbox_status(request).await, &[])?;
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: pod_sandbox_id(),
        };
        self.answer("pod stats", cri.pod_sandbox_stats(request).await, &[])?;
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod_sandbox_id(),
            resources: Some(v1::LinuxContainerResources {
                cpu_shares: rand::random_range(100..1000),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = cri.update_pod_sandbox_resources(request).await;
        self.answer("update pod", answer, &[])?;
        let request = v1::PortForwardRequest {
            pod_sandbox_id: pod_sandbox_id(),
            port: vec![80],
        };
        self.answer("port forward", cri.port_forward(request).await, &[])?;
        Some(())
    }

    /// Every call that only looks, and the stream of events.
    async fn look(&self) {
        while self.storm.goes_on() {
            if self.look_once().await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn look_once(&self) -> Option<()> {
        let mut cri = self.node.try_cri().await.ok()?;
        let mut images = self.node.try_images().await.ok()?;
        let events = cri.get_container_events(v1::GetEventsRequest {}).await;
        let mut events = self.answer("events", events, &[])?;
        macro_rules! look {
            ($client:ident.$call:ident($request:ident)) => {
                let answer = $client.$call(v1::$request::default()).await;
                self.answer(stringify!($call), answer, &[])?;
            };
        }
        look!(cri.version(VersionRequest));
        look!(cri.status(StatusRequest));
        look!(cri.runtime_config(RuntimeConfigRequest));
        look!(cri.update_runtime_config(UpdateRuntimeConfigRequest));
        look!(cri.list_pod_sandbox(ListPodSandboxRequest));
        look!(cri.list_containers(ListContainersRequest));
        look!(cri.list_container_stats(ListContainerStatsRequest));
        look!(cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest));
        look!(cri.list_metric_descriptors(ListMetricDescriptorsRequest));
        look!(cri.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest));
        look!(cri.stream_pod_sandboxes(StreamPodSandboxesRequest));
        look!(cri.stream_containers(StreamContainersRequest));
        look!(cri.stream_container_stats(StreamContainerStatsRequest));
        look!(cri.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest));
        look!(cri.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest));
        look!(images.list_images(ListImagesRequest));
        look!(images.stream_images(StreamImagesRequest));
        look!(images.image_fs_info(ImageFsInfoRequest));
        let next = tokio::time::timeout(Duration::from_millis(200), events.message()).await;
        // Nothing may have happened, or the daemon has died.
        drop(next);
        Some(())
    }

    async fn pull(&self, image: &str) {
        while self.storm.goes_on() {
            if self.pull_once(image).await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn pull_once(&self, image: &str) -> Option<()> {
        let mut images = self.node.try_images().await.ok()?;
        let spec = || {
            Some(v1::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            })
        };
        let request = v1::PullImageRequest {
            image: spec(),
            ..Default::default()
        };
        self.answer("pull", images.pull_image(request).await, &[])?;
        let request = v1::ImageStatusRequest {
            image: spec(),
            verbose: true,
        };
        self.answer("image status", images.image_status(request).await, &[])?;
        let request = v1::RemoveImageRequest { image: spec() };
        self.answer("remove image", images.remove_image(request).await, &[])?;
        Some(())
    }

    /// In the calm afterwards the image is whole, and goes without a trace.
    async fn image_works(&self, image: &str) {
        let start = Instant::now();
        while self.pull_once(image).await.is_none() {
            assert!(start.elapsed() < PATIENCE, "the image cannot be pulled");
        }
    }
}
