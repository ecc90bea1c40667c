// SPDX-License-Identifier: Apache-2.0
//! `exec`: a command in a running container, over the WebSocket channel protocol.

use std::path::Path;

use futures::SinkExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use super::connection::ConnectionArgs;
use super::failure::{ExitWith, Outcome, warn};
use super::{logs, sys, terminal};

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// POD, pod/NAME, deployment/NAME or replicaset/NAME
    pod: String,
    /// Container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass stdin to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(crate) async fn run(args: ExecArgs, data_dir: &Path) -> Outcome {
    let server = args.connection.connect(data_dir).await?;
    let pod = logs::one_pod(&server, &args.pod).await?;
    let phase = pod
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default();
    anyhow::ensure!(
        !matches!(phase, "Succeeded" | "Failed"),
        "cannot exec into a container in a completed pod; current phase is {phase}"
    );
    let container = logs::container(&pod, args.container.as_deref())?;
    let raw = if args.tty && args.stdin {
        terminal::Raw::enter()?
    } else {
        None
    };
    let tty = args.tty && raw.is_some();
    if args.tty && !tty {
        warn("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let params = AttachParams::default()
        .container(container)
        .stdin(args.stdin)
        .tty(tty)
        // A terminal has one stream for both.
        .stderr(!tty);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
    let process = api.exec(name, &args.command, &params).await?;
    let result = converse(process, tty).await;
    // The last words belong on a terminal that is as it was.
    drop(raw);
    result
}

/// Copies until the command has ended and all that it wrote is printed.
async fn converse(mut process: AttachedProcess, tty: bool) -> Outcome {
    let status = process.take_status();
    let stdin = process.stdin();
    let sizes = process.terminal_size().filter(|_| tty);
    let out = copy_out(process.stdout(), io::stdout());
    let err = copy_out(process.stderr(), io::stderr());
    let output = async { tokio::try_join!(out, err).map(|_| ()) };
    let input = async {
        if let Some(stdin) = stdin {
            // A container that has closed its stdin is no failure.
            let _ = copy_in(stdin).await;
        }
        std::future::pending::<()>().await;
    };
    let resize = async {
        if let Some(sizes) = sizes {
            follow_size(sizes).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = output => result?,
        () = input => {}
        () = resize => {}
    }
    match status {
        Some(status) => outcome(status.await),
        None => Ok(()),
    }
}

async fn copy_out(
    from: Option<impl AsyncRead + Unpin>,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let Some(mut from) = from else {
        return Ok(());
    };
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

async fn copy_in(mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut from = io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            // The end of our input is the end of the command's.
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

/// The remote terminal has the size of ours, now and whenever that changes.
async fn follow_size(mut sizes: futures::channel::mpsc::Sender<TerminalSize>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((width, height)) = sys::window_size()
            && sizes.send(TerminalSize { width, height }).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// The exit code travels as a cause of the status (KEP-4006, `remotecommand.NonZeroExitCodeReason`).
fn outcome(status: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>) -> Outcome {
    let Some(status) = status else {
        anyhow::bail!("the connection ended before the command did");
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
    let code = causes
        .iter()
        .find(|c| c.reason.as_deref() == Some("ExitCode"))
        .and_then(|c| c.message.as_deref()?.parse::<i32>().ok());
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(ExitWith(u8::try_from(code).unwrap_or(1)).into()),
        None => anyhow::bail!(
            "{}",
            status
                .message
                .unwrap_or_else(|| "the command failed".into())
        ),
    }
}
