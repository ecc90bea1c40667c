// SPDX-License-Identifier: Apache-2.0
//! The row of a pod. Its status column sums up containers, as upstream's `printPod` does.

use serde_json::Value;

use super::{Columns, age, name, or_none, text, wide};
use crate::apiserver::json::{int, list, text as at, truth};

/// Columns of pods.
pub(crate) const POD: Columns = Columns {
    definitions: &[
        name(),
        text("Ready"),
        text("Status"),
        text("Restarts"),
        text("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    cells,
};

fn cells(pod: &Value) -> Vec<Value> {
    let summary = Summary::of(pod);
    let gates = list(pod, "/spec/readinessGates");
    let gates = if gates.is_empty() {
        "<none>".into()
    } else {
        let met = gates
            .iter()
            .filter(|g| condition(pod, at(g, "/conditionType")) == "True");
        format!("{}/{}", met.count(), gates.len())
    };
    vec![
        at(pod, "/metadata/name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts(summary.restarts, summary.restarted_at),
        age::of(pod),
        or_none(at(pod, "/status/podIP")),
        or_none(at(pod, "/spec/nodeName")),
        or_none(at(pod, "/status/nominatedNodeName")),
        gates.into(),
    ]
}

fn restarts(count: i64, last: Option<&str>) -> Value {
    match last {
        Some(last) if count > 0 => {
            let ago = age::since(last);
            format!("{count} ({} ago)", ago.as_str().unwrap_or("")).into()
        }
        _ => count.to_string().into(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let mut found = list(pod, "/status/conditions").iter();
    found
        .find(|c| at(c, "/type") == kind)
        .map_or("", |c| at(c, "/status"))
}

struct Summary<'a> {
    total: usize,
    ready: usize,
    restarts: i64,
    restarted_at: Option<&'a str>,
    reason: String,
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Self {
        let phase = match at(pod, "/status/phase") {
            "" => "Unknown",
            phase => phase,
        };
        let mut summary = Self {
            total: list(pod, "/spec/containers").len(),
            ready: 0,
            restarts: 0,
            restarted_at: None,
            reason: match at(pod, "/status/reason") {
                "" => phase.to_owned(),
                reason => reason.to_owned(),
            },
        };
        let gated = list(pod, "/status/conditions")
            .iter()
            .any(|c| at(c, "/type") == "PodScheduled" && at(c, "/reason") == "SchedulingGated");
        if gated {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        if !summary.add_init_containers(pod) {
            summary.add_containers(pod);
        }
        if !at(pod, "/metadata/deletionTimestamp").is_empty() {
            summary.reason = match at(pod, "/status/reason") {
                "NodeLost" => "Unknown".to_owned(),
                _ if matches!(phase, "Succeeded" | "Failed") => summary.reason,
                _ => "Terminating".to_owned(),
            };
        }
        summary
    }

    fn restarted(&mut self, status: &'a Value) {
        self.restarts += int(status, "/restartCount").unwrap_or(0);
        let last = at(status, "/lastState/terminated/finishedAt");
        if !last.is_empty() && self.restarted_at.is_none_or(|known| known < last) {
            self.restarted_at = Some(last);
        }
    }

    /// Returns whether init containers are still what the pod is doing.
    fn add_init_containers(&mut self, pod: &'a Value) -> bool {
        let specs = list(pod, "/spec/initContainers");
        let sidecar = |name: &str| {
            let mut found = specs.iter().filter(|c| at(c, "/name") == name);
            found.any(|c| at(c, "/restartPolicy") == "Always")
        };
        self.total += specs
            .iter()
            .filter(|c| at(c, "/restartPolicy") == "Always")
            .count();
        for (done, status) in list(pod, "/status/initContainerStatuses")
            .iter()
            .enumerate()
        {
            self.restarted(status);
            let sidecar = sidecar(at(status, "/name"));
            if status.pointer("/state/terminated").is_some()
                && int(status, "/state/terminated/exitCode") == Some(0)
            {
                continue;
            }
            if sidecar && truth(status, "/started") {
                self.ready += usize::from(truth(status, "/ready"));
                continue;
            }
            let waiting = at(status, "/state/waiting/reason");
            self.reason = if let Some(ended) = status.pointer("/state/terminated") {
                format!("Init:{}", ended_reason(ended))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{done}/{}", specs.len())
            };
            return true;
        }
        false
    }

    fn add_containers(&mut self, pod: &'a Value) {
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.restarted(status);
            let waiting = at(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(ended) = status.pointer("/state/terminated") {
                self.reason = ended_reason(ended);
            } else if truth(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = condition(pod, "Ready") == "True";
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn ended_reason(ended: &Value) -> String {
    match (
        at(ended, "/reason"),
        int(ended, "/signal"),
        int(ended, "/exitCode"),
    ) {
        ("", Some(signal), _) if signal != 0 => format!("Signal:{signal}"),
        ("", _, code) => format!("ExitCode:{}", code.unwrap_or(0)),
        (reason, _, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod: &Value, expected: [&str; 3]) {
        let cells = cells(pod);
        assert_eq!(cells[1..4], expected.map(Value::from), "{pod}");
    }

    #[test]
    fn the_status_column_says_what_containers_do() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        check(
            &json!({"spec": spec, "status": {"phase": "Pending"}}),
            ["0/2", "Pending", "0"],
        );
        let running = |ready| json!({"name": "a", "ready": ready, "state": {"running": {}}, "restartCount": 1});
        check(
            &json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [
                running(true), {"name": "b", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
            ["1/2", "CrashLoopBackOff", "1"],
        );
        check(
            &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
                "status": {"phase": "Running", "containerStatuses": [running(true), running(false)]}}),
            ["1/2", "Terminating", "2"],
        );
        check(
            &json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "j"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}}),
            ["0/1", "Init:1/2", "0"],
        );
    }
}
