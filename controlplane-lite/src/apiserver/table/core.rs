// SPDX-License-Identifier: Apache-2.0
//! Rows of the other kinds.

use serde_json::Value;

use super::{Columns, age, name, number, or_none, pairs, text, wide};
use crate::apiserver::json::{int, list, text as at, truth};

/// Columns of Namespaces.
pub(crate) const NAMESPACE: Columns = Columns {
    definitions: &[name(), text("Status"), text("Age")],
    cells: |object| {
        vec![
            own_name(object),
            at(object, "/status/phase").into(),
            age::of(object),
        ]
    },
};

/// Columns of Nodes.
pub(crate) const NODE: Columns = Columns {
    definitions: &[
        name(),
        text("Status"),
        text("Roles"),
        text("Age"),
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: node,
};

/// Columns of Services.
pub(crate) const SERVICE: Columns = Columns {
    definitions: &[
        name(),
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        text("Age"),
        wide("Selector"),
    ],
    cells: service,
};

/// Columns of ConfigMaps.
pub(crate) const CONFIG_MAP: Columns = Columns {
    definitions: &[name(), number("Data"), text("Age")],
    cells: |object| {
        let count = entries(object, "/data") + entries(object, "/binaryData");
        vec![own_name(object), count.into(), age::of(object)]
    },
};

/// Columns of Secrets.
pub(crate) const SECRET: Columns = Columns {
    definitions: &[name(), text("Type"), number("Data"), text("Age")],
    cells: |object| {
        vec![
            own_name(object),
            at(object, "/type").into(),
            entries(object, "/data").into(),
            age::of(object),
        ]
    },
};

/// Columns of ServiceAccounts.
pub(crate) const SERVICE_ACCOUNT: Columns = Columns {
    definitions: &[name(), number("Secrets"), text("Age")],
    cells: |object| {
        vec![
            own_name(object),
            list(object, "/secrets").len().into(),
            age::of(object),
        ]
    },
};

/// Columns of Leases.
pub(crate) const LEASE: Columns = Columns {
    definitions: &[name(), text("Holder"), text("Age")],
    cells: |object| {
        vec![
            own_name(object),
            at(object, "/spec/holderIdentity").into(),
            age::of(object),
        ]
    },
};

/// Columns of RuntimeClasses.
pub(crate) const RUNTIME_CLASS: Columns = Columns {
    definitions: &[name(), text("Handler"), text("Age")],
    cells: |object| {
        vec![
            own_name(object),
            at(object, "/handler").into(),
            age::of(object),
        ]
    },
};

/// Columns of Endpoints.
pub(crate) const ENDPOINTS: Columns = Columns {
    definitions: &[name(), text("Endpoints"), text("Age")],
    cells: |object| {
        let mut found = Vec::new();
        for subset in list(object, "/subsets") {
            for address in list(subset, "/addresses") {
                let ports = list(subset, "/ports");
                let ports: Vec<_> = ports.iter().filter_map(|p| int(p, "/port")).collect();
                if ports.is_empty() {
                    found.push(at(address, "/ip").to_owned());
                }
                found.extend(ports.iter().map(|p| format!("{}:{p}", at(address, "/ip"))));
            }
        }
        vec![own_name(object), shortened(&found), age::of(object)]
    },
};

/// Columns of EndpointSlices.
pub(crate) const ENDPOINT_SLICE: Columns = Columns {
    definitions: &[
        name(),
        text("AddressType"),
        text("Ports"),
        text("Endpoints"),
        text("Age"),
    ],
    cells: |object| {
        let ports = list(object, "/ports")
            .iter()
            .filter_map(|p| int(p, "/port"));
        let ports: Vec<_> = ports.map(|p| p.to_string()).collect();
        let addresses = list(object, "/endpoints")
            .iter()
            .flat_map(|e| list(e, "/addresses"));
        let addresses: Vec<_> = addresses
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let unset = |found: &[String]| {
            if found.is_empty() {
                "<unset>".into()
            } else {
                shortened(found)
            }
        };
        vec![
            own_name(object),
            at(object, "/addressType").into(),
            unset(&ports),
            unset(&addresses),
            age::of(object),
        ]
    },
};

/// Columns of Events.
pub(crate) const EVENT: Columns = Columns {
    definitions: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        wide("Count"),
        wide("Name"),
    ],
    cells: event,
};

/// Columns of Events in the group `events.k8s.io`: the same, from the other version.
pub(crate) const EVENTS: Columns = Columns {
    definitions: EVENT.definitions,
    cells: |object| {
        event(&(crate::apiserver::strategy::EVENTS_VIEW.to_stored)(
            object.clone(),
        ))
    },
};

fn own_name(object: &Value) -> Value {
    at(object, "/metadata/name").into()
}

fn entries(object: &Value, pointer: &str) -> usize {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.map_or(0, serde_json::Map::len)
}

/// The first three of a list, and how many more.
fn shortened(found: &[String]) -> Value {
    match found.len() {
        0..=3 => or_none(&found.join(",")),
        more => format!("{} + {} more...", found[..3].join(","), more - 3).into(),
    }
}

fn node(node: &Value) -> Vec<Value> {
    let conditions = list(node, "/status/conditions");
    let ready = conditions.iter().find(|c| at(c, "/type") == "Ready");
    let mut status = match ready.map(|c| at(c, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if truth(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let mut found = list(node, "/status/addresses").iter();
        let found = found.find(|a| at(a, "/type") == kind);
        or_none(found.map_or("", |a| at(a, "/address")))
    };
    let unknown = |pointer: &str| match at(node, pointer) {
        "" => Value::from("<unknown>"),
        text => text.into(),
    };
    vec![
        own_name(node),
        status.into(),
        or_none(&roles(node).join(",")),
        age::of(node),
        at(node, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        unknown("/status/nodeInfo/osImage"),
        unknown("/status/nodeInfo/kernelVersion"),
        unknown("/status/nodeInfo/containerRuntimeVersion"),
    ]
}

fn roles(node: &Value) -> Vec<&str> {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut found: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ if key == "kubernetes.io/role" => value.as_str(),
                _ => None,
            },
        )
        .collect();
    found.sort_unstable();
    found
}

fn service(service: &Value) -> Vec<Value> {
    let kind = at(service, "/spec/type");
    let ports: Vec<_> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let number = int(port, "/port").unwrap_or(0);
            let protocol = at(port, "/protocol");
            match int(port, "/nodePort") {
                Some(node_port) if node_port != 0 => format!("{number}:{node_port}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    vec![
        own_name(service),
        kind.into(),
        or_none(at(service, "/spec/clusterIP")),
        external(service, kind),
        or_none(&ports.join(",")),
        age::of(service),
        pairs(service.pointer("/spec/selector")),
    ]
}

fn external(service: &Value, kind: &str) -> Value {
    let mut found: Vec<_> = list(service, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| match at(i, "/ip") {
            "" => at(i, "/hostname"),
            ip => ip,
        })
        .collect();
    found.extend(
        list(service, "/spec/externalIPs")
            .iter()
            .filter_map(Value::as_str),
    );
    match kind {
        "ExternalName" => at(service, "/spec/externalName").into(),
        "LoadBalancer" if found.is_empty() => "<pending>".into(),
        _ => or_none(&found.join(",")),
    }
}

fn event(event: &Value) -> Vec<Value> {
    let first = match at(event, "/firstTimestamp") {
        "" => at(event, "/eventTime"),
        time => time,
    };
    let mut last = match at(event, "/series/lastObservedTime") {
        "" => at(event, "/lastTimestamp"),
        time => time,
    };
    if last.is_empty() {
        last = first;
    }
    let component = match at(event, "/source/component") {
        "" => at(event, "/reportingComponent"),
        component => component,
    };
    let source = match at(event, "/source/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    let object = format!(
        "{}/{}",
        at(event, "/involvedObject/kind").to_lowercase(),
        at(event, "/involvedObject/name")
    );
    let count = int(event, "/series/count")
        .or(int(event, "/count"))
        .unwrap_or(1);
    vec![
        age::since(last),
        at(event, "/type").into(),
        at(event, "/reason").into(),
        object.into(),
        at(event, "/involvedObject/fieldPath").into(),
        source.into(),
        at(event, "/message").trim().into(),
        age::since(first),
        count.to_string().into(),
        own_name(event),
    ]
}
