// SPDX-License-Identifier: Apache-2.0
//! Where the runtime keeps things, all below the node's own directories.

use std::path::PathBuf;

use crate::Config;

/// The runtime's directories.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    data: PathBuf,
    run: PathBuf,
}

impl Paths {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            data: config.data_dir.join("cri"),
            run: config.run_dir.join("cri"),
        }
    }

    /// Records and files of sandboxes, one directory each.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    /// Record, `resolv.conf`, `hostname`, `hosts` of a sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    /// Records and writable layers of containers, one directory each.
    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// Record, `spec.json`, `upper` and `work` of a container.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// Network leases and attachments.
    pub(crate) fn network(&self) -> PathBuf {
        self.data.join("network")
    }

    /// Directories of living shims, gone after a reboot.
    pub(crate) fn shims(&self) -> PathBuf {
        self.run.join("sandboxes")
    }

    /// The directory of one pod's shim.
    pub(crate) fn shim(&self, sandbox_id: &str) -> PathBuf {
        self.shims().join(sandbox_id)
    }

    /// Where external runtimes find the roots of containers with ids of their own, a directory for
    /// each pod. Others may pass through these.
    pub(crate) fn roots(&self, sandbox_id: &str) -> PathBuf {
        self.roots_dir().join(sandbox_id)
    }

    /// All of them.
    pub(crate) fn roots_dir(&self) -> PathBuf {
        self.run.join("roots")
    }

    /// Files that hold network namespaces.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// The file that holds one pod's network namespace.
    pub(crate) fn netns(&self, sandbox_id: &str) -> PathBuf {
        self.netns_dir().join(sandbox_id)
    }

    /// Where the embedded executables are written.
    pub(crate) fn programs(&self) -> PathBuf {
        self.run.join("bin")
    }

    /// Held by the one daemon that owns these directories.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// All of the runtime directory.
    pub(crate) fn run(&self) -> &PathBuf {
        &self.run
    }

    /// All of the data directory.
    pub(crate) fn data(&self) -> &PathBuf {
        &self.data
    }
}
