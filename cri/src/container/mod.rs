// SPDX-License-Identifier: Apache-2.0
//! A container: its durable record, its state machine, and what CRI shows of it.

pub(crate) mod capability;
pub(crate) mod command;
pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod resources;
pub(crate) mod spec;
pub(crate) mod user;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};
use crate::record::{Subject, Wire};
use crate::v1;

/// Where a container is in its life. Only forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub(crate) enum State {
    /// Recorded and checked; nothing of it runs.
    Created,
    /// Its first process runs in the pod's shim.
    Running {
        pid: u32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It ended, or never could start.
    Exited(Exit),
}

/// How a container ended. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Zero when it never ran.
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
}

/// The code of a container that could not be started, as in containerd.
pub(crate) const START_ERROR_CODE: i32 = 128;
/// The code of a container whose end nobody saw.
pub(crate) const UNKNOWN_CODE: i32 = 255;

impl Exit {
    /// From what the shim recorded. The reason is what kubelet shows as `terminated.reason`.
    pub(crate) fn recorded(record: &shim::protocol::ExitRecord) -> Self {
        let reason = match (record.oom_killed, record.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        Self {
            code: record.code,
            reason: reason.to_owned(),
            message: String::new(),
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }

    /// The container could not be started; `message` is for its status.
    pub(crate) fn start_error(message: String, now: i64) -> Self {
        Self {
            code: START_ERROR_CODE,
            reason: "StartError".to_owned(),
            message,
            started_at: 0,
            finished_at: now,
        }
    }

    /// It ran once, its shim is gone, and no record says how it ended.
    pub(crate) fn unknown(started_at: i64, now: i64) -> Self {
        Self {
            code: UNKNOWN_CODE,
            reason: "Unknown".to_owned(),
            message: "the container's end was not observed".to_owned(),
            started_at,
            finished_at: now,
        }
    }
}

impl State {
    /// The state as CRI names it.
    pub(crate) fn wire(&self) -> v1::ContainerState {
        match self {
            State::Created => v1::ContainerState::ContainerCreated,
            State::Running { .. } => v1::ContainerState::ContainerRunning,
            State::Exited(_) => v1::ContainerState::ContainerExited,
        }
    }

    /// Whether it may be started.
    ///
    /// # Errors
    /// Unless it is freshly created.
    pub(crate) fn check_startable(&self, id: &str) -> Result<()> {
        match self {
            State::Created => Ok(()),
            other => Err(Fault::precondition(format!(
                "container {id:?} is in {} state",
                other.wire().as_str_name()
            ))),
        }
    }

    /// Whether something of it runs.
    ///
    /// # Errors
    /// Unless it runs.
    pub(crate) fn check_running(&self, id: &str) -> Result<()> {
        match self {
            State::Running { .. } => Ok(()),
            other => Err(Fault::precondition(format!(
                "container {id:?} is in {} state, not running",
                other.wire().as_str_name()
            ))),
        }
    }

    /// The last step of its life, as events name them.
    pub(crate) fn step(&self) -> v1::ContainerEventType {
        match self {
            State::Created => v1::ContainerEventType::ContainerCreatedEvent,
            State::Running { .. } => v1::ContainerEventType::ContainerStartedEvent,
            State::Exited(_) => v1::ContainerEventType::ContainerStoppedEvent,
        }
    }

    /// Which steps it did not take on its way to its present one.
    pub(crate) fn skipped(&self) -> &'static [v1::ContainerEventType] {
        use v1::ContainerEventType::{ContainerStartedEvent, ContainerStoppedEvent};
        match self {
            State::Created => &[ContainerStartedEvent, ContainerStoppedEvent],
            State::Running { .. } => &[ContainerStoppedEvent],
            State::Exited(exit) if exit.started_at == 0 => &[ContainerStartedEvent],
            State::Exited(_) => &[],
        }
    }

    /// The exit, taken once: an exit that was recorded first stays, so that a late or doubled
    /// report changes nothing. Returns whether the state changed.
    pub(crate) fn exit(&mut self, exit: Exit) -> bool {
        if matches!(self, State::Exited(_)) {
            return false;
        }
        *self = State::Exited(exit);
        true
    }
}

/// Everything that must outlive the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    /// The reserved name, see [`crate::ids::container_name`].
    pub(crate) name: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) state: State,
    /// As the client sent it, with resources as last updated.
    pub(crate) config: Wire<v1::ContainerConfig>,
    /// Digest of the image's configuration.
    pub(crate) image_id: String,
    /// A repo digest of the image, else its id.
    pub(crate) image_ref: String,
    pub(crate) cgroup: String,
    /// Absolute; none when the client wants no log.
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) user: user::User,
    /// Signal number that asks it to end.
    pub(crate) stop_signal: i32,
}

impl Subject for ContainerRecord {
    fn has_ended(&self) -> bool {
        matches!(self.state, State::Exited(_))
    }
}

impl ContainerRecord {
    /// The list entry.
    pub(crate) fn item(&self) -> v1::Container {
        let config = &self.config.0;
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: config.metadata.clone(),
            image: Some(self.image()),
            image_ref: self.image_ref.clone(),
            state: self.state.wire() as i32,
            created_at: self.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }

    /// The full status.
    pub(crate) fn status(&self) -> v1::ContainerStatus {
        let config = &self.config.0;
        let mut status = v1::ContainerStatus {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: self.state.wire() as i32,
            created_at: self.created_at,
            image: Some(self.image()),
            image_ref: self.image_ref.clone(),
            image_id: self.image_id.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: self
                .log_path
                .as_ref()
                .map(|p| p.display().to_string())
                .unwrap_or_default(),
            resources: Some(v1::ContainerResources {
                linux: config.linux.as_ref().and_then(|l| l.resources.clone()),
                windows: None,
            }),
            user: Some(v1::ContainerUser {
                linux: Some(v1::LinuxContainerUser {
                    uid: i64::from(self.user.uid),
                    gid: i64::from(self.user.gid),
                    supplemental_groups: self.user.groups.iter().map(|g| i64::from(*g)).collect(),
                }),
            }),
            stop_signal: crate::signal::wire(self.stop_signal) as i32,
            ..Default::default()
        };
        match &self.state {
            State::Created => {}
            State::Running { started_at, .. } => status.started_at = *started_at,
            State::Exited(exit) => {
                status.started_at = exit.started_at;
                status.finished_at = exit.finished_at;
                status.exit_code = exit.code;
                status.reason = exit.reason.clone();
                status.message = exit.message.clone();
            }
        }
        status
    }

    fn image(&self) -> v1::ImageSpec {
        let mut spec = self.config.0.image.clone().unwrap_or_default();
        if !spec.user_specified_image.is_empty() {
            spec.image = spec.user_specified_image.clone();
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> Exit {
        Exit::recorded(&shim::protocol::ExitRecord {
            code,
            oom_killed,
            started_at: 1,
            finished_at: 2,
            ..Default::default()
        })
    }

    #[test]
    fn the_reason_follows_the_record() {
        assert_eq!(exit(0, false).reason, "Completed");
        assert_eq!(exit(3, false).reason, "Error");
        assert_eq!(exit(137, true).reason, "OOMKilled");
        assert_eq!(Exit::start_error("x".into(), 5).code, 128);
        assert_eq!(Exit::unknown(1, 5).code, 255);
    }

    #[test]
    fn the_first_exit_stays() {
        let mut state = State::Running {
            pid: 1,
            started_at: 1,
        };
        assert!(state.check_running("c").is_ok());
        assert!(state.check_startable("c").is_err());
        assert!(state.exit(exit(3, false)));
        assert!(!state.exit(Exit::unknown(1, 9)));
        assert_eq!(state, State::Exited(exit(3, false)));
        assert!(State::Created.check_startable("c").is_ok());
        assert!(
            state
                .check_running("c")
                .unwrap_err()
                .to_string()
                .contains("CONTAINER_EXITED")
        );
    }
}
