// SPDX-License-Identifier: Apache-2.0
//! `podwright-shim`: parent of every process of one pod.
//!
//! ```text
//! podwright-shim <pod directory> [<cgroup directory>...]
//! ```
//!
//! It joins the cgroups, leaves its parent's session, answers `ready` on stdout when its socket
//! listens, and then lives on its own. Errors before that go to stderr, with exit code 1.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use shim::daemon::Daemon;
use shim::sys::{self, Clone, mounts};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(dir) = arguments.next() else {
        eprintln!("usage: podwright-shim <pod directory> [<cgroup directory>...]");
        return ExitCode::from(2);
    };
    match serve(Path::new(&dir), arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podwright-shim: {}: {error}", dir.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

fn serve(dir: &Path, cgroups: impl Iterator<Item = OsString>) -> std::io::Result<()> {
    let raw = std::io::Error::from_raw_os_error;
    let unified = join(cgroups)?;
    let cloned = sys::clone3(0, unified.as_ref().map(AsFd::as_fd));
    // The one who started us waits for this first process only.
    if let Clone::Parent { .. } = cloned.map_err(raw)? {
        sys::exit(0);
    }
    drop(unified);
    sys::setsid().map_err(raw)?;
    sys::set_name(c"podwright-shim").map_err(raw)?;
    std::env::set_current_dir("/")?;
    let daemon = Daemon::new(dir)?;
    outlive_containers();
    let null = mounts::openat(mounts::cwd(), c"/dev/null", libc::O_RDWR, 0).map_err(raw)?;
    sys::dup_to(null.as_fd(), 0).map_err(raw)?;
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join("shim.log"))?;
    sys::dup_to(log.as_fd(), 2).map_err(raw)?;
    std::io::stdout().write_all(b"ready\n")?;
    std::io::stdout().flush()?;
    sys::dup_to(null.as_fd(), 1).map_err(raw)?;
    drop((null, log));
    daemon.run()
}

/// Joins v1 cgroups. The one in the unified tree, which has no `tasks`, is for the clone to join: both
/// ways take no lock of the whole system, as writing `cgroup.procs` does.
fn join(cgroups: impl Iterator<Item = OsString>) -> std::io::Result<Option<File>> {
    let mut unified = None;
    for cgroup in cgroups {
        let dir = Path::new(&cgroup);
        match File::options().write(true).open(dir.join("tasks")) {
            Ok(mut tasks) => tasks.write_all(b"0")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                unified = Some(File::open(dir)?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unified)
}

/// Makes this process the last that the kernel kills for lack of memory: -998 as pause, or what is
/// allowed without CAP_SYS_RESOURCE. Containers get scores of their own.
fn outlive_containers() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let current = std::fs::read_to_string(FILE).ok();
    let current: i32 = current.and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    for score in [-998, 0] {
        if score < current && std::fs::write(FILE, score.to_string()).is_ok() {
            return;
        }
    }
}
