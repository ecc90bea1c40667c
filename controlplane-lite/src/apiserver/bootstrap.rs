// SPDX-License-Identifier: Apache-2.0
//! The objects that every cluster has: four namespaces, and the Service `default/kubernetes`
//! with the address of this server.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    api::Api,
    error::ApiError,
    json::{self, text},
    registry, verbs,
};
use crate::store::{Change, Draft, Expect};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing and corrects the address. Idempotent. On failure, says which object.
pub(crate) async fn ensure(api: &Api, advertise: SocketAddr) -> Result<(), (String, ApiError)> {
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure_object(api, ("", "namespaces"), namespace).await?;
    }
    let address = api.ranges.primary().nth(0).to_string();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": advertise.port()}],
        },
    });
    ensure_object(api, ("", "services"), service).await?;
    let ip = advertise.ip().to_string();
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": ip}],
            "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
        }],
    });
    ensure_object(api, ("", "endpoints"), endpoints).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
    });
    ensure_object(api, ("discovery.k8s.io", "endpointslices"), slice).await
}

async fn ensure_object(
    api: &Api,
    (group, plural): (&str, &str),
    mut wanted: Value,
) -> Result<(), (String, ApiError)> {
    let row = registry::find(group, "v1", plural).expect("bootstrapped kinds are in the table");
    let name = text(&wanted, "/metadata/name").to_owned();
    let what = format!("{plural} {name}");
    let fail = |error| (what.clone(), error);
    (row.strategy.default)(&mut wanted);
    let key = row.key(text(&wanted, "/metadata/namespace"), &name);
    let Some(stored) = api.store.get(&key) else {
        return match verbs::store_new(api, row, wanted, false).await {
            Err(error) if error.reason != "AlreadyExists" => Err(fail(error)),
            _ => Ok(()),
        };
    };
    // The address of this server may have changed since; nothing else is ours to correct.
    let mut new = stored.value();
    match plural {
        "endpoints" => json::put(&mut new, "subsets", wanted.get("subsets").cloned()),
        "endpointslices" => {
            json::put(&mut new, "endpoints", wanted.get("endpoints").cloned());
            json::put(&mut new, "ports", wanted.get("ports").cloned());
        }
        "services" => {
            let ports = wanted.pointer("/spec/ports").cloned();
            json::put(json::object(&mut new, "spec"), "ports", ports);
        }
        _ => {}
    }
    if new == stored.value() {
        return Ok(());
    }
    let change = Change {
        key,
        expect: Expect::Revision(stored.revision()),
        guards: Vec::new(),
        put: Some(Draft::encode(&new)),
    };
    let committed = api.store.commit(change).await;
    committed
        .map(drop)
        .map_err(|e| fail(ApiError::internal(&e)))
}
