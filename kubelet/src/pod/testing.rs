// SPDX-License-Identifier: Apache-2.0
//! Builders for the tests of this crate.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::state::{ContainerSeen, ContainerState, SandboxSeen, Seen};

/// The moment at which tables start.
pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + secs).expect("a small offset stays in range")
}

/// A pod `ns/p` with uid `u` and this YAML as its spec.
pub(crate) fn pod(spec: &str) -> Pod {
    let spec = serde_saphyr::from_str(spec).expect("the test's YAML is a pod spec");
    let mut pod = Pod {
        spec: Some(spec),
        ..Default::default()
    };
    pod.metadata.name = Some("p".to_owned());
    pod.metadata.namespace = Some("ns".to_owned());
    pod.metadata.uid = Some("u".to_owned());
    pod.metadata.generation = Some(1);
    pod
}

/// A ready sandbox.
pub(crate) fn sandbox() -> SandboxSeen {
    SandboxSeen {
        id: "s0".to_owned(),
        attempt: 0,
        ready: true,
        created_at: at(0),
        ips: vec!["10.1.0.5".to_owned()],
    }
}

/// A container in `s0`, running since second 1.
pub(crate) fn running(name: &str) -> ContainerSeen {
    ContainerSeen {
        id: format!("{name}-0"),
        sandbox: "s0".to_owned(),
        name: name.to_owned(),
        restart_count: 0,
        state: ContainerState::Running,
        created_at: at(1),
        started_at: Some(at(1)),
        finished_at: None,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image: "x".to_owned(),
        image_ref: "sha256:1".to_owned(),
        hash: String::new(),
        log_path: String::new(),
        termination_log: None,
    }
}

/// A container in `s0` that ended at second `end`.
pub(crate) fn exited(name: &str, code: i32, end: i64) -> ContainerSeen {
    ContainerSeen {
        state: ContainerState::Exited,
        finished_at: Some(at(end)),
        exit_code: code,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        ..running(name)
    }
}

/// A ready sandbox with these containers.
pub(crate) fn seen(containers: Vec<ContainerSeen>) -> Seen {
    Seen {
        sandboxes: vec![sandbox()],
        containers,
    }
}
