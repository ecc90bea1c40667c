// SPDX-License-Identifier: Apache-2.0
//! The two gRPC services. Each call is one function in a file of its own subject; here they are only
//! connected, and their faults become gRPC statuses.

pub(crate) mod container_create;
pub(crate) mod container_start;
mod container_status;
mod container_stop;
pub(crate) mod container_update;
mod events;
mod exec_sync;
pub(crate) mod image;
mod list_stream;
mod metrics;
pub(crate) mod sandbox_run;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod service_image;
mod service_runtime;
pub(crate) mod stats;
mod status;
mod stream_urls;

use std::path::Path;
use std::sync::Arc;

pub(crate) use exec_sync::{open_null, pipe_pair};

use crate::fault::{Fault, Result};
use crate::runtime::Runtime;

/// Both services over one runtime.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) runtime: Arc<Runtime>,
}

/// Whether the kernel enforces SELinux policy (it is compiled in on many that do not).
pub(crate) fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Whether the kernel has AppArmor switched on.
pub(crate) fn apparmor_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y")
}

/// The machine's host name.
///
/// # Errors
/// When it is not UTF-8.
pub(crate) fn own_hostname() -> Result<String> {
    nix::unistd::gethostname()
        .map_err(|e| Fault::internal("reading the host name", e))?
        .into_string()
        .map_err(|_| Fault::invalid("the machine's host name is not UTF-8"))
}
