// SPDX-License-Identifier: Apache-2.0
//! The table of served kinds. A kind is a row; everything else is generic.

use std::sync::LazyLock;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    events,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};

use super::{
    resource::{NameRule, Resource, Strategy, Sub},
    schema::typed,
    strategy, table,
};

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// Every served kind, in the order in which discovery lists them.
static ROWS: LazyLock<Vec<Resource>> = LazyLock::new(|| {
    let mut rows = core();
    rows.extend(others());
    rows
});

/// Every served kind.
pub(crate) fn rows() -> &'static [Resource] {
    &ROWS
}

/// The row of a resource.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    rows()
        .iter()
        .find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The row of a kind of the core group.
pub(crate) fn core_row(plural: &str) -> &'static Resource {
    find("", "v1", plural).expect("the core kinds are in the table")
}

/// The row of namespaces.
pub(crate) fn namespaces() -> &'static Resource {
    core_row("namespaces")
}

/// The row of RuntimeClasses.
pub(crate) fn runtime_classes() -> &'static Resource {
    find("node.k8s.io", "v1", "runtimeclasses").expect("the kind is in the table")
}

/// What most core kinds have in common.
const CORE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short: &[],
    categories: &[],
    namespaced: true,
    stored: "",
    view: None,
    subresources: &[],
    generation: false,
    name_rule: NameRule::Subdomain,
    selectable: &[],
    columns: table::NAMESPACE,
    decode: typed::<Namespace>,
    strategy: Strategy::NONE,
};

fn core() -> Vec<Resource> {
    vec![
        Resource {
            kind: "ConfigMap",
            plural: "configmaps",
            singular: "configmap",
            stored: "configmaps",
            short: &["cm"],
            columns: table::CONFIG_MAP,
            decode: typed::<ConfigMap>,
            strategy: strategy::CONFIG_MAP,
            ..CORE
        },
        Resource {
            kind: "Endpoints",
            plural: "endpoints",
            singular: "endpoints",
            stored: "endpoints",
            short: &["ep"],
            columns: table::ENDPOINTS,
            decode: typed::<Endpoints>,
            strategy: strategy::ENDPOINTS,
            ..CORE
        },
        Resource {
            kind: "Event",
            plural: "events",
            singular: "event",
            stored: "events",
            short: &["ev"],
            selectable: EVENT_FIELDS,
            columns: table::EVENT,
            decode: typed::<Event>,
            ..CORE
        },
        Resource {
            kind: "Namespace",
            plural: "namespaces",
            singular: "namespace",
            stored: "namespaces",
            short: &["ns"],
            namespaced: false,
            subresources: &[Sub::Status, Sub::Finalize],
            name_rule: NameRule::Label,
            selectable: &["status.phase"],
            columns: table::NAMESPACE,
            decode: typed::<Namespace>,
            strategy: strategy::NAMESPACE,
            ..CORE
        },
        Resource {
            kind: "Node",
            plural: "nodes",
            singular: "node",
            stored: "nodes",
            short: &["no"],
            namespaced: false,
            subresources: &[Sub::Status, Sub::Proxy],
            selectable: &["spec.unschedulable"],
            columns: table::NODE,
            decode: typed::<Node>,
            strategy: strategy::NODE,
            ..CORE
        },
        Resource {
            kind: "Pod",
            plural: "pods",
            singular: "pod",
            stored: "pods",
            short: &["po"],
            categories: &["all"],
            generation: true,
            subresources: &[
                Sub::Status,
                Sub::Binding,
                Sub::Eviction,
                Sub::Log,
                Sub::Exec,
                Sub::Attach,
                Sub::PortForward,
                Sub::Proxy,
                Sub::EphemeralContainers,
                Sub::Resize,
            ],
            selectable: &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.nominatedNodeName",
            ],
            columns: table::POD,
            decode: typed::<Pod>,
            strategy: strategy::POD,
            ..CORE
        },
        Resource {
            kind: "Secret",
            plural: "secrets",
            singular: "secret",
            stored: "secrets",
            selectable: &["type"],
            columns: table::SECRET,
            decode: typed::<Secret>,
            strategy: strategy::SECRET,
            ..CORE
        },
        Resource {
            kind: "ServiceAccount",
            plural: "serviceaccounts",
            singular: "serviceaccount",
            stored: "serviceaccounts",
            short: &["sa"],
            subresources: &[Sub::Token],
            columns: table::SERVICE_ACCOUNT,
            decode: typed::<ServiceAccount>,
            ..CORE
        },
        Resource {
            kind: "Service",
            plural: "services",
            singular: "service",
            stored: "services",
            short: &["svc"],
            categories: &["all"],
            subresources: &[Sub::Status, Sub::Proxy],
            name_rule: NameRule::Label1035,
            selectable: &["spec.clusterIP", "spec.type"],
            columns: table::SERVICE,
            decode: typed::<Service>,
            strategy: strategy::SERVICE,
            ..CORE
        },
    ]
}

fn others() -> Vec<Resource> {
    const APPS: Resource = Resource {
        group: "apps",
        categories: &["all"],
        generation: true,
        subresources: &[Sub::Status, Sub::Scale],
        ..CORE
    };
    vec![
        Resource {
            kind: "Deployment",
            plural: "deployments",
            singular: "deployment",
            stored: "deployments.apps",
            short: &["deploy"],
            columns: table::DEPLOYMENT,
            decode: typed::<Deployment>,
            strategy: strategy::DEPLOYMENT,
            ..APPS
        },
        Resource {
            kind: "ReplicaSet",
            plural: "replicasets",
            singular: "replicaset",
            stored: "replicasets.apps",
            short: &["rs"],
            selectable: &["status.replicas"],
            columns: table::REPLICA_SET,
            decode: typed::<ReplicaSet>,
            strategy: strategy::REPLICA_SET,
            ..APPS
        },
        Resource {
            group: "coordination.k8s.io",
            kind: "Lease",
            plural: "leases",
            singular: "lease",
            stored: "leases.coordination.k8s.io",
            columns: table::LEASE,
            decode: typed::<Lease>,
            ..CORE
        },
        Resource {
            group: "discovery.k8s.io",
            kind: "EndpointSlice",
            plural: "endpointslices",
            singular: "endpointslice",
            stored: "endpointslices.discovery.k8s.io",
            generation: false,
            columns: table::ENDPOINT_SLICE,
            decode: typed::<EndpointSlice>,
            strategy: strategy::ENDPOINT_SLICE,
            ..CORE
        },
        Resource {
            group: "events.k8s.io",
            kind: "Event",
            plural: "events",
            singular: "event",
            stored: "events",
            short: &["ev"],
            view: Some(strategy::EVENTS_VIEW),
            selectable: EVENT_FIELDS,
            columns: table::EVENTS,
            decode: typed::<events::v1::Event>,
            ..CORE
        },
        Resource {
            group: "networking.k8s.io",
            kind: "NetworkPolicy",
            plural: "networkpolicies",
            singular: "networkpolicy",
            stored: "networkpolicies.networking.k8s.io",
            short: &["netpol"],
            generation: true,
            columns: table::NETWORK_POLICY,
            decode: typed::<NetworkPolicy>,
            strategy: strategy::NETWORK_POLICY,
            ..CORE
        },
        Resource {
            group: "node.k8s.io",
            kind: "RuntimeClass",
            plural: "runtimeclasses",
            singular: "runtimeclass",
            stored: "runtimeclasses.node.k8s.io",
            namespaced: false,
            columns: table::RUNTIME_CLASS,
            decode: typed::<RuntimeClass>,
            strategy: strategy::RUNTIME_CLASS,
            ..CORE
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete_and_distinct() {
        let mut seen = std::collections::BTreeSet::new();
        for row in rows() {
            for text in [row.kind, row.plural, row.singular, row.stored] {
                assert!(!text.is_empty(), "{}", row.plural);
            }
            assert!(seen.insert((row.group, row.plural)), "{} twice", row.plural);
        }
    }
}
