// SPDX-License-Identifier: Apache-2.0
//! The daemon dies again and again, `kill -9` at any moment, while containers start, log, exec and
//! end. Every line that a container wrote must be in its log, once and in order, and every exit code
//! must be learned.
//!
//! `PODWRIGHT_TEST_KILLS` says how often it dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cri::v1;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use crate::node::{Handle, PATIENCE, assert_no_links, shell, test_apart, words};

const KILLS: usize = 60;
const PODS: usize = 4;
const CONTAINERS: usize = 20;
/// Lines that a container writes to each of its streams.
const LINES: usize = 60;
/// A line that is split in the log.
const LONG: usize = 20_000;

#[derive(Default)]
struct Storm {
    over: AtomicBool,
    containers: AtomicUsize,
    execs: AtomicUsize,
    lines: AtomicUsize,
    failed_calls: AtomicUsize,
}

#[test]
fn no_moment_to_die_loses_a_line_or_an_exit_code() {
    test_apart(|node| async move {
        let kills = std::env::var("PODWRIGHT_TEST_KILLS").map_or(KILLS, |n| n.parse().unwrap());
        let storm = Arc::new(Storm::default());
        let mut pods = Vec::new();
        for number in 0..PODS {
            pods.push(node.run_pod(node.pod(&format!("storm{number}"))).await);
        }
        let workers: Vec<_> = (0..CONTAINERS)
            .map(|number| {
                let worker = Worker {
                    node: node.clone(),
                    storm: storm.clone(),
                    pod: pods[number % PODS].clone(),
                    pod_name: format!("storm{}", number % PODS),
                    number,
                };
                tokio::spawn(worker.run())
            })
            .collect();
        let start = Instant::now();
        let (mut starts, mut starting) = (0, Duration::ZERO);
        for _ in 0..kills {
            // Sometimes before it serves, in the middle of its repairs.
            if rand::random_ratio(3, 4) {
                let start = Instant::now();
                node.serves().await;
                starting += start.elapsed();
                starts += 1;
            }
            let most = if rand::random() { 300 } else { 1500 };
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..most))).await;
            node.replace().await;
            assert!(!workers.iter().any(|w| w.is_finished()), "a worker failed");
        }
        node.serves().await;
        storm.over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.await.unwrap();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        println!(
            "{kills} kills in {:?}, {:?} until it serves: {} containers ended as they should, \
             {} lines and {} execs, {} calls failed",
            start.elapsed(),
            starting / starts.max(1),
            count(&storm.containers),
            count(&storm.lines),
            count(&storm.execs),
            count(&storm.failed_calls),
        );
        assert_eq!(node.containers().await, Vec::new());
        for pod in &pods {
            shim_is_idle(&node, pod);
            node.remove_pod(pod).await;
        }
        nothing_is_left(&node);
    });
}

/// No connection, container or exec of a dead daemon is kept.
fn shim_is_idle(node: &Handle, pod: &str) {
    let dir = node.config().run_dir.join("cri/sandboxes").join(pod);
    let shim = crate::restart::shim_of(dir.to_str().unwrap());
    let open = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap();
    let open: Vec<_> = open
        .map(|fd| std::fs::read_link(fd.unwrap().path()))
        .collect();
    assert!(open.len() <= 10, "{open:?}");
}

fn nothing_is_left(node: &Handle) {
    for dir in [
        "data/cri/containers",
        "data/cri/sandboxes",
        "run/cri/sandboxes",
        "run/cri/netns",
    ] {
        let left: Vec<_> = std::fs::read_dir(node.root().join(dir)).unwrap().collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    assert_no_links();
}

struct Worker {
    node: Handle,
    storm: Arc<Storm>,
    pod: String,
    pod_name: String,
    number: usize,
}

impl Worker {
    async fn run(self) {
        let mut round = 0;
        while !self.storm.over.load(Ordering::Relaxed) {
            round += 1;
            self.live(&format!("c{}-{round}", self.number)).await;
        }
    }

    /// One container, from its creation to its removal.
    async fn live(&self, name: &str) {
        let code = rand::random_range(0..100);
        let script = format!(
            "i=0; while [ $i -lt {LINES} ]; do echo line $i; echo error $i >&2; i=$((i+1)); \
             [ $((i % 20)) = 0 ] && sleep 0.0$((i % 7)); done; \
             head -c {LONG} /dev/zero; echo; exit {code}"
        );
        let id = self.create(name, &script).await;
        let status = self.run_to_its_end(&id).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, if code == 0 { "Completed" } else { "Error" }),
            "{status:?}"
        );
        self.check_log(name);
        let id_ = &id;
        self.insist("remove", |mut cri| async move {
            let container_id = id_.clone();
            cri.remove_container(v1::RemoveContainerRequest { container_id })
                .await
                .ok()
        })
        .await;
        self.storm.containers.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls until there is an answer.
    async fn insist<T, F, Fut>(&self, what: &str, call: F) -> T
    where
        F: Fn(RuntimeServiceClient<Channel>) -> Fut,
        Fut: Future<Output = Option<T>>,
    {
        let start = Instant::now();
        loop {
            if let Ok(cri) = self.node.try_cri().await
                && let Some(answer) = call(cri).await
            {
                return answer;
            }
            self.storm.failed_calls.fetch_add(1, Ordering::Relaxed);
            assert!(start.elapsed() < 3 * PATIENCE, "no answer to {what}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// A call that was cut off may have been done: then the container is in the list.
    async fn create(&self, name: &str, script: &str) -> String {
        let config = shell(name, script);
        let sandbox = self.node.pod(&self.pod_name);
        self.insist("create", |mut cri| {
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: self.pod.clone(),
                config: Some(config.clone()),
                sandbox_config: Some(sandbox.clone()),
            };
            async move {
                if let Ok(answer) = cri.create_container(request).await {
                    return Some(answer.into_inner().container_id);
                }
                let all = cri.list_containers(v1::ListContainersRequest::default());
                let all = all.await.ok()?.into_inner().containers;
                let ours = |c: &v1::Container| c.metadata.as_ref().is_some_and(|m| m.name == name);
                Some(all.into_iter().find(ours)?.id)
            }
        })
        .await
    }

    /// Starts it if it waits for that, looks into it while it runs, and returns how it ended.
    async fn run_to_its_end(&self, id: &str) -> v1::ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.status(id).await;
            match status.state() {
                v1::ContainerState::ContainerExited => return status,
                v1::ContainerState::ContainerCreated => {
                    if let Ok(mut cri) = self.node.try_cri().await {
                        let container_id = id.to_owned();
                        let request = v1::StartContainerRequest { container_id };
                        let _ = cri.start_container(request).await;
                    }
                }
                _ => self.exec(id).await,
            }
            assert!(start.elapsed() < 3 * PATIENCE, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn status(&self, id: &str) -> v1::ContainerStatus {
        self.insist("status", |mut cri| async move {
            let request = v1::ContainerStatusRequest {
                container_id: id.to_owned(),
                verbose: false,
            };
            cri.container_status(request)
                .await
                .ok()?
                .into_inner()
                .status
        })
        .await
    }

    /// The container may end meanwhile, or the daemon; but what is answered is right.
    async fn exec(&self, id: &str) {
        let Ok(mut cri) = self.node.try_cri().await else {
            return;
        };
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words(&["/bin/sh", "-c", "echo here; exit 7"]),
            timeout: 30,
        };
        if let Ok(answer) = cri.exec_sync(request).await.map(|a| a.into_inner())
            // The container's end is that of its execs.
            && answer.exit_code != 137
        {
            assert_eq!((&answer.stdout[..], answer.exit_code), (&b"here\n"[..], 7));
            self.storm.execs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn check_log(&self, name: &str) {
        let dir = self.node.pod(&self.pod_name).log_directory;
        let path = std::path::Path::new(&dir).join(name).join("0.log");
        let text = std::fs::read(&path).unwrap();
        let text = String::from_utf8(text).unwrap();
        let [mut out, mut err] = [String::new(), String::new()];
        for line in text.lines() {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            let [_, stream, tag, words] = parts[..] else {
                panic!("{name}: {line:?} is no log line");
            };
            let text = if stream == "stdout" {
                &mut out
            } else {
                &mut err
            };
            text.push_str(words);
            if tag == "F" {
                text.push('\n');
            }
        }
        let numbered =
            |word: &str| -> String { (0..LINES).map(|i| format!("{word} {i}\n")).collect() };
        let long = "\0".repeat(LONG);
        assert_eq!(out, format!("{}{long}\n", numbered("line")), "{name}");
        assert_eq!(err, numbered("error"), "{name}");
        self.storm.lines.fetch_add(2 * LINES + 1, Ordering::Relaxed);
    }
}
