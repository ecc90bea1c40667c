// SPDX-License-Identifier: Apache-2.0
//! Which container's log a reader means, from the pod's status. Texts are upstream's. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// True when the pod's spec has a container of that name, of any kind.
pub(in crate::server) fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let apps = spec.containers.iter();
    let inits = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    apps.chain(inits).any(|container| container.name == name)
        || ephemeral
            .into_iter()
            .any(|container| container.name == name)
}

/// The id of the container whose log to read.
///
/// # Errors
/// Upstream's sentence for a container that has no log to show.
pub(in crate::server) fn container_id(
    pod: &Pod,
    name: &str,
    previous: bool,
) -> Result<String, String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let what = format!("container {name:?} in pod {pod_name:?}");
    let status = find(pod, name).ok_or_else(|| format!("{what} is not available"))?;
    let state = status.state.as_ref();
    let last = status
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref());
    let last_id = last.and_then(|last| plain(last.container_id.as_deref()));
    if previous {
        return last_id.ok_or_else(|| format!("previous terminated {what} not found"));
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return plain(status.container_id.as_deref())
            .ok_or_else(|| format!("{what} is waiting to start - no logs yet"));
    }
    let terminated = state.and_then(|state| state.terminated.as_ref());
    if terminated.is_some() || last.is_some() {
        let id = terminated.and_then(|t| plain(t.container_id.as_deref()));
        return id
            .or(last_id)
            .ok_or_else(|| format!("{what} is terminated"));
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    Err(
        match waiting.map(|w| w.reason.as_deref().unwrap_or_default()) {
            Some("ErrImagePull") => format!("{what} is waiting to start: image can't be pulled"),
            Some("ImagePullBackOff") => {
                format!("{what} is waiting to start: trying and failing to pull image")
            }
            Some(reason) => format!("{what} is waiting to start: {reason}"),
            None => format!("{what} is waiting to start - no logs yet"),
        },
    )
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|status| status.name == name)
}

/// `podwright://<id>` without its scheme.
fn plain(id: Option<&str>) -> Option<String> {
    let id = id?;
    let id = id.split_once("://").map_or(id, |(_, id)| id);
    Some(id.to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(status: Value, previous: bool, want: Result<&str, &str>) {
        let mut status = status;
        for (key, value) in [
            ("name", json!("c")),
            ("image", json!("")),
            ("imageID", json!("")),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
        ] {
            status[key] = value;
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"containerStatuses": [status]}}))
        .expect("a pod");
        let got = container_id(&pod, "c", previous);
        assert_eq!(got.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn the_state_decides_which_log_is_meant() {
        let ended = |id: &str| json!({"terminated": {"containerID": id, "exitCode": 1}});
        let running = json!({"containerID": "podwright://now", "state": {"running": {}},
            "lastState": ended("podwright://before")});
        check(running.clone(), false, Ok("now"));
        check(running, true, Ok("before"));
        check(json!({"state": ended("podwright://x")}), false, Ok("x"));
        check(
            json!({"state": {"terminated": {"exitCode": 1}}, "lastState": ended("a://y")}),
            false,
            Ok("y"),
        );
        let crashing = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended("a://y")});
        check(crashing, false, Ok("y"));
        check(
            json!({"state": {"terminated": {"exitCode": 1}}}),
            false,
            Err("container \"c\" in pod \"p\" is terminated"),
        );
        check(
            json!({}),
            true,
            Err("previous terminated container \"c\" in pod \"p\" not found"),
        );
        check(
            json!({}),
            false,
            Err("container \"c\" in pod \"p\" is waiting to start - no logs yet"),
        );
        for (reason, text) in [
            ("ContainerCreating", "ContainerCreating"),
            ("ErrImagePull", "image can't be pulled"),
            ("ImagePullBackOff", "trying and failing to pull image"),
        ] {
            check(
                json!({"state": {"waiting": {"reason": reason}}}),
                false,
                Err(&format!(
                    "container \"c\" in pod \"p\" is waiting to start: {text}"
                )),
            );
        }
    }

    #[test]
    fn a_container_without_a_status_is_not_available() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [], "initContainers": [{"name": "i"}]}}))
        .expect("a pod");
        assert!(has_container(&pod, "i") && !has_container(&pod, "c"));
        assert_eq!(
            container_id(&pod, "i", false),
            Err("container \"i\" in pod \"p\" is not available".to_owned())
        );
    }
}
