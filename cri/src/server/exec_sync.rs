// SPDX-License-Identifier: Apache-2.0
//! ExecSync: a command in a container, with its output and exit code in the answer.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::exec;
use crate::fault::{Fault, Result};
use crate::runtime::Runtime;
use crate::shim_client::{ExecStdio, ExitRecord};
use crate::v1;

/// After the command ended, a child of it may hold the pipe open; then this much is waited.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs the command. When the client hangs up, the command is killed.
///
/// # Errors
/// `DeadlineExceeded` after `timeout` seconds (zero: none); or it cannot be launched.
pub(crate) async fn exec_sync(
    runtime: &Arc<Runtime>,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse> {
    let container = runtime.container(&request.container_id)?;
    let timeout = u64::try_from(request.timeout).unwrap_or(0);
    let hung_up = CancellationToken::new();
    // Dropped with this future, that is when the client is gone.
    let _guard = hung_up.clone().drop_guard();
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let null = open_null()?;
            let (stdout, stdout_end) = pipe_pair()?;
            let (stderr, stderr_end) = pipe_pair()?;
            let stdio = ExecStdio::Streams([null, stdout_end, stderr_end]);
            let execution = exec::start(&runtime_, &container, request.cmd, stdio).await?;
            let (out, err) = (Kept::default(), Kept::default());
            let (into_out, into_err) = (out.clone(), err.clone());
            let limit = runtime_.config.settings.get().limits.exec_sync_output;
            let reading = tokio::spawn(async move {
                tokio::join!(
                    collect(stdout, into_out, limit),
                    collect(stderr, into_err, limit)
                )
            });
            let ended = tokio::select! {
                ended = bounded(timeout, execution.wait()) => ended,
                () = hung_up.cancelled() => Err(Fault::deadline("the client of an exec is gone")),
            };
            execution.finish().await;
            let abort = reading.abort_handle();
            if tokio::time::timeout(DRAIN, reading).await.is_err() {
                abort.abort();
            }
            let (stdout, mut stderr) = (take(&out), take(&err));
            stderr.truncate(limit - stdout.len());
            Ok(v1::ExecSyncResponse {
                exit_code: ended?.code,
                stdout,
                stderr,
            })
        })
        .await
}

async fn bounded(
    seconds: u64,
    wait: impl Future<Output = Result<ExitRecord>>,
) -> Result<ExitRecord> {
    if seconds == 0 {
        return wait.await;
    }
    tokio::time::timeout(Duration::from_secs(seconds), wait)
        .await
        .map_err(|_| {
            Fault::deadline(format!(
                "failed to exec in container: timeout {seconds}s exceeded: context deadline exceeded"
            ))
        })?
}

/// What was read so far, whether or not the stream ended.
type Kept = Arc<Mutex<Vec<u8>>>;

fn take(kept: &Kept) -> Vec<u8> {
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps `limit` bytes. The rest is read and dropped, so that the command goes on (CVE-2022-1708: a
/// probe's output must not fill the node's memory).
async fn collect(mut stream: impl AsyncRead + Unpin, kept: Kept, limit: usize) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = limit - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// A pipe: our end for reading, and the process's end for writing.
///
/// # Errors
/// When there are no descriptors left.
pub(crate) fn pipe_pair() -> Result<(pipe::Receiver, OwnedFd)> {
    let failed = |e| Fault::internal("making a pipe", e);
    let (writer, reader) = pipe::pipe().map_err(failed)?;
    // The process gets an ordinary, blocking descriptor.
    let writer = writer.into_blocking_fd().map_err(failed)?;
    Ok((reader, writer))
}

/// The process's end of an absent stream.
///
/// # Errors
/// When /dev/null cannot be opened.
pub(crate) fn open_null() -> Result<OwnedFd> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|e| Fault::internal("opening /dev/null", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_bounded_and_read_to_its_end() {
        let endless = tokio::io::repeat(b'x').take(100_100);
        let kept = Kept::default();
        collect(endless, kept.clone(), 100_000).await;
        assert_eq!(take(&kept).len(), 100_000);
        collect(&b"abc"[..], kept.clone(), 100_000).await;
        assert_eq!(take(&kept), b"abc");
    }
}
