// SPDX-License-Identifier: Apache-2.0
//! Many pods: at once, and what they cost together.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;

use super::pod::{remove_container, remove_sandbox, run_sandbox, start_container};
use super::{Client, Peer, v1};
use crate::memory::{children, name, processes_with, pss_kib};
use crate::report::Report;

/// Pods that exist at once when memory is measured.
const PODS: usize = 50;
/// Whole lives of pods that run side by side.
const LIVES: usize = 30;
/// Sandboxes that are run side by side.
const SANDBOXES: usize = 100;
/// What there is to list.
const LISTED_PODS: usize = 500;
const CONTAINERS_EACH: usize = 2;
/// A daemon gives memory back when it is idle, not in the answer to the last call.
const SETTLING: Duration = Duration::from_secs(5);

/// Memory of what holds a pod (shim and pause) and of the daemon, with pods of one container each,
/// and of the daemon when they are gone.
pub(super) async fn memory(client: &mut Client, peer: &Peer, report: &mut Report) -> Result<()> {
    let mut sandboxes = Vec::new();
    for run in 0..PODS {
        let (config, id) = run_sandbox(client, peer, 1_000_000 + run).await?;
        start_container(client, &id, &config, "main").await?;
        sandboxes.push(id);
    }
    let mut shims = Vec::new();
    for pid in processes_with(&peer.marker) {
        if name(pid).contains("shim") {
            let pause = children(pid)
                .into_iter()
                .filter(|child| name(*child) == "pause");
            shims.push(pss_kib(pid) + pause.map(pss_kib).sum::<f64>());
        }
    }
    let what = format!("shim (and pause), each of {PODS} pods (PSS)");
    report.kib(&what, peer.who, shims);
    at_rest(&format!("runtime daemon, {PODS} pods (PSS)"), peer, report).await;
    for id in &sandboxes {
        remove_sandbox(client, id).await?;
    }
    let what = format!("runtime daemon, {PODS} pods gone (PSS)");
    at_rest(&what, peer, report).await;
    Ok(())
}

/// The daemon's memory a little after its last call.
pub(super) async fn at_rest(what: &str, peer: &Peer, report: &mut Report) {
    tokio::time::sleep(SETTLING).await;
    report.kib(what, peer.who, vec![pss_kib(peer.daemon)]);
}

/// Whole lives of pods, from RunPodSandbox to RemovePodSandbox, all at once: the time of them all.
pub(super) async fn lifecycles(client: &Client, peer: &Peer, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    all_at_once(LIVES, |run| {
        let (mut client, peer) = (client.clone(), peer.clone());
        async move {
            let (config, id) = run_sandbox(&mut client, &peer, 2_000_000 + run).await?;
            let container = start_container(&mut client, &id, &config, "main").await?;
            remove_container(&mut client, container).await?;
            remove_sandbox(&mut client, &id).await
        }
    })
    .await?;
    let what = format!("{LIVES} pod lifecycles at once, wall time");
    report.times(&what, peer.who, &[start.elapsed()]);
    Ok(())
}

/// Sandboxes all at once: the time until the last one runs. None may fail, and none may stay.
pub(super) async fn sandboxes(client: &Client, peer: &Peer, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let ids = all_at_once(SANDBOXES, |run| {
        let (mut client, peer) = (client.clone(), peer.clone());
        async move { Ok(run_sandbox(&mut client, &peer, 3_000_000 + run).await?.1) }
    })
    .await?;
    let what = format!("{SANDBOXES} sandboxes at once, wall time");
    report.times(&what, peer.who, &[start.elapsed()]);
    remove_all(client, ids).await?;
    let left = client
        .clone()
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await?
        .into_inner();
    ensure!(left.items.is_empty(), "{} sandboxes stay", left.items.len());
    Ok(())
}

/// ListPodSandbox and ListContainers where there is much to list.
pub(super) async fn listing(
    client: &mut Client,
    peer: &Peer,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    let mut sandboxes = Vec::new();
    for run in 0..LISTED_PODS {
        let (config, id) = run_sandbox(client, peer, 4_000_000 + run).await?;
        for container in 0..CONTAINERS_EACH {
            start_container(client, &id, &config, &format!("c{container}")).await?;
        }
        sandboxes.push(id);
    }
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let start = Instant::now();
        let request = v1::ListPodSandboxRequest::default();
        let listed = client.list_pod_sandbox(request).await?.into_inner();
        pods.push(start.elapsed());
        ensure!(listed.items.len() == LISTED_PODS, "{}", listed.items.len());
        let start = Instant::now();
        let request = v1::ListContainersRequest::default();
        let listed = client.list_containers(request).await?.into_inner();
        containers.push(start.elapsed());
        let expected = LISTED_PODS * CONTAINERS_EACH;
        ensure!(
            listed.containers.len() == expected,
            "{}",
            listed.containers.len()
        );
    }
    let what = format!("ListPodSandbox, {LISTED_PODS} pods");
    report.times(&what, peer.who, &pods);
    let what = format!(
        "ListContainers, {} containers",
        LISTED_PODS * CONTAINERS_EACH
    );
    report.times(&what, peer.who, &containers);
    remove_all(client, sandboxes).await
}

async fn remove_all(client: &Client, ids: Vec<String>) -> Result<()> {
    // Not all at once: that takes longer than a call may.
    for some in ids.chunks(LIVES) {
        let some = std::sync::Arc::new(some.to_vec());
        all_at_once(some.len(), |at| {
            let (mut client, some) = (client.clone(), some.clone());
            async move { remove_sandbox(&mut client, &some[at]).await }
        })
        .await?;
    }
    Ok(())
}

/// Starts `count` works side by side; fails when one of them does.
async fn all_at_once<T: Send + 'static, F>(
    count: usize,
    work: impl Fn(usize) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut running: JoinSet<_> = (0..count).map(work).collect();
    let mut done = Vec::with_capacity(count);
    while let Some(joined) = running.join_next().await {
        match joined {
            Ok(result) => done.push(result?),
            Err(error) => bail!("a task ended without a result: {error}"),
        }
    }
    Ok(done)
}
