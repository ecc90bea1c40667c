// SPDX-License-Identifier: Apache-2.0
//! How lists of the served kinds are merged: the `patchStrategy` and `patchMergeKey` tags of
//! upstream's types (`k8s.io/api/*/types.go`). A list that is not named here is replaced.

/// What a strategic merge patch does with a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListRule {
    /// The patch's list replaces the old one.
    Atomic,
    /// Elements with the same value of this field are merged.
    ByKey(&'static str),
    /// Values are added to a set.
    Set,
}

/// The rule of the list `field` in the object that `path` leads to, inside an object of `kind`.
/// The path has field names only.
pub(super) fn list_rule(kind: &str, path: &[String], field: &str) -> ListRule {
    let parent = path.last().map_or("", String::as_str);
    let in_container = matches!(
        parent,
        "containers" | "initContainers" | "ephemeralContainers"
    );
    let in_pod_spec = parent == "spec" && (path.len() == 1) == (kind == "Pod");
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "schedulingGates"
        | "resourceClaims"
            if in_pod_spec =>
        {
            ListRule::ByKey("name")
        }
        "imagePullSecrets" if in_pod_spec => ListRule::ByKey("name"),
        "hostAliases" if in_pod_spec => ListRule::ByKey("ip"),
        "topologySpreadConstraints" if in_pod_spec => ListRule::ByKey("topologyKey"),
        "ports" if in_container => ListRule::ByKey("containerPort"),
        "ports" if kind == "Service" && parent == "spec" => ListRule::ByKey("port"),
        "env" if in_container => ListRule::ByKey("name"),
        "volumeMounts" if in_container => ListRule::ByKey("mountPath"),
        "volumeDevices" if in_container => ListRule::ByKey("devicePath"),
        "ownerReferences" if parent == "metadata" => ListRule::ByKey("uid"),
        "finalizers" if parent == "metadata" => ListRule::Set,
        "conditions" if parent == "status" => ListRule::ByKey("type"),
        "podIPs" | "hostIPs" if parent == "status" => ListRule::ByKey("ip"),
        "addresses" if kind == "Node" && parent == "status" => ListRule::ByKey("type"),
        "podCIDRs" if kind == "Node" && parent == "spec" => ListRule::Set,
        "secrets" if kind == "ServiceAccount" && path.is_empty() => ListRule::ByKey("name"),
        _ => ListRule::Atomic,
    }
}
