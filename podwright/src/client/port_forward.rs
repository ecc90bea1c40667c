// SPDX-License-Identifier: Apache-2.0
//! `port-forward`: local ports that lead into a pod.

use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::connection::ConnectionArgs;
use super::failure::{Outcome, say, warn};
use super::logs;

/// Connections at one time. More wait for one to end.
const CONNECTIONS_MAX: usize = 256;

/// Arguments of `port-forward`.
#[derive(Debug, clap::Args)]
pub(crate) struct PortForwardArgs {
    /// POD, pod/NAME, deployment/NAME or replicaset/NAME
    pod: String,
    /// LOCAL:REMOTE, PORT for both, or :REMOTE for any free local port
    #[arg(required = true)]
    ports: Vec<String>,
    /// Local address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(crate) async fn run(args: PortForwardArgs, data_dir: &Path) -> Outcome {
    let pairs = args
        .ports
        .iter()
        .map(|text| pair(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let server = args.connection.connect(data_dir).await?;
    let pod = logs::one_pod(&server, &args.pod).await?;
    let phase = pod
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending");
    anyhow::ensure!(
        phase == "Running",
        "unable to forward port because pod is not running. Current status={phase}"
    );
    let name = pod.metadata.name.unwrap_or_default();
    let mut tasks = JoinSet::new();
    for (local, remote) in pairs {
        let listener = TcpListener::bind((args.address, local))
            .await
            .map_err(|error| {
                anyhow::anyhow!(
                    "unable to listen on port {local} of {}: {error}",
                    args.address
                )
            })?;
        say(format!(
            "Forwarding from {} -> {remote}",
            listener.local_addr()?
        ))?;
        let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
        tasks.spawn(serve(listener, api, name.clone(), remote));
    }
    match tasks.join_next().await {
        Some(result) => result?,
        None => Ok(()),
    }
}

/// Local and remote port; a local port of zero is any.
fn pair(text: &str) -> anyhow::Result<(u16, u16)> {
    let port = |part: &str| {
        let number = part.parse::<u16>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| anyhow::anyhow!("{text:?} is not PORT, LOCAL:REMOTE or :REMOTE"))
    };
    match text.split_once(':') {
        None => port(text).map(|number| (number, number)),
        Some(("", remote)) => port(remote).map(|number| (0, number)),
        Some((local, remote)) => Ok((port(local)?, port(remote)?)),
    }
}

async fn serve(listener: TcpListener, api: Api<Pod>, pod: String, remote: u16) -> Outcome {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted?,
            Some(_) = connections.join_next() => continue,
        };
        say(format!(
            "Handling connection for {}",
            listener.local_addr()?.port()
        ))?;
        let (api, pod) = (api.clone(), pod.clone());
        connections.spawn(async move {
            if let Err(error) = forward(stream, &api, &pod, remote).await {
                warn(format!(
                    "error forwarding port {remote} to pod {pod}: {error:#}"
                ));
            }
        });
    }
}

async fn forward(mut local: TcpStream, api: &Api<Pod>, pod: &str, remote: u16) -> Outcome {
    let mut forwarder = api.portforward(pod, &[remote]).await?;
    let mut stream = forwarder
        .take_stream(remote)
        .ok_or_else(|| anyhow::anyhow!("the server opened no stream"))?;
    let failure = forwarder.take_error(remote);
    let copied = tokio::io::copy_bidirectional(&mut local, &mut stream).await;
    drop(stream);
    forwarder.abort();
    if let Some(failure) = failure
        && let Some(message) = failure.await
    {
        anyhow::bail!(message);
    }
    // One end hanging up is how connections end.
    let _ = copied;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_all_forms() {
        let check = |text: &str| pair(text).ok();
        assert_eq!(check("8080"), Some((8080, 8080)));
        assert_eq!(check("8080:80"), Some((8080, 80)));
        assert_eq!(check(":80"), Some((0, 80)));
        assert_eq!(check("80:"), None);
        assert_eq!(check("99999"), None);
    }
}
