// SPDX-License-Identifier: Apache-2.0
//! From a pod's subresource to its node's address and the kubelet's path.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::super::{
    api::{Api, Call},
    error::ApiError,
    json::{int, list, text},
    registry,
    resource::Sub,
};

/// Where a pod runs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    pub(super) node: String,
    pod: Value,
}

/// Finds the kubelet of a pod.
pub(super) fn place(api: &Api, call: &Call) -> Result<Place, ApiError> {
    let name = &call.target.name;
    let pod = api.store.get(&call.key());
    let pod = pod
        .ok_or_else(|| ApiError::not_found(call.row, name))?
        .value();
    let node = text(&pod, "/spec/nodeName").to_owned();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    let row = registry::core_row("nodes");
    let stored = api.store.get(&row.key("", &node));
    let stored = stored
        .ok_or_else(|| ApiError::not_found(row, &node))?
        .value();
    let address = address_of(&stored).ok_or_else(|| {
        ApiError::internal(format!(
            "node {node} has no InternalIP or no kubelet port in its status"
        ))
    })?;
    Ok(Place { address, node, pod })
}

fn address_of(node: &Value) -> Option<SocketAddr> {
    let mut addresses = list(node, "/status/addresses").iter();
    let found = addresses.find(|a| text(a, "/type") == "InternalIP")?;
    let ip: IpAddr = text(found, "/address").parse().ok()?;
    let port = int(node, "/status/daemonEndpoints/kubeletEndpoint/Port")?;
    Some(SocketAddr::new(
        ip,
        u16::try_from(port).ok().filter(|p| *p != 0)?,
    ))
}

/// The container that is meant: the named one, the annotated default, or the only one.
fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let name = text(pod, "/metadata/name");
    let names = |field: &str| {
        let found = list(pod, &format!("/spec/{field}")).iter();
        found
            .map(|c| text(c, "/name").to_owned())
            .collect::<Vec<_>>()
    };
    let (app, init) = (names("containers"), names("initContainers"));
    let named = call.query.get("container");
    if let Some(named) = named {
        let known = app.iter().chain(&init).any(|n| n == named);
        return if known {
            Ok(named.to_owned())
        } else {
            Err(ApiError::bad_request(format!(
                "container {named} is not valid for pod {name}"
            )))
        };
    }
    let preferred = text(
        pod,
        "/metadata/annotations/kubectl.kubernetes.io~1default-container",
    );
    if app.iter().any(|n| n == preferred) {
        return Ok(preferred.to_owned());
    }
    match app.as_slice() {
        [only] => Ok(only.clone()),
        many => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]{}",
            many.join(" "),
            if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            }
        ))),
    }
}

/// Percent-encodes what is not plain.
fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn with_query(path: String, pairs: &[(&str, &str)]) -> String {
    let query: Vec<_> = pairs
        .iter()
        .map(|(n, v)| format!("{}={}", encode(n), encode(v)))
        .collect();
    if query.is_empty() {
        path
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

/// `/containerLogs/...`, with the options that the kubelet knows.
pub(super) fn log_path(call: &Call, place: &Place) -> Result<String, ApiError> {
    let container = container(call, &place.pod)?;
    let path = format!(
        "/containerLogs/{}/{}/{container}",
        call.target.namespace, call.target.name
    );
    let known = [
        "follow",
        "previous",
        "timestamps",
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    let pairs: Vec<_> = known
        .iter()
        .filter_map(|n| call.query.get(n).map(|v| (*n, v)))
        .collect();
    Ok(with_query(path, &pairs))
}

/// `/exec/...`, `/attach/...` or `/portForward/...`.
pub(super) fn stream_path(sub: Sub, call: &Call, place: &Place) -> Result<String, ApiError> {
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    if sub == Sub::PortForward {
        let pairs: Vec<_> = call.query.all("ports").map(|p| ("port", p)).collect();
        return Ok(with_query(
            format!("/portForward/{namespace}/{name}"),
            &pairs,
        ));
    }
    let container = container(call, &place.pod)?;
    let verb = if sub == Sub::Exec { "exec" } else { "attach" };
    let mut pairs = Vec::new();
    let streams = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ];
    for (ours, kubelets) in streams {
        if call.query.flag(ours) {
            pairs.push((kubelets, "1"));
        }
    }
    if sub == Sub::Exec {
        pairs.extend(call.query.all("command").map(|c| ("command", c)));
    }
    Ok(with_query(
        format!("/{verb}/{namespace}/{name}/{container}"),
        &pairs,
    ))
}
