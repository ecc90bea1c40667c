// SPDX-License-Identifier: Apache-2.0
//! `podwright run -f pod.yaml`: pods with no control plane; logs on stdout, the pod's exit code.
//!
//! Runtime and kubelet run in this process, over directories, a bridge and a cgroup of their own,
//! so the pods of a stopped server are not touched; only the images are the node's. When the pods
//! have ended, or on Ctrl-C, everything that was made for them is removed.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, ensure};
use clap::Args;
use cni::PodNetwork;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kubelet::Handle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::run_node;
use crate::data_lock::DataLock;
use crate::manifest::{self, Document};
use crate::node_config::{NodeConfig, NodeFlags};
use crate::pod_logs::Printer;
use crate::pod_network::write_conflist;
use crate::supervise::Supervisor;

/// What `run` returns when it was interrupted, as a shell does.
const INTERRUPTED: u8 = 130;
/// Added to the longest grace period when pods are ended.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How often logs and states are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Link, rules and addresses apart from those of a server on the same machine.
const BRIDGE: &str = "pwrun0";
const NFT_TABLE: &str = "podwright-run";
const POD_CIDR: &str = "10.41.0.0/24";

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Manifest with one or more pods; - for standard input; can be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
}

pub(crate) fn main(args: RunArgs) -> anyhow::Result<ExitCode> {
    let pods = pods_of(&args.filename)?;
    let mut flags = args.node;
    // Whoever runs a job reads its output; the node's own log would be in the way.
    flags.log_level.get_or_insert_with(|| "warn".into());
    let node = flags.resolve()?;
    let _lock = DataLock::take(&node.data_dir)?;
    let place = Place::make(&node)?;
    let outcome = run_node(&place.node, run(&place, &pods));
    let removed = super::purge::remove_node(&place.node);
    let code = outcome?;
    removed?;
    Ok(code)
}

/// The pods of all files. Anything else needs a control plane, and is refused before it starts.
fn pods_of(files: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let documents = manifest::read(files)?;
    for document in &documents {
        ensure!(
            document.kind == "Pod",
            "{}: kind {} needs a control plane: podwright server takes it, run takes pods",
            document.source,
            document.kind
        );
    }
    Ok(documents)
}

/// Where the pods of one run live.
struct Place {
    node: NodeConfig,
}

impl Place {
    /// Directories of its own below the node's; what an earlier run left there, killed in the
    /// middle, is removed first.
    fn make(node: &NodeConfig) -> anyhow::Result<Self> {
        let data_dir = node.data_dir.join("run");
        let run_dir = node.run_dir.join("run");
        let own = NodeConfig {
            pod_manifest_path: data_dir.join("manifests"),
            pod_logs_dir: data_dir.join("logs"),
            cni_conf_dir: data_dir.join("cni-conf"),
            cri_socket: run_dir.join("cri.sock"),
            cgroup_parent: format!("{}-run", node.cgroup_parent),
            bridge: BRIDGE.into(),
            nft_table: NFT_TABLE.into(),
            // A job needs no address of its node; one without a default route has none.
            node_ips: vec![node.node_ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))],
            // The node's network to others is not this one's to make or to remove.
            overlay: cni::overlay::Settings {
                backend: cni::overlay::Backend::None,
                nft_table: NFT_TABLE.into(),
                ..node.overlay.clone()
            },
            healthz_port: 0,
            cri: beside(&node.cri),
            data_dir,
            run_dir,
            ..node.clone()
        };
        super::purge::remove_node(&own).context("removing what an earlier run left")?;
        let images = node.data_dir.join("cri/images");
        fs::create_dir_all(&images).with_context(|| format!("creating {}", images.display()))?;
        let cri = own.data_dir.join("cri");
        fs::create_dir_all(&cri).with_context(|| format!("creating {}", cri.display()))?;
        symlink(&images, cri.join("images")).context("sharing the node's images")?;
        let network = PodNetwork::new(BRIDGE, NFT_TABLE, POD_CIDR, POD_CIDR)?;
        write_conflist(&own.cni_conf_dir, &network)?;
        Ok(Self { node: own })
    }

    fn manifest(&self, document: &Document) -> PathBuf {
        let namespace = document.namespace.as_deref().unwrap_or("default");
        let name = format!("{namespace}_{}.json", document.name);
        self.node.pod_manifest_path.join(name)
    }
}

/// The node's settings without what only one runtime of a machine can hold: the port of its streams
/// and the socket that NRI plugins connect to.
fn beside(node: &cri::Settings) -> cri::Settings {
    let mut own = node.clone();
    own.streaming = cri::settings::Streaming::default();
    own.nri.enable = false;
    own
}

async fn run(place: &Place, pods: &[Document]) -> anyhow::Result<ExitCode> {
    let mut supervisor = Supervisor::new()?;
    super::cri::start(&mut supervisor, place.node.cri()).await?;
    let dir = &place.node.pod_manifest_path;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for pod in pods {
        let path = place.manifest(pod);
        fs::write(&path, pod.value.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let interrupted = supervisor.stop_token();
    let ended = CancellationToken::new();
    let kubelet = kubelet::start(place.node.kubelet(None)?, ended.clone())
        .await
        .context("starting kubelet")?;
    let mut printer = Printer::new(&place.node.pod_logs_dir);
    let last = watch(&kubelet, pods.len(), &mut printer, &interrupted).await;
    for pod in pods {
        remove_file(&place.manifest(pod))?;
    }
    wait_until_gone(&kubelet, &mut printer).await?;
    ended.cancel();
    kubelet.wait().await.context("ending kubelet")?;
    interrupted.cancel();
    supervisor.run_until_stopped().await?;
    Ok(ExitCode::from(match last {
        Some(pods) => exit_code(&pods),
        None => INTERRUPTED,
    }))
}

/// Prints logs until every pod has ended; none when that was not waited for.
async fn watch(
    kubelet: &Handle,
    wanted: usize,
    printer: &mut Printer,
    interrupted: &CancellationToken,
) -> Option<Vec<Pod>> {
    loop {
        let pods: Vec<Pod> = kubelet.pods().iter().map(|pod| (**pod).clone()).collect();
        printer.print_new();
        if pods.len() == wanted && pods.iter().all(has_ended) {
            printer.print_new();
            return Some(pods);
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = interrupted.cancelled() => return None,
        }
    }
}

async fn wait_until_gone(kubelet: &Handle, printer: &mut Printer) -> anyhow::Result<()> {
    let grace = kubelet
        .pods()
        .iter()
        .filter_map(|pod| pod.spec.as_ref()?.termination_grace_period_seconds)
        .max()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .unwrap_or(30);
    let deadline = Instant::now() + END_WITHIN + Duration::from_secs(grace);
    while !kubelet.pods().is_empty() {
        ensure!(
            Instant::now() < deadline,
            "{} pods did not end within their grace period",
            kubelet.pods().len()
        );
        printer.print_new();
        sleep(LOOK).await;
    }
    Ok(())
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// That of the first container that failed, in the order of the manifests; 1 for a pod that failed
/// before any of its containers did; 0 otherwise.
fn exit_code(pods: &[Pod]) -> u8 {
    let code_of = |status: &ContainerStatus| {
        let terminated = status.state.as_ref()?.terminated.as_ref()?;
        (terminated.exit_code != 0).then_some(terminated.exit_code)
    };
    pods.iter()
        .find_map(|pod| {
            let status = pod.status.as_ref()?;
            let init = status.init_container_statuses.iter().flatten();
            let code = init
                .chain(status.container_statuses.iter().flatten())
                .find_map(code_of);
            code.or((status.phase.as_deref() == Some("Failed")).then_some(1))
        })
        .map_or(0, |code| u8::try_from(code).unwrap_or(1))
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "status": status })).expect("a pod")
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_container_that_failed() {
        let ended = |code: i32| {
            serde_json::json!({ "name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": { "terminated": { "exitCode": code } } })
        };
        let good =
            pod(serde_json::json!({ "phase": "Succeeded", "containerStatuses": [ended(0)] }));
        let bad = pod(
            serde_json::json!({ "phase": "Failed", "containerStatuses": [ended(0), ended(7), ended(9)] }),
        );
        let refused = pod(serde_json::json!({ "phase": "Failed", "reason": "OutOfcpu" }));
        assert_eq!(exit_code(std::slice::from_ref(&good)), 0);
        assert_eq!(exit_code(&[good.clone(), bad]), 7);
        assert_eq!(exit_code(&[good, refused]), 1);
    }
}
