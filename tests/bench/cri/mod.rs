// SPDX-License-Identifier: Apache-2.0
//! The same calls on CRI v1, to podwright and to containerd, by one client over one connection.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use tests::{TestHost, wait_until};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::report::Report;
use crate::{installed, memory};
use tests::containerd::Containerd;
use tests::leftovers::remove_parent_cgroups;

mod v1 {
    #![allow(unreachable_pub, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

use v1::runtime_service_client::RuntimeServiceClient;

type Client = RuntimeServiceClient<Channel>;

const IMAGE: &str = "localhost/busybox:1";
/// Pods that exist at once when memory is measured.
const PODS: usize = 20;

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    {
        let host = TestHost::new()?;
        host.busybox_image()?;
        let daemon = Daemon::start(&host)?;
        let peer = Peer {
            who: "podwright",
            cgroup_parent: host.cgroup_parent.clone(),
            daemon: daemon.child.id(),
            marker: host.path().to_string_lossy().into_owned(),
        };
        let outcome = runtime.block_on(calls(&daemon.socket, &peer, runs, report));
        drop(daemon);
        outcome?;
        host.down()?;
    }
    if installed("containerd") {
        let host = TestHost::new()?;
        let containerd = Containerd::start(&host)?;
        let peer = Peer {
            who: "containerd",
            cgroup_parent: host.cgroup_parent.clone(),
            daemon: containerd.pid(),
            marker: containerd.socket.to_string_lossy().into_owned(),
        };
        let outcome = runtime.block_on(calls(&containerd.socket, &peer, runs, report));
        drop(containerd);
        outcome?;
        remove_parent_cgroups(&host)?;
        host.down()?;
    }
    Ok(())
}

struct Peer {
    who: &'static str,
    cgroup_parent: String,
    daemon: u32,
    /// What the command line of each of its per-pod processes contains.
    marker: String,
}

struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(host: &TestHost) -> Result<Self> {
        let conflist = include_str!("conflist.json");
        host.write(
            "cni/10-bench.conflist",
            &conflist.replace("DIR", &host.path().to_string_lossy()),
        )?;
        let log = std::fs::File::create(host.path().join("cri.log"))?;
        let child = host
            .podwright(&["cri"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let socket = host.path().join("run/cri.sock");
        let daemon = Self { child, socket };
        wait_until("podwright cri listens", Duration::from_secs(30), || {
            daemon.socket.exists()
        })?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A daemon that has ended already needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect(socket: &Path) -> Result<Client> {
    let socket = socket.to_owned();
    // The address is required and unused: every connection goes to the socket.
    let endpoint = Endpoint::from_static("http://cri.invalid").timeout(Duration::from_secs(60));
    let channel = endpoint
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        }))
        .await
        .context("connecting to the runtime")?;
    Ok(RuntimeServiceClient::new(channel))
}

/// Durations by operation, in the order in which a pod goes through them.
#[derive(Default)]
struct Lifecycle {
    run_sandbox: Vec<Duration>,
    start_container: Vec<Duration>,
    exec: Vec<Duration>,
    stop_container: Vec<Duration>,
    remove_sandbox: Vec<Duration>,
}

async fn calls(socket: &Path, peer: &Peer, runs: usize, report: &mut Report) -> Result<()> {
    let mut client = connect(socket).await?;
    network_is_ready(&mut client).await?;
    report.kib(
        "runtime daemon, idle (PSS)",
        peer.who,
        vec![memory::pss_kib(peer.daemon)],
    );
    let mut took = Lifecycle::default();
    for run in 0..runs + runs.div_ceil(10) {
        one_lifecycle(&mut client, peer, run, &mut took).await?;
    }
    let warm_up = runs.div_ceil(10);
    let who = peer.who;
    report.times("RunPodSandbox", who, &took.run_sandbox[warm_up..]);
    report.times(
        "CreateContainer + StartContainer",
        who,
        &took.start_container[warm_up..],
    );
    report.times("ExecSync true", who, &took.exec[warm_up..]);
    report.times(
        "StopContainer(0) + RemoveContainer",
        who,
        &took.stop_container[warm_up..],
    );
    report.times(
        "StopPodSandbox + RemovePodSandbox",
        who,
        &took.remove_sandbox[warm_up..],
    );
    pods_memory(&mut client, peer, report).await
}

async fn network_is_ready(client: &mut Client) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = client
            .status(v1::StatusRequest::default())
            .await?
            .into_inner();
        let conditions = status
            .status
            .map(|status| status.conditions)
            .unwrap_or_default();
        if conditions.iter().all(|condition| condition.status) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the runtime is not ready: {conditions:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn sandbox_config(peer: &Peer, run: usize) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: format!("bench-{run}"),
            uid: format!("uid-{run}"),
            namespace: "bench".into(),
            attempt: 0,
        }),
        hostname: "bench".into(),
        log_directory: String::new(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/pod{run}", peer.cgroup_parent),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn start_container(
    client: &mut Client,
    sandbox: &str,
    config: &v1::PodSandboxConfig,
) -> Result<String> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: IMAGE.into(),
                ..Default::default()
            }),
            command: vec!["/bin/sleep".into(), "100000".into()],
            ..Default::default()
        }),
        sandbox_config: Some(config.clone()),
    };
    let container_id = client
        .create_container(request)
        .await?
        .into_inner()
        .container_id;
    let start = v1::StartContainerRequest {
        container_id: container_id.clone(),
    };
    client.start_container(start).await?;
    Ok(container_id)
}

async fn remove_sandbox(client: &mut Client, pod_sandbox_id: &str) -> Result<()> {
    let pod_sandbox_id = pod_sandbox_id.to_owned();
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    client.stop_pod_sandbox(stop).await?;
    client
        .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id })
        .await?;
    Ok(())
}

async fn one_lifecycle(
    client: &mut Client,
    peer: &Peer,
    run: usize,
    took: &mut Lifecycle,
) -> Result<()> {
    let config = sandbox_config(peer, run);
    let mut clock = Instant::now();
    let mut lap = |samples: &mut Vec<Duration>| {
        samples.push(clock.elapsed());
        clock = Instant::now();
    };
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let sandbox = client
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    lap(&mut took.run_sandbox);
    let container_id = start_container(client, &sandbox, &config).await?;
    lap(&mut took.start_container);
    let exec = v1::ExecSyncRequest {
        container_id: container_id.clone(),
        cmd: vec!["/bin/true".into()],
        timeout: 10,
    };
    client.exec_sync(exec).await?;
    lap(&mut took.exec);
    let stop = v1::StopContainerRequest {
        container_id: container_id.clone(),
        timeout: 0,
    };
    client.stop_container(stop).await?;
    client
        .remove_container(v1::RemoveContainerRequest { container_id })
        .await?;
    lap(&mut took.stop_container);
    remove_sandbox(client, &sandbox).await?;
    lap(&mut took.remove_sandbox);
    Ok(())
}

/// Memory of what holds a pod (shim and pause) and of the daemon, with pods of one container each.
async fn pods_memory(client: &mut Client, peer: &Peer, report: &mut Report) -> Result<()> {
    let mut sandboxes = Vec::new();
    for run in 0..PODS {
        let config = sandbox_config(peer, 1_000_000 + run);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let id = client
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        start_container(client, &id, &config).await?;
        sandboxes.push(id);
    }
    let mut shims = Vec::new();
    for pid in memory::processes_with(&peer.marker) {
        if memory::name(pid).contains("shim") {
            let pause = memory::children(pid)
                .into_iter()
                .filter(|child| memory::name(*child) == "pause");
            shims.push(memory::pss_kib(pid) + pause.map(memory::pss_kib).sum::<f64>());
        }
    }
    report.kib(
        &format!("shim (and pause), each of {PODS} pods (PSS)"),
        peer.who,
        shims,
    );
    report.kib(
        &format!("runtime daemon, {PODS} pods (PSS)"),
        peer.who,
        vec![memory::pss_kib(peer.daemon)],
    );
    for id in &sandboxes {
        remove_sandbox(client, id).await?;
    }
    Ok(())
}
