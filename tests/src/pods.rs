// SPDX-License-Identifier: Apache-2.0
//! What scenarios ask about pods, through the API.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{TestHost, wait_for};

/// Generous, because the machine may be busy or emulated.
const PATIENCE: Duration = Duration::from_secs(120);

impl TestHost {
    /// Applies a manifest given as text.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let name = format!("manifest-{:08x}.yaml", rand::random::<u32>());
        let file = self.write(&name, manifest)?;
        self.kubectl_ok(&["apply", "-f", &file])
    }

    /// A pod as the API has it.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.get(&["pod", name])
    }

    /// Waits until `accept` gives something for the pod; an error shows its status and events.
    pub fn wait_pod<T>(
        &self,
        what: &str,
        name: &str,
        accept: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        wait_for(&format!("pod {name}: {what}"), PATIENCE, || {
            match self.pod(name) {
                Ok(pod) => accept(&pod).ok_or_else(|| pod["status"].to_string()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .with_context(|| {
            let events = self.kubectl_ok(&["get", "events"]).unwrap_or_default();
            format!("events:\n{events}")
        })
    }

    /// Waits until the pod is Ready.
    pub fn wait_pod_ready(&self, name: &str) -> Result<()> {
        self.wait_pod("is Ready", name, |pod| {
            (condition(pod, "Ready") == Some("True")).then_some(())
        })
    }

    /// Waits until the pod is in `phase`.
    pub fn wait_pod_phase(&self, name: &str, phase: &str) -> Result<()> {
        self.wait_pod(&format!("is {phase}"), name, |pod| {
            (pod["status"]["phase"] == phase).then_some(())
        })
    }

    /// Waits for an event of `reason` about an object, and gives its message.
    pub fn wait_event(&self, object: &str, reason: &str) -> Result<String> {
        wait_for(&format!("event {reason} of {object}"), PATIENCE, || {
            let events = self
                .get(&["events"])
                .map_err(|error| format!("{error:#}"))?;
            let items = events["items"].as_array().cloned().unwrap_or_default();
            let is_it = |event: &&Value| {
                event["involvedObject"]["name"] == object && event["reason"] == reason
            };
            match items.iter().find(is_it) {
                Some(event) => Ok(event["message"].as_str().unwrap_or_default().to_owned()),
                None => Err(format!(
                    "{:?}",
                    items
                        .iter()
                        .map(|e| e["reason"].to_string())
                        .collect::<Vec<_>>()
                )),
            }
        })
    }
}

/// Status of a pod's or node's condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

/// The status of a pod's container by name.
pub fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .find(|status| status["name"] == name)
}

/// A pod of one busybox container that runs a shell script.
pub fn script_pod(name: &str, restart_policy: &str, script: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": restart_policy,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "localhost/busybox:1",
                "command": ["sh", "-c", script],
            }],
        },
    })
    .to_string()
}
