// SPDX-License-Identifier: Apache-2.0
//! Starting a shim.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use shim::plan::CgroupJoin;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{Programs, Shim, ShimError};

const SPAWN_DEADLINE: Duration = Duration::from_secs(10);

/// How a pod's shim is started.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The pod's directory, which exists. The shim ends when it disappears.
    pub dir: PathBuf,
    /// The cgroup that the shim itself lives in, made by the caller (`cgroup::Manager::create` and
    /// `join`): not the daemon's, so that stopping the daemon's service leaves the shim alone, and
    /// not a pod's. `<cgroup_parent>/shims` is a good place.
    pub cgroup: CgroupJoin,
}

impl Shim {
    /// Starts a shim and connects to it. The shim is in its own session and cgroup and survives us.
    ///
    /// # Errors
    /// `Spawn` when it does not come up; nothing is left behind then.
    pub async fn spawn(programs: &Programs, options: SpawnOptions) -> Result<Shim, ShimError> {
        let dir = options.dir.clone();
        let failed = |source| ShimError::Spawn {
            dir: dir.clone(),
            source,
        };
        let started = tokio::time::timeout(SPAWN_DEADLINE, start_process(programs, &options)).await;
        match started {
            Ok(Ok(())) => Shim::connect(&dir).await,
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Runs the shim's executable from a read-only mount, so that none of its children in a container
/// offers a writable way to it, and waits until it listens.
async fn start_process(programs: &Programs, options: &SpawnOptions) -> io::Result<()> {
    let program = programs.shim.to_string_lossy();
    let file = shim::launch::readonly_file(&program).map_err(io::Error::other)?;
    // The name by which exec finds the open file; the copy without close-on-exec is the child's.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new(path);
    command
        .arg0("podwright-shim")
        .arg(&options.dir)
        .args(&options.cgroup.unified)
        .args(&options.cgroup.v1)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    drop(file);
    let (mut stdout, mut stderr) = (Vec::new(), String::new());
    if let Some(mut pipe) = child.stdout.take() {
        // The shim closes its end when it has said `ready`, or ends.
        pipe.read_to_end(&mut stdout).await?;
    }
    if stdout != b"ready\n"
        && let Some(mut pipe) = child.stderr.take()
    {
        pipe.read_to_string(&mut stderr).await?;
    }
    child.wait().await?;
    if stdout == b"ready\n" {
        return Ok(());
    }
    Err(io::Error::other(stderr.trim().to_owned()))
}
