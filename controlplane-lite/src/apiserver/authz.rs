// SPDX-License-Identifier: Apache-2.0
//! Who may do what: a small table of rules that is part of the program.
//!
//! There are no RBAC objects yet, so the rules cover exactly the cluster's own parts: admins,
//! kubelets, the service proxy and network policy, the scheduler and the controllers. Everybody else may read
//! discovery and nothing more. A kubelet may write its own node and lease, the status of pods
//! bound to it, mirror pods of its own, and events; it may read everything that the rules name.

use http::Method;
use serde_json::Value;

use super::{
    api::Api, authn::User, error::ApiError, json::text, registry, request::Target,
    resource::Resource,
};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch"];
const DELETE: &[&str] = &["delete", "deletecollection"];
const ALL: &[&str] = &["*"];

/// A rule: these verbs on these resources (`plural[.group][/subresource]`).
struct Rule {
    verbs: &'static [&'static [&'static str]],
    resources: &'static [&'static str],
}

const fn rule(
    verbs: &'static [&'static [&'static str]],
    resources: &'static [&'static str],
) -> Rule {
    Rule { verbs, resources }
}

const NODE: &[Rule] = &[
    rule(
        &[READ],
        &[
            "nodes",
            "pods",
            "services",
            "configmaps",
            "secrets",
            "serviceaccounts",
            "namespaces",
            "endpoints",
            "endpointslices.discovery.k8s.io",
            // An agent has one user for its kubelet and for what enforces policies.
            "networkpolicies.networking.k8s.io",
            "runtimeclasses.node.k8s.io",
            "leases.coordination.k8s.io",
            "events",
            "events.events.k8s.io",
        ],
    ),
    rule(
        &[WRITE],
        &[
            "nodes",
            "nodes/status",
            "leases.coordination.k8s.io",
            "events",
            "events.events.k8s.io",
        ],
    ),
    rule(&[&["create", "delete"]], &["pods"]),
    rule(&[&["update", "patch"]], &["pods/status"]),
];

const PROXY: &[Rule] = &[
    rule(
        &[READ],
        &[
            "nodes",
            "namespaces",
            "services",
            "endpoints",
            "endpointslices.discovery.k8s.io",
            "pods",
            "networkpolicies.networking.k8s.io",
        ],
    ),
    rule(&[WRITE], &["events", "events.events.k8s.io"]),
];

const SCHEDULER: &[Rule] = &[
    rule(
        &[READ],
        &[
            "nodes",
            "pods",
            "services",
            "namespaces",
            "replicasets.apps",
            "leases.coordination.k8s.io",
        ],
    ),
    rule(&[&["create"]], &["pods/binding"]),
    rule(&[&["update", "patch"]], &["pods/status"]),
    rule(&[&["delete"]], &["pods"]),
    rule(
        &[WRITE],
        &[
            "events",
            "events.events.k8s.io",
            "leases.coordination.k8s.io",
        ],
    ),
];

const CONTROLLERS: &[Rule] = &[
    rule(&[READ, WRITE, DELETE], &["*"]),
    rule(
        &[READ, WRITE],
        &["*/status", "*/scale", "namespaces/finalize"],
    ),
];

fn rules(user: &User) -> &'static [Rule] {
    match user.name.as_str() {
        _ if user.node().is_some() => NODE,
        "system:kube-proxy" => PROXY,
        "system:kube-scheduler" => SCHEDULER,
        "system:kube-controller-manager" => CONTROLLERS,
        _ => &[],
    }
}

fn is_master(user: &User) -> bool {
    user.is_in("system:masters")
}

fn resource_of(target: &Target) -> String {
    let mut name = target.plural.clone();
    if !target.group.is_empty() {
        name = format!("{name}.{}", target.group);
    }
    if !target.subresource.is_empty() {
        name = format!("{name}/{}", target.subresource);
    }
    name
}

fn covers(pattern: &str, resource: &str) -> bool {
    match pattern {
        "*" => !resource.contains('/'),
        _ => match pattern.strip_prefix("*/") {
            Some(sub) => resource
                .split_once('/')
                .is_some_and(|(_, found)| found == sub),
            None => pattern == resource,
        },
    }
}

fn allowed(rules: &[Rule], verb: &str, resource: &str) -> bool {
    rules.iter().any(|rule| {
        let mut verbs = rule.verbs.iter().flat_map(|v| v.iter());
        verbs.any(|v| *v == verb || *v == ALL[0])
            && rule.resources.iter().any(|p| covers(p, resource))
    })
}

/// Whether the user may do this to the resource.
pub(crate) fn check(api: &Api, user: &User, verb: &str, target: &Target) -> Result<(), ApiError> {
    if is_master(user) {
        return Ok(());
    }
    if !allowed(rules(user), verb, &resource_of(target)) {
        return Err(refuse(user, verb, target, ""));
    }
    match user.node() {
        Some(node) => check_node(api, user, node, verb, target),
        None => Ok(()),
    }
}

/// A kubelet may only write what is its own.
fn check_node(
    api: &Api,
    user: &User,
    node: &str,
    verb: &str,
    target: &Target,
) -> Result<(), ApiError> {
    if READ.contains(&verb) {
        return Ok(());
    }
    let own = match (target.plural.as_str(), verb) {
        ("nodes", "create") => true,
        ("nodes", _) => target.name == node,
        ("leases", _) if target.namespace != "kube-node-lease" => false,
        ("leases", "create") => true,
        ("leases", _) => target.name == node,
        ("pods", "create") => true,
        ("pods", _) => {
            let row = registry::core_row("pods");
            let pod = api.store.get(&row.key(&target.namespace, &target.name));
            // What is not there is answered with 404 by the verb itself.
            pod.is_none_or(|pod| pod.header().field("spec.nodeName") == node)
        }
        _ => true,
    };
    if own {
        return Ok(());
    }
    Err(refuse(
        user,
        verb,
        target,
        ": a node may only change what belongs to it",
    ))
}

/// A kubelet may only create itself, its lease, and mirror pods bound to it.
pub(crate) fn check_new(user: &User, row: &Resource, object: &Value) -> Result<(), ApiError> {
    let Some(node) = user.node().filter(|_| !is_master(user)) else {
        return Ok(());
    };
    let name = text(object, "/metadata/name");
    let why = match row.plural {
        "nodes" | "leases" if name != node => "a node may only create objects with its own name",
        "pods" if text(object, "/spec/nodeName") != node => {
            "a node may only create pods that are bound to it"
        }
        "pods"
            if object
                .pointer("/metadata/annotations/kubernetes.io~1config.mirror")
                .is_none() =>
        {
            "a node may only create mirror pods"
        }
        _ => return Ok(()),
    };
    let why = format!("node \"{node}\": {why}");
    Err(ApiError::forbidden(row.group, row.plural, name, &why))
}

/// Closes the gap between [`check`] and the change: the pod may have been replaced.
pub(crate) fn check_change(user: &User, row: &Resource, old: &Value) -> Result<(), ApiError> {
    let Some(node) = user.node().filter(|_| !is_master(user)) else {
        return Ok(());
    };
    if row.plural == "pods" && text(old, "/spec/nodeName") != node {
        let why = format!("node \"{node}\": the pod is not bound to it");
        let name = text(old, "/metadata/name");
        return Err(ApiError::forbidden(row.group, row.plural, name, &why));
    }
    Ok(())
}

fn refuse(user: &User, verb: &str, target: &Target, more: &str) -> ApiError {
    let mut resource = target.plural.clone();
    if !target.subresource.is_empty() {
        resource = format!("{resource}/{}", target.subresource);
    }
    let place = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", target.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}{more}",
        user.name, target.group
    );
    ApiError::forbidden(&target.group, &target.plural, &target.name, &why)
}

/// Whether the user may ask for a path that is not a resource. Discovery is for everybody.
pub(crate) fn check_path(user: &User, method: &Method, path: &str) -> Result<(), ApiError> {
    let discovery = [
        "/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz",
    ];
    let readable = *method == Method::GET || *method == Method::HEAD;
    let open = discovery.iter().any(|p| {
        path.strip_prefix(p)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    if is_master(user) || (readable && open) {
        return Ok(());
    }
    Err(ApiError::forbidden_path(&format!(
        "User \"{}\" cannot {} path \"{path}\"",
        user.name,
        method.as_str().to_lowercase()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_what_they_name_and_nothing_else() {
        assert!(allowed(NODE, "patch", "pods/status"));
        assert!(allowed(NODE, "delete", "pods"));
        assert!(!allowed(NODE, "patch", "pods"));
        assert!(!allowed(NODE, "create", "secrets"));
        assert!(allowed(NODE, "get", "runtimeclasses.node.k8s.io"));
        assert!(!allowed(NODE, "create", "runtimeclasses.node.k8s.io"));
        assert!(allowed(SCHEDULER, "create", "pods/binding"));
        assert!(!allowed(SCHEDULER, "get", "secrets"));
        assert!(allowed(CONTROLLERS, "delete", "pods"));
        assert!(allowed(CONTROLLERS, "update", "deployments.apps/status"));
        assert!(!allowed(CONTROLLERS, "create", "pods/exec"));
        assert!(!allowed(PROXY, "list", "secrets"));
        assert!(allowed(PROXY, "watch", "networkpolicies.networking.k8s.io"));
        assert!(!allowed(PROXY, "update", "pods"));
    }
}
