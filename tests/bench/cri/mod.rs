// SPDX-License-Identifier: Apache-2.0
//! The same calls on CRI v1, to podwright and to containerd, by one client over one connection.

mod many;
mod pod;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use tests::{TestHost, wait_until};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::installed;
use crate::report::Report;
use pod::Lifecycle;
use tests::containerd::Containerd;
use tests::leftovers::remove_parent_cgroups;

mod v1 {
    #![allow(unreachable_pub, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

use v1::runtime_service_client::RuntimeServiceClient;

type Client = RuntimeServiceClient<Channel>;

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

#[derive(Clone)]
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

async fn calls(socket: &Path, peer: &Peer, runs: usize, report: &mut Report) -> Result<()> {
    let mut client = connect(socket).await?;
    network_is_ready(&mut client).await?;
    many::at_rest("runtime daemon, idle (PSS)", peer, report).await;
    let mut took = Lifecycle::default();
    let warm_up = runs.div_ceil(10);
    for run in 0..runs + warm_up {
        took.measure(&mut client, peer, run).await?;
    }
    took.report(warm_up, peer.who, report);
    many::memory(&mut client, peer, report).await?;
    many::lifecycles(&client, peer, report).await?;
    many::sandboxes(&client, peer, report).await?;
    many::listing(&mut client, peer, runs, report).await
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
