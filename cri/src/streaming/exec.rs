// SPDX-License-Identifier: Apache-2.0
//! Exec and attach streams: a client's channels on one side, a process's streams on the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::link::{Link, Outbox, Said, Say};
use super::negotiate::LastWord;
use super::pump::{Ending, pump};
use super::roles::{Role, Roles};
use super::terminal::{Sizes, Terminal};
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

/// A client that is ready: its channels, and what it said while it opened them.
pub(super) struct Client {
    pub(super) link: Link,
    pub(super) roles: Roles,
    pub(super) early: Vec<Said>,
    pub(super) last_word: LastWord,
}

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
pub(super) async fn serve(runtime: &Arc<Runtime>, client: Client, stream: Stream) {
    let attaching = matches!(stream, Stream::Attach { .. });
    let Client {
        link: Link { outbox, inbox },
        roles,
        early,
        last_word,
    } = client;
    let mut session = match open(runtime, stream).await {
        Ok(session) => session,
        Err(fault) => {
            let status = outcome::failed(&refusal(&fault));
            return say_last(&outbox, &roles, last_word, &status).await;
        }
    };
    let (stdin, input_queue) = mpsc::channel::<Bytes>(STDIN_QUEUE);
    let feeding = feed(session.stdin.take(), input_queue);
    let ending = Ending::new(DRAIN);
    let pumps = async {
        tokio::join!(
            pump_role(session.stdout.take(), roles.stdout, &outbox, &ending),
            pump_role(session.stderr.take(), roles.stderr, &outbox, &ending),
        )
    };
    let hearing = Hearing {
        roles,
        stdin: Some(stdin),
        sizes: Sizes::default(),
    };
    let receiving = hearing.all(&session.target, early, inbox, &outbox);
    let ended = tokio::select! {
        ended = run(&session.target, &ending, pumps, feeding) => Some(ended),
        () = receiving => None,
        () = outbox.closed() => None,
    };
    let status = ended.map(|ended| match ended {
        Ok(_) if attaching => outcome::exited(0),
        Ok(record) => outcome::exited(record.code),
        Err(fault) => outcome::failed(&refusal(&fault)),
    });
    let saying = async {
        if let Some(status) = status {
            say_last(&outbox, &roles, last_word, &status).await;
        }
        // The client waits for the end of the connection, not for the shim.
        drop(outbox);
    };
    let finishing = async {
        if let Target::Exec(execution, _) = session.target {
            execution.finish().await;
        }
    };
    tokio::join!(saying, finishing);
}

/// Until the process has ended and its output was sent. Input is fed meanwhile.
async fn run(
    target: &Target,
    ending: &Ending,
    pumps: impl Future,
    feeding: impl Future<Output = ()>,
) -> Result<ExitRecord> {
    let mut pumps = std::pin::pin!(pumps);
    let mut feeding = std::pin::pin!(feeding);
    let mut wait = std::pin::pin!(target.wait());
    let (mut pumped, mut fed) = (false, false);
    loop {
        tokio::select! {
            ended = &mut wait => {
                ending.begin();
                if !pumped {
                    pumps.await;
                }
                return ended;
            }
            _ = &mut pumps, if !pumped => pumped = true,
            () = &mut feeding, if !fed => fed = true,
        }
    }
}

/// What the client says, on its way to the process.
struct Hearing {
    roles: Roles,
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: Sizes,
}

impl Hearing {
    /// Hears the client until it is gone.
    async fn all(
        mut self,
        target: &Target,
        early: Vec<Said>,
        mut inbox: mpsc::Receiver<Said>,
        outbox: &Outbox,
    ) {
        for said in early {
            self.one(target, said, outbox).await;
        }
        while let Some(said) = inbox.recv().await {
            self.one(target, said, outbox).await;
        }
    }

    async fn one(&mut self, target: &Target, said: Said, outbox: &Outbox) {
        match said {
            Said::Data(channel, data) => match self.roles.of(channel) {
                Some(Role::Stdin) => {
                    // A process that closed its input reads no more; the session goes on.
                    if let Some(queue) = &self.stdin
                        && queue.send(data).await.is_err()
                    {
                        self.stdin = None;
                    }
                }
                Some(Role::Resize) => {
                    if let Some((columns, rows)) = self.sizes.push(&data) {
                        target.resize(columns, rows).await;
                    }
                }
                _ => {}
            },
            Said::Closed(channel) | Said::Reset(channel) => {
                if self.roles.of(channel) == Some(Role::Stdin) {
                    self.stdin = None;
                }
            }
            Said::Opened(channel, headers) => {
                // An error: the client is gone, which the session is about to see.
                let _ = outbox.send(self.roles.place(channel, &headers)).await;
            }
        }
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

async fn pump_role(
    stream: Option<Box<dyn AsyncRead + Send + Unpin>>,
    channel: Option<u32>,
    outbox: &Outbox,
    ending: &Ending,
) {
    if let (Some(stream), Some(channel)) = (stream, channel) {
        pump(stream, channel, outbox, ending).await;
        let _ = outbox.send(Say::Close(channel)).await;
    }
}

/// The last word, on the error channel.
async fn say_last(outbox: &Outbox, roles: &Roles, last_word: LastWord, status: &serde_json::Value) {
    let Some(channel) = roles.error else { return };
    let text = match last_word {
        LastWord::Status => status.to_string(),
        LastWord::Text => outcome::text(status),
    };
    let _ = outbox.send(Say::Data(channel, text.into())).await;
    let _ = outbox.send(Say::Close(channel)).await;
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
            tty: _,
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
    let record = container.record.get();
    let (id, config) = (record.id.clone(), &record.config.0);
    // A container without the one, or with a terminal, has no such stream to join.
    let (stdin, stderr) = (stdin && config.stdin, stderr && !config.tty);
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
