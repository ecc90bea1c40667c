// SPDX-License-Identifier: Apache-2.0
//! The few fields of an object that selectors and lists look at.
//!
//! Parsed once per version of an object, so that a watch with a selector costs a comparison and
//! not a parse.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The parsed header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// When an event last happened; for everything else, when the object was created.
    pub(crate) changed: String,
    /// Selectable fields other than name and namespace. One that is absent reads as empty.
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl Header {
    /// Parses the header of an encoded object. What cannot be parsed is empty: the bytes were
    /// checked when they were written.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let wire: Wire = serde_json::from_slice(bytes).unwrap_or_default();
        let fields = wire.fields();
        let changed = wire
            .last_timestamp
            .unwrap_or(wire.metadata.creation_timestamp);
        Self {
            name: wire.metadata.name,
            namespace: wire.metadata.namespace,
            uid: wire.metadata.uid,
            labels: wire.metadata.labels,
            changed,
            fields,
        }
    }

    /// Value of a selectable field.
    pub(crate) fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => &self.name,
            "metadata.namespace" => &self.namespace,
            other => self.fields.get(other).map_or("", String::as_str),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<Status>,
    involved_object: Option<Reference>,
    regarding: Option<Reference>,
    source: Option<Source>,
    #[serde(rename = "type")]
    kind: Option<String>,
    reason: Option<String>,
    reporting_component: Option<String>,
    last_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    creation_timestamp: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    restart_policy: Option<String>,
    scheduler_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
    unschedulable: Option<bool>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    nominated_node_name: Option<String>,
    replicas: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    api_version: Option<String>,
    resource_version: Option<String>,
    field_path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Source {
    component: Option<String>,
}

impl Wire {
    fn fields(&self) -> BTreeMap<&'static str, String> {
        let mut found = BTreeMap::new();
        let mut add = |path, value: Option<String>| {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                found.insert(path, value);
            }
        };
        if let Some(spec) = &self.spec {
            add("spec.nodeName", spec.node_name.clone());
            add("spec.restartPolicy", spec.restart_policy.clone());
            add("spec.schedulerName", spec.scheduler_name.clone());
            add("spec.serviceAccountName", spec.service_account_name.clone());
            add("spec.hostNetwork", spec.host_network.map(|b| b.to_string()));
            add(
                "spec.unschedulable",
                spec.unschedulable.map(|b| b.to_string()),
            );
            add("spec.clusterIP", spec.cluster_ip.clone());
            add("spec.type", spec.kind.clone());
        }
        if let Some(status) = &self.status {
            add("status.phase", status.phase.clone());
            add("status.podIP", status.pod_ip.clone());
            add(
                "status.nominatedNodeName",
                status.nominated_node_name.clone(),
            );
            add("status.replicas", status.replicas.map(|n| n.to_string()));
        }
        if let Some(object) = self.involved_object.as_ref().or(self.regarding.as_ref()) {
            add("involvedObject.kind", object.kind.clone());
            add("involvedObject.namespace", object.namespace.clone());
            add("involvedObject.name", object.name.clone());
            add("involvedObject.uid", object.uid.clone());
            add("involvedObject.apiVersion", object.api_version.clone());
            add(
                "involvedObject.resourceVersion",
                object.resource_version.clone(),
            );
            add("involvedObject.fieldPath", object.field_path.clone());
        }
        let component = self.source.as_ref().and_then(|s| s.component.clone());
        add("source", component.or(self.reporting_component.clone()));
        add("reportingComponent", self.reporting_component.clone());
        add("type", self.kind.clone());
        add("reason", self.reason.clone());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectable_fields_of_a_pod_and_an_event_are_found() {
        let pod = br#"{"metadata":{"name":"a","namespace":"n","labels":{"x":"y"}},
            "spec":{"nodeName":"n1","containers":[{"name":"c"}]},"status":{"phase":"Running"}}"#;
        let header = Header::parse(pod);
        assert_eq!(header.field("metadata.name"), "a");
        assert_eq!(header.field("spec.nodeName"), "n1");
        assert_eq!(header.field("status.phase"), "Running");
        assert_eq!(header.field("status.podIP"), "");
        let event = br#"{"metadata":{"name":"e"},"involvedObject":{"name":"a","kind":"Pod"},
            "type":"Normal","reason":"Started","source":{"component":"kubelet"}}"#;
        let header = Header::parse(event);
        assert_eq!(header.field("involvedObject.name"), "a");
        assert_eq!(header.field("source"), "kubelet");
    }
}
