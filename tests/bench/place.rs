// SPDX-License-Identifier: Apache-2.0
//! Where measurements of the network happen: in namespaces of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow, ensure};
use cni::netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Measure in network and mount namespaces of its own, with `lo` up.
pub(crate) fn in_own_host(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            ip("link set lo up")?;
            work()
        });
        thread
            .join()
            .map_err(|_| anyhow!("the measurement panicked"))?
    })
}

pub(crate) fn ip(args: &str) -> Result<()> {
    let status = Command::new("ip").args(args.split(' ')).status()?;
    ensure!(status.success(), "ip {args}");
    Ok(())
}

/// A network namespace, until it is dropped.
pub(crate) struct Netns(PathBuf);

impl Netns {
    pub(crate) fn new(path: PathBuf) -> Result<Netns> {
        netns::create(&path)?;
        Ok(Netns(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// `work` on a thread in there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::run(&self.0, work)?
    }

    /// As `ip args` in there, for each.
    pub(crate) fn ip(&self, commands: &[&str]) -> Result<()> {
        self.run(|| commands.iter().try_for_each(|args| ip(args)))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The mount namespace ends with the measurement, and this with it.
        let _ = netns::remove(&self.0);
    }
}
