// SPDX-License-Identifier: Apache-2.0
//! Exec and attach streams: a client's channels on one side, a process's streams on the other.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::channels::{self, CLOSE, ERROR, Input, Outbox, RESIZE, STDERR, STDIN, STDOUT};
use super::terminal::Terminal;
use super::{Stream, outcome, refusal};
use crate::exec::{self, Execution};
use crate::fault::{Fault, Result};
use crate::lifecycle::{first_process, shim_fault};
use crate::runtime::Runtime;
use crate::server::{open_null, pipe_pair};
use crate::shim_client::{ExecStdio, ExitRecord, Shim};

/// After the process ended, how long its last output may take to arrive. What still holds the pipe
/// open then is a child in the background.
const DRAIN: Duration = Duration::from_secs(5);
/// Pieces of input that may wait for the process.
const STDIN_QUEUE: usize = 4;

/// The process's side of a session.
struct Session {
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    target: Target,
}

/// What is run or watched.
enum Target {
    Exec(Execution, Option<Terminal>),
    Attach(Shim, String),
}

impl Target {
    async fn wait(&self) -> Result<ExitRecord> {
        match self {
            Target::Exec(execution, _) => execution.wait().await,
            Target::Attach(shim, id) => shim
                .wait(&first_process(id))
                .await
                .map_err(|e| shim_fault("waiting for a container".to_owned(), e)),
        }
    }

    async fn resize(&self, columns: u16, rows: u16) {
        match self {
            Target::Exec(_, Some(terminal)) => {
                if let Err(error) = terminal.resize(columns, rows) {
                    tracing::debug!(%error, "resizing a terminal");
                }
            }
            Target::Exec(_, None) => {}
            Target::Attach(shim, id) => {
                if let Err(error) = shim.resize(id, columns, rows).await {
                    tracing::debug!(%error, "resizing a terminal");
                }
            }
        }
    }
}

/// Serves one session to its end. A process that exec started is killed when its client goes.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    socket: WebSocket,
    stream: Stream,
    protocol: &str,
) {
    let attaching = matches!(stream, Stream::Attach { .. });
    let (outbox, sender, mut inbox) = channels::split(socket);
    let mut sender = std::pin::pin!(sender);
    let mut session = match open(runtime, stream).await {
        Ok(session) => session,
        Err(fault) => {
            let status = outcome::failed(&refusal(&fault)).to_string();
            let _ = outbox.try_send(channels::frame(ERROR, status.as_bytes()));
            drop(outbox);
            sender.await;
            return;
        }
    };
    // An empty message tells the client that the session is open.
    let first = if session.stdout.is_some() {
        STDOUT
    } else {
        ERROR
    };
    let _ = outbox.try_send(channels::frame(first, &[]));
    let (stdin, input_queue) = mpsc::channel::<Bytes>(STDIN_QUEUE);
    let feeding = feed(session.stdin.take(), input_queue);
    let pumps = pump_both(session.stdout.take(), session.stderr.take(), outbox.clone());
    let receiving = async {
        let mut stdin = Some(stdin);
        loop {
            match channels::parse(inbox.next().await) {
                None => {}
                Some(Input::End) => return,
                Some(Input::Data(channel, data)) => {
                    receive(&session.target, &mut stdin, protocol, channel, data).await;
                }
            }
        }
    };
    let ended = tokio::select! {
        ended = run(&session.target, pumps, feeding) => Some(ended),
        () = receiving => None,
        () = &mut sender => None,
    };
    if let Some(ended) = ended {
        let status = match ended {
            Ok(_) if attaching => outcome::exited(0),
            Ok(record) => outcome::exited(record.code),
            Err(fault) => outcome::failed(&refusal(&fault)),
        };
        let message = channels::frame(ERROR, status.to_string().as_bytes());
        let last_word = async {
            let _ = outbox.send(message).await;
            drop(outbox);
        };
        let goodbye = async { tokio::join!(last_word, &mut sender) };
        let _ = tokio::time::timeout(DRAIN, goodbye).await;
    }
    if let Target::Exec(execution, _) = session.target {
        execution.finish().await;
    }
}

/// Until the process has ended and its output was sent. Input is fed meanwhile.
async fn run(
    target: &Target,
    pumps: impl Future<Output = ()>,
    feeding: impl Future<Output = ()>,
) -> Result<ExitRecord> {
    let mut pumps = std::pin::pin!(pumps);
    let mut feeding = std::pin::pin!(feeding);
    let mut wait = std::pin::pin!(target.wait());
    let (mut pumped, mut fed) = (false, false);
    loop {
        tokio::select! {
            ended = &mut wait => {
                if !pumped {
                    let _ = tokio::time::timeout(DRAIN, pumps).await;
                }
                return ended;
            }
            () = &mut pumps, if !pumped => pumped = true,
            () = &mut feeding, if !fed => fed = true,
        }
    }
}

async fn receive(
    target: &Target,
    stdin: &mut Option<mpsc::Sender<Bytes>>,
    protocol: &str,
    channel: u8,
    data: Bytes,
) {
    match channel {
        STDIN => {
            if let Some(queue) = stdin {
                // A process that closed its input reads no more; the session goes on.
                if queue.send(data).await.is_err() {
                    *stdin = None;
                }
            }
        }
        RESIZE => {
            if let Some((columns, rows)) = channels::terminal_size(&data) {
                target.resize(columns, rows).await;
            }
        }
        CLOSE if protocol == "v5.channel.k8s.io" && data.first() == Some(&STDIN) => *stdin = None,
        _ => {}
    }
}

/// Writes what comes to the process's input, and closes it when the client closes its own.
async fn feed(stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>, mut queue: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(data) = queue.recv().await {
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
}

async fn pump_both(
    stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    outbox: Outbox,
) {
    let one = |stream: Option<Box<dyn AsyncRead + Send + Unpin>>, channel| {
        let outbox = outbox.clone();
        async move {
            if let Some(stream) = stream {
                channels::pump(stream, channel, outbox).await;
            }
        }
    };
    tokio::join!(one(stdout, STDOUT), one(stderr, STDERR));
}

async fn open(runtime: &Arc<Runtime>, stream: Stream) -> Result<Session> {
    match stream {
        Stream::Exec {
            container,
            command,
            tty: true,
            stdin,
            stdout,
            ..
        } => open_terminal(runtime, &container, command, stdin, stdout).await,
        Stream::Exec {
            container,
            command,
            stdin,
            stdout,
            stderr,
            ..
        } => open_exec(runtime, &container, command, [stdin, stdout, stderr]).await,
        Stream::Attach {
            container,
            stdin,
            stdout,
            stderr,
            ..
        } => open_attach(runtime, &container, [stdin, stdout, stderr]).await,
        Stream::PortForward { .. } => Err(Fault::invalid("not a process's stream")),
    }
}

async fn open_terminal(
    runtime: &Arc<Runtime>,
    container: &str,
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
) -> Result<Session> {
    let container = runtime.container(container)?;
    let mut execution = exec::start(runtime, &container, command, ExecStdio::Terminal).await?;
    let master = execution
        .terminal
        .take()
        .ok_or_else(|| Fault::precondition("the exec came without its terminal"))?;
    match halves(master, stdin, stdout) {
        Ok((terminal, input, output)) => Ok(Session {
            stdin: input.map(|p| Box::new(p) as _),
            stdout: output.map(|p| Box::new(p) as _),
            stderr: None,
            target: Target::Exec(execution, Some(terminal)),
        }),
        Err(error) => {
            execution.finish().await;
            Err(Fault::internal("opening the exec's terminal", error))
        }
    }
}

type Halves = (Terminal, Option<pipe::Sender>, Option<pipe::Receiver>);

fn halves(master: std::os::fd::OwnedFd, stdin: bool, stdout: bool) -> std::io::Result<Halves> {
    let terminal = Terminal::new(master)?;
    let input = stdin.then(|| terminal.input()).transpose()?;
    let output = stdout.then(|| terminal.output()).transpose()?;
    Ok((terminal, input, output))
}

async fn open_exec(
    runtime: &Arc<Runtime>,
    container: &str,
    command: Vec<String>,
    [stdin, stdout, stderr]: [bool; 3],
) -> Result<Session> {
    let container = runtime.container(container)?;
    let (input, input_end) = split_pair(stdin, input_pair)?;
    let (output, output_end) = split_pair(stdout, pipe_pair)?;
    let (errors, errors_end) = split_pair(stderr, pipe_pair)?;
    let or_null = |end: Option<_>| end.map_or_else(open_null, Ok);
    let stdio = ExecStdio::Streams([
        or_null(input_end)?,
        or_null(output_end)?,
        or_null(errors_end)?,
    ]);
    let execution = exec::start(runtime, &container, command, stdio).await?;
    Ok(Session {
        stdin: input.map(|p| Box::new(p) as _),
        stdout: output.map(|p| Box::new(p) as _),
        stderr: errors.map(|p| Box::new(p) as _),
        target: Target::Exec(execution, None),
    })
}

async fn open_attach(
    runtime: &Arc<Runtime>,
    container: &str,
    [stdin, stdout, stderr]: [bool; 3],
) -> Result<Session> {
    let container = runtime.container(container)?;
    let id = container.record.get().id.clone();
    let shim = runtime.shim_of(&container)?;
    let (input, input_end) = split_pair(stdin, input_pair)?;
    let (output, output_end) = split_pair(stdout, pipe_pair)?;
    let (errors, errors_end) = split_pair(stderr, pipe_pair)?;
    shim.attach(&id, input_end, output_end, errors_end)
        .await
        .map_err(|e| shim_fault(format!("attaching to container {id:?}"), e))?;
    Ok(Session {
        stdin: input.map(|p| Box::new(p) as _),
        stdout: output.map(|p| Box::new(p) as _),
        stderr: errors.map(|p| Box::new(p) as _),
        target: Target::Attach(shim, id),
    })
}

fn split_pair<A, B>(wanted: bool, pair: fn() -> Result<(A, B)>) -> Result<(Option<A>, Option<B>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (ours, theirs) = pair()?;
    Ok((Some(ours), Some(theirs)))
}

/// A pipe: our end for writing, and the process's end for reading.
fn input_pair() -> Result<(pipe::Sender, std::os::fd::OwnedFd)> {
    let failed = |e| Fault::internal("making a pipe", e);
    let (writer, reader) = pipe::pipe().map_err(failed)?;
    let reader = reader.into_blocking_fd().map_err(failed)?;
    Ok((writer, reader))
}
