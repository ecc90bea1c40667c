// SPDX-License-Identifier: Apache-2.0
//! What the runtime says about one pod, in the core's own types. The adapter converts from CRI.

use jiff::Timestamp;

/// All that is seen of a pod. Both lists are sorted newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The pod's sandboxes.
    pub sandboxes: Vec<SandboxSeen>,
    /// The pod's containers, of every sandbox, running and dead.
    pub containers: Vec<ContainerSeen>,
}

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSeen {
    /// The runtime's id.
    pub id: String,
    /// Counts up when a pod's sandbox is made again.
    pub attempt: u32,
    /// SANDBOX_READY.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Pod addresses, primary first; empty with host networking.
    pub ips: Vec<String>,
}

/// A container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, not started.
    Created,
    /// Runs.
    Running,
    /// Has ended.
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The runtime's id.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox: String,
    /// The container's name in the pod.
    pub name: String,
    /// How often this container was started again before; also the log file's number.
    pub restart_count: u32,
    /// Its state.
    pub state: ContainerState,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
    /// Its exit code, if it has ended.
    pub exit_code: i32,
    /// The runtime's reason: Completed, Error, OOMKilled, …
    pub reason: String,
    /// The runtime's message.
    pub message: String,
    /// The image as the pod names it.
    pub image: String,
    /// What `imageID` shows.
    pub image_ref: String,
    /// Hash of the part of the container's spec that a restart is due to when it changes.
    pub hash: String,
    /// The log file.
    pub log_path: String,
    /// Host path of the termination message file, if it is mounted.
    pub termination_log: Option<String>,
}

/// An image that the runtime has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSeen {
    /// The id that containers are created from.
    pub id: String,
    /// Size in bytes.
    pub size: u64,
    /// The numeric user the image runs as, if it names one.
    pub uid: Option<i64>,
    /// The user name the image runs as, if it names one.
    pub username: String,
}

impl Seen {
    /// The newest ready sandbox.
    pub fn sandbox(&self) -> Option<&SandboxSeen> {
        self.sandboxes.iter().find(|sandbox| sandbox.ready)
    }

    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerSeen> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// Whether anything of the pod may still hold resources: a ready sandbox, a live container.
    pub fn anything_runs(&self) -> bool {
        self.sandbox().is_some() || self.containers.iter().any(ContainerSeen::is_live)
    }
}

impl ContainerSeen {
    /// Created containers count as live only once they run: they hold nothing to stop.
    pub fn is_live(&self) -> bool {
        matches!(
            self.state,
            ContainerState::Running | ContainerState::Unknown
        )
    }
}
