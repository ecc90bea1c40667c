// SPDX-License-Identifier: Apache-2.0
//! The downward API: what `fieldRef` and `resourceFieldRef` yield.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::node::NodeFacts;
use crate::quantity::{Quantity, QuantityError};

/// A reference that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A field path that the downward API does not offer.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// `containerName` names no container of the pod.
    #[error("container {0} not found")]
    Container(String),
    /// A resource that the downward API does not offer.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// A quantity in the pod that cannot be read.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
}

/// A pod's metadata field, as files of a downwardAPI volume and environment share it.
///
/// # Errors
/// Any other path.
pub fn metadata_field(pod: &Pod, path: &str) -> Result<String, FieldError> {
    let metadata = &pod.metadata;
    let empty = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = metadata.annotations.as_ref().unwrap_or(&empty);
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(labels),
        "metadata.annotations" => format_map(annotations),
        other => match subscript(other) {
            Some(("metadata.labels", key)) => labels.get(key).cloned().unwrap_or_default(),
            Some(("metadata.annotations", key)) => {
                annotations.get(key).cloned().unwrap_or_default()
            }
            _ => return Err(FieldError::Path(other.to_owned())),
        },
    })
}

/// A field as an environment variable: single metadata fields, and what only a running pod has.
///
/// # Errors
/// A path that is not offered there; whole maps belong into volumes.
pub(super) fn env_field(
    pod: &Pod,
    path: &str,
    node: &NodeFacts,
    pod_ips: &[IpAddr],
) -> Result<String, FieldError> {
    let spec = pod.spec.as_ref();
    let pod_ips = match spec.and_then(|spec| spec.host_network) {
        Some(true) if pod_ips.is_empty() => &node.ips,
        _ => pod_ips,
    };
    Ok(match path {
        "metadata.labels" | "metadata.annotations" => {
            return Err(FieldError::Path(path.to_owned()));
        }
        "spec.nodeName" => spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_else(|| node.name.clone()),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" => first(&node.ips),
        "status.hostIPs" => join(&node.ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => join(pod_ips),
        other => metadata_field(pod, other)?,
    })
}

/// A container's limit or request, divided and rounded up. A limit that is not set is the pod's,
/// and else what the node can allocate.
///
/// # Errors
/// No such container or resource.
pub fn resource_field(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, FieldError> {
    let container = find_container(pod, own, selector)?;
    let (kind, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| FieldError::Resource(selector.resource.clone()))?;
    let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage")
        || resource.starts_with("hugepages-");
    if !known || !matches!(kind, "limits" | "requests") {
        return Err(FieldError::Resource(selector.resource.clone()));
    }
    let amount = if kind == "limits" {
        limit(pod, container, resource, node)?
    } else {
        request(container, resource)?
    };
    let divisor = match &selector.divisor {
        Some(divisor) if !divisor.0.is_empty() => Quantity::from_api(divisor)?,
        _ => Quantity::from_value(1),
    };
    Ok(amount.divide_rounding_up(divisor).to_string())
}

fn find_container<'a>(
    pod: &'a Pod,
    own: Option<&'a Container>,
    selector: &ResourceFieldSelector,
) -> Result<&'a Container, FieldError> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    if name.is_empty()
        && let Some(own) = own
    {
        return Ok(own);
    }
    let spec = pod.spec.as_ref();
    let apps = spec.map(|spec| spec.containers.as_slice());
    let inits = spec.and_then(|spec| spec.init_containers.as_deref());
    apps.into_iter()
        .chain(inits)
        .flatten()
        .find(|container| container.name == name)
        .ok_or_else(|| FieldError::Container(name.to_owned()))
}

fn limit(
    pod: &Pod,
    container: &Container,
    resource: &str,
    node: &NodeFacts,
) -> Result<Quantity, QuantityError> {
    let of_container = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref())
        .and_then(|resources| resources.limits.as_ref());
    for limits in [of_container, of_pod].into_iter().flatten() {
        if let Some(limit) = amount(limits, resource)? {
            return Ok(limit);
        }
    }
    Ok(match resource {
        "cpu" => Quantity::from_millis(node.allocatable_cpu_millis),
        "memory" => Quantity::from_value(node.allocatable_memory_bytes),
        "ephemeral-storage" => Quantity::from_value(node.allocatable_storage_bytes),
        _ => Quantity::default(),
    })
}

/// A request that is not set is the limit, as the API's defaulting has it (which a static pod
/// without an API server has not passed), and else nothing.
fn request(container: &Container, resource: &str) -> Result<Quantity, QuantityError> {
    let Some(resources) = &container.resources else {
        return Ok(Quantity::default());
    };
    for amounts in [&resources.requests, &resources.limits]
        .into_iter()
        .flatten()
    {
        if let Some(request) = amount(amounts, resource)? {
            return Ok(request);
        }
    }
    Ok(Quantity::default())
}

/// Zero counts as not set, as upstream's `IsZero` has it.
fn amount(
    amounts: &BTreeMap<String, ApiQuantity>,
    resource: &str,
) -> Result<Option<Quantity>, QuantityError> {
    let quantity = amounts.get(resource).map(Quantity::from_api).transpose()?;
    Ok(quantity.filter(|quantity| !quantity.is_zero()))
}

fn first(ips: &[IpAddr]) -> String {
    ips.first().map(ToString::to_string).unwrap_or_default()
}

fn join(ips: &[IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    ips.join(",")
}

/// `a.b['key']` as (`a.b`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    Some((field, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, quoted as Go's `%q` does.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || matches!(c, '\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1",
                "labels": {"b": "2", "a": "say \"hi\"\n"}, "annotations": {"x.io/y": "z"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "app", "resources": {"limits": {"memory": "64Mi", "cpu": "1250m"},
                                              "requests": {"cpu": "100m"}}},
                {"name": "bare"}], "initContainers": [{"name": "setup"}]}}))
        .expect("a pod")
    }

    fn node() -> NodeFacts {
        NodeFacts {
            name: "n1".into(),
            ips: vec![[10, 0, 0, 1].into(), "fd00::1".parse().expect("an address")],
            allocatable_cpu_millis: 2000,
            allocatable_memory_bytes: 4 << 30,
            allocatable_storage_bytes: 10 << 30,
        }
    }

    #[test]
    fn every_field_of_the_environment() {
        let ips = [
            [10, 42, 0, 7].into(),
            "fd42::7".parse().expect("an address"),
        ];
        for (path, want) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "u-1"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['missing']", ""),
            ("metadata.annotations['x.io/y']", "z"),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "10.0.0.1"),
            ("status.hostIPs", "10.0.0.1,fd00::1"),
            ("status.podIP", "10.42.0.7"),
            ("status.podIPs", "10.42.0.7,fd42::7"),
        ] {
            assert_eq!(
                env_field(&pod(), path, &node(), &ips).as_deref(),
                Ok(want),
                "{path}"
            );
        }
        for path in ["metadata.labels", "spec.x", "metadata.labels['b", ""] {
            let error = env_field(&pod(), path, &node(), &ips).map_err(|e| e.to_string());
            assert_eq!(error, Err(format!("unsupported fieldPath: {path}")));
        }
    }

    #[test]
    fn a_map_is_sorted_and_quoted() {
        assert_eq!(
            metadata_field(&pod(), "metadata.labels").as_deref(),
            Ok("a=\"say \\\"hi\\\"\\n\"\nb=\"2\"")
        );
        assert_eq!(quote("\u{1}é\u{a0}"), "\"\\x01é\\u00a0\"");
    }

    #[test]
    fn resources_are_divided_and_fall_back() {
        let check = |container: &str, resource: &str, divisor: &str, want: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some(container.into()),
                resource: resource.into(),
                divisor: Some(ApiQuantity(divisor.into())),
            };
            let got = resource_field(&pod(), None, &selector, &node());
            assert_eq!(
                got.map_err(|e| e.to_string()),
                Ok(want.to_owned()),
                "{container} {resource} / {divisor}"
            );
        };
        check("app", "limits.cpu", "1", "2");
        check("app", "limits.cpu", "1m", "1250");
        check("app", "limits.cpu", "", "2");
        check("app", "limits.memory", "1Mi", "64");
        check("app", "requests.cpu", "1m", "100");
        check("app", "requests.memory", "1", "67108864");
        check("bare", "limits.cpu", "1", "2");
        check("bare", "limits.memory", "1Gi", "4");
        check("bare", "limits.ephemeral-storage", "1Gi", "10");
        check("bare", "requests.cpu", "1", "0");
        check("setup", "limits.cpu", "0", "2");
        check("bare", "limits.hugepages-2Mi", "1", "0");
    }

    #[test]
    fn unknown_containers_and_resources_are_named() {
        let mut selector = ResourceFieldSelector {
            container_name: Some("nope".into()),
            resource: "limits.cpu".into(),
            divisor: None,
        };
        assert_eq!(
            resource_field(&pod(), None, &selector, &node()),
            Err(FieldError::Container("nope".into()))
        );
        selector.container_name = Some("app".into());
        selector.resource = "limits.gpu".into();
        assert_eq!(
            resource_field(&pod(), None, &selector, &node()),
            Err(FieldError::Resource("limits.gpu".into()))
        );
    }
}
