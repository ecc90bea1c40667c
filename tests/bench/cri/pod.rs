// SPDX-License-Identifier: Apache-2.0
//! One pod: its requests, and how long each step of its life takes.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Client, Peer, v1};
use crate::report::Report;

const IMAGE: &str = "localhost/busybox:1";

/// Durations by operation, in the order in which a pod goes through them.
#[derive(Default)]
pub(super) struct Lifecycle {
    run_sandbox: Vec<Duration>,
    start_container: Vec<Duration>,
    exec: Vec<Duration>,
    stop_container: Vec<Duration>,
    remove_sandbox: Vec<Duration>,
}

impl Lifecycle {
    /// One pod from its beginning to its end.
    pub(super) async fn measure(
        &mut self,
        client: &mut Client,
        peer: &Peer,
        run: usize,
    ) -> Result<()> {
        let mut clock = Instant::now();
        let mut lap = |samples: &mut Vec<Duration>| {
            samples.push(clock.elapsed());
            clock = Instant::now();
        };
        let (config, sandbox) = run_sandbox(client, peer, run).await?;
        lap(&mut self.run_sandbox);
        let container_id = start_container(client, &sandbox, &config, "main").await?;
        lap(&mut self.start_container);
        let exec = v1::ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["/bin/true".into()],
            timeout: 10,
        };
        client.exec_sync(exec).await?;
        lap(&mut self.exec);
        remove_container(client, container_id).await?;
        lap(&mut self.stop_container);
        remove_sandbox(client, &sandbox).await?;
        lap(&mut self.remove_sandbox);
        Ok(())
    }

    /// Adds what was measured, without the first `warm_up` runs.
    pub(super) fn report(&self, warm_up: usize, who: &str, report: &mut Report) {
        for (what, samples) in [
            ("RunPodSandbox", &self.run_sandbox),
            ("CreateContainer + StartContainer", &self.start_container),
            ("ExecSync true", &self.exec),
            ("StopContainer(0) + RemoveContainer", &self.stop_container),
            ("StopPodSandbox + RemovePodSandbox", &self.remove_sandbox),
        ] {
            report.times(what, who, &samples[warm_up..]);
        }
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

/// Runs the pod number `run`; returns what it was asked for with, and its id.
pub(super) async fn run_sandbox(
    client: &mut Client,
    peer: &Peer,
    run: usize,
) -> Result<(v1::PodSandboxConfig, String)> {
    let config = sandbox_config(peer, run);
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let answer = client.run_pod_sandbox(request).await?.into_inner();
    Ok((config, answer.pod_sandbox_id))
}

/// Creates and starts a container that sleeps.
pub(super) async fn start_container(
    client: &mut Client,
    sandbox: &str,
    config: &v1::PodSandboxConfig,
    name: &str,
) -> Result<String> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.into(),
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

/// Kills a container and removes it.
pub(super) async fn remove_container(client: &mut Client, container_id: String) -> Result<()> {
    let stop = v1::StopContainerRequest {
        container_id: container_id.clone(),
        timeout: 0,
    };
    client.stop_container(stop).await?;
    client
        .remove_container(v1::RemoveContainerRequest { container_id })
        .await?;
    Ok(())
}

/// Stops a pod and removes it, with its containers.
pub(super) async fn remove_sandbox(client: &mut Client, pod_sandbox_id: &str) -> Result<()> {
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
