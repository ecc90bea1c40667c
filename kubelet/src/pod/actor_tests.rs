// SPDX-License-Identifier: Apache-2.0
//! Whole lives of pods, over a fake runtime and on paused time.

use std::sync::Mutex;

use super::*;
use crate::env::NoObjects;
use crate::node::NodeFacts;
use crate::pod::deps::{PodTable, Settings};
use crate::pod::fake::{FakeEvents, FakeRuntime, FakeSink, TokioClock};
use crate::pod::testing::pod;
use crate::volumes::{VolumeDirs, Volumes};

struct Stage {
    runtime: Arc<FakeRuntime>,
    sink: Arc<FakeSink>,
    events: Arc<FakeEvents>,
    deps: Arc<Deps>,
    wanted: watch::Sender<Wanted>,
    actor: AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

/// No pod of these tests has a user namespace.
fn userns(dir: &std::path::Path) -> crate::userns::UserNamespaces {
    let settings = crate::config::UserNamespaceSettings {
        ids_per_pod: 65536,
        subuid_file: dir.join("subuid"),
        subgid_file: dir.join("subgid"),
        passwd_file: dir.join("passwd"),
    };
    crate::userns::UserNamespaces::open(dir, &settings, 110).expect("opens")
}

impl Stage {
    fn new(spec: &str) -> Stage {
        let clock = TokioClock::new();
        let runtime = FakeRuntime::new(Arc::clone(&clock));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (sink, events) = (
            Arc::new(FakeSink::default()),
            Arc::new(FakeEvents::default()),
        );
        let facts = Arc::new(NodeFacts::default());
        let dirs = VolumeDirs {
            kubelet_dir: dir.path().join("kubelet"),
            node_hosts_file: "/etc/hosts".into(),
        };
        let deps = Arc::new(Deps {
            runtime: Arc::clone(&runtime) as _,
            sink: Arc::clone(&sink) as _,
            events: Arc::clone(&events) as _,
            clock,
            volumes: Volumes::new(dirs, Arc::new(NoObjects), Arc::clone(&facts)),
            userns: Arc::new(userns(dir.path())),
            objects: Arc::new(NoObjects),
            facts,
            table: Arc::new(PodTable::default()),
            settings: Settings {
                node_name: "n".to_owned(),
                node_ips: vec![IpAddr::from([192, 0, 2, 7])],
                pod_logs_dir: dir.path().join("logs"),
                cgroup_parent: "/t".to_owned(),
                cluster_dns: Vec::new(),
                cluster_domain: String::new(),
                resolv_conf: dir.path().join("resolv.conf"),
                default_handler: Default::default(),
                sync_frequency: Duration::from_secs(60),
            },
        });
        let (wanted, actor) = hire(&deps, &runtime, pod(spec));
        Stage {
            runtime,
            sink,
            events,
            deps,
            wanted,
            actor,
            _dir: dir,
        }
    }

    /// Waits until the status fits, for a simulated hour at most.
    async fn until(&self, what: &str, fits: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let mut changes = self.deps.table.watch();
        let search = async {
            loop {
                let now = self.deps.table.get("u").and_then(|pod| pod.status.clone());
                if let Some(status) = now.filter(&fits) {
                    return status;
                }
                changes.changed().await.expect("the table lives");
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(3600), search).await;
        found.unwrap_or_else(|_| panic!("never {what}; events {:#?}", self.events()))
    }

    fn events(&self) -> Vec<String> {
        lock(&self.events.seen)
    }

    fn delete(&self) {
        self.wanted.send_modify(|wanted| wanted.delete = true);
    }

    async fn end(self) -> Stage {
        let Stage {
            runtime,
            sink,
            events,
            deps,
            wanted,
            actor,
            _dir,
        } = self;
        let ended = tokio::time::timeout(Duration::from_secs(3600), actor).await;
        ended.expect("the actor ends").expect("without a panic");
        let actor = AbortOnDropHandle::new(tokio::spawn(async {}));
        Stage {
            runtime,
            sink,
            events,
            deps,
            wanted,
            actor,
            _dir,
        }
    }
}

fn lock<T: Clone>(mutex: &Mutex<T>) -> T {
    mutex.lock().expect("nobody panicked with it").clone()
}

fn hire(
    deps: &Arc<Deps>,
    runtime: &FakeRuntime,
    pod: Pod,
) -> (watch::Sender<Wanted>, AbortOnDropHandle<()>) {
    let look = Arc::new(Notify::new());
    *runtime.look.lock().expect("nobody panicked with it") = Arc::clone(&look);
    let (sender, wanted) = watch::channel(Wanted {
        pod: Arc::new(pod.clone()),
        delete: false,
    });
    let actor = Actor::new(
        Arc::clone(deps),
        pod,
        Beginning::default(),
        Ears { wanted, look },
    );
    (sender, AbortOnDropHandle::new(tokio::spawn(actor.run())))
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn waiting(status: &PodStatus) -> Option<String> {
    let container = status.container_statuses.as_ref()?.first()?;
    container.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

fn restarts(status: &PodStatus) -> i32 {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    containers
        .first()
        .map_or(0, |container| container.restart_count)
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_becomes_ready_and_is_deleted_without_a_trace() {
    let stage = Stage::new("containers: [{name: a, image: run}]");
    stage.until("ready", is_ready).await;
    let events = stage.events();
    let reasons: Vec<&str> = events
        .iter()
        .filter_map(|event| event.split(':').next())
        .collect();
    assert_eq!(
        reasons,
        [
            "MissingClusterDNS",
            "Pulling",
            "Pulled",
            "Created",
            "Started"
        ]
    );
    stage.delete();
    let stage = stage.end().await;
    assert!(stage.runtime.is_empty());
    assert!(
        stage
            .events()
            .contains(&"Killing: Stopping container a".to_owned())
    );
    let last = lock(&stage.sink.finished)
        .remove("u")
        .expect("the API pod was finished");
    let container = &last.container_statuses.expect("statuses")[0];
    let end = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
        .expect("an end");
    assert_eq!(end.exit_code, 143);
    assert!(stage.deps.table.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_before_the_app() {
    let stage = Stage::new(
        "
initContainers: [{name: i, image: exit-0}, {name: j, image: exit-0}]
containers: [{name: a, image: run}]",
    );
    stage.until("ready", is_ready).await;
    let starts: Vec<String> = stage
        .runtime
        .calls()
        .into_iter()
        .filter(|call| call.starts_with("start"))
        .collect();
    assert_eq!(starts, ["start i", "start j", "start a"]);
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off_and_keeps_counting() {
    let stage = Stage::new("containers: [{name: a, image: exit-3}]");
    stage
        .until("in back-off", |status| {
            waiting(status).as_deref() == Some("CrashLoopBackOff")
        })
        .await;
    let begin = Instant::now();
    stage
        .until("restarted five times", |status| restarts(status) >= 5)
        .await;
    // 10 + 20 + 40 + 80 seconds after the first, immediate restart.
    let took = begin.elapsed().as_secs();
    assert!((140..=160).contains(&took), "{took}");
    assert!(
        stage.runtime.containers().len() <= 2,
        "dead containers are collected"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_backs_off_until_it_is_there() {
    let stage = Stage::new("containers: [{name: a, image: gone}]");
    stage
        .until("pull error", |status| {
            waiting(status).as_deref() == Some("ErrImagePull")
        })
        .await;
    stage
        .until("pull back-off", |status| {
            waiting(status).as_deref() == Some("ImagePullBackOff")
        })
        .await;
    assert!(
        stage
            .events()
            .contains(&"BackOff: Back-off pulling image \"gone\"".to_owned())
    );
    stage.runtime.add_image("gone");
    stage.until("ready", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_done_its_work_succeeds() {
    let stage = Stage::new("restartPolicy: Never\ncontainers: [{name: a, image: exit-0}]");
    let status = stage
        .until("succeeded", |status| {
            status.phase.as_deref() == Some("Succeeded")
        })
        .await;
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .expect("Ready");
    assert_eq!(ready.reason.as_deref(), Some("PodCompleted"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_the_container() {
    let stage = Stage::new(
        "containers: [{name: a, image: sick, livenessProbe: {exec: {command: [check]}, periodSeconds: 1, failureThreshold: 2}}]",
    );
    stage
        .until("restarted", |status| restarts(status) >= 1)
        .await;
    let events = stage.events();
    assert!(events.contains(&"Unhealthy: Liveness probe failed: out".to_owned()));
    assert!(
        events
            .contains(&"Killing: Container a failed liveness probe, will be restarted".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let stage = Stage::new(
        "containers: [{name: a, image: run, lifecycle: {postStart: {exec: {command: [hello]}}, preStop: {exec: {command: [bye]}}}}]",
    );
    stage.until("ready", is_ready).await;
    stage.delete();
    let stage = stage.end().await;
    let calls = stage.runtime.calls();
    let order: Vec<&str> = calls
        .iter()
        .map(String::as_str)
        .filter(|call| !call.starts_with("pull"))
        .collect();
    assert_eq!(order, ["start a", "exec hello", "exec bye", "stop a 30"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_changes_nothing_that_users_see() {
    let mut stage = Stage::new(
        "containers: [{name: a, image: run, readinessProbe: {exec: {command: [ok]}, initialDelaySeconds: 5}}]",
    );
    stage.until("ready", is_ready).await;
    let pod = stage.deps.table.get("u").expect("the pod");
    lock(&stage.sink.statuses);
    stage
        .sink
        .statuses
        .lock()
        .expect("nobody panicked with it")
        .clear();
    drop(stage.actor);
    let (wanted, actor) = hire(&stage.deps, &stage.runtime, Pod::clone(&pod));
    (stage.wanted, stage.actor) = (wanted, actor);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(lock(&stage.sink.statuses), [], "nothing was written");
    assert_eq!(stage.runtime.containers().len(), 1, "nothing was started");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let stage = Stage::new("activeDeadlineSeconds: 5\ncontainers: [{name: a, image: run}]");
    let status = stage
        .until("failed", |status| status.phase.as_deref() == Some("Failed"))
        .await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test(start_paused = true)]
async fn a_missing_volume_shows_as_an_event_while_the_pod_waits() {
    let stage = Stage::new(
        "
containers: [{name: a, image: run, volumeMounts: [{name: v, mountPath: /v}]}]
volumes: [{name: v, configMap: {name: none}}]",
    );
    let status = stage
        .until("waiting", |status| waiting(status).is_some())
        .await;
    assert_eq!(waiting(&status).as_deref(), Some("ContainerCreating"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(
        stage
            .events()
            .iter()
            .any(|event| event.starts_with("FailedMount: ")),
        "{:?}",
        stage.events()
    );
    // Deleting does not wait for the next try to mount.
    let begin = Instant::now();
    stage.delete();
    stage.end().await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}
