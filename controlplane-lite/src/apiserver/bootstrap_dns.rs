// SPDX-License-Identifier: Apache-2.0
//! The Service `kube-system/kube-dns`: how clients find cluster DNS, and why nobody else gets its
//! address. It has no endpoints. Every node answers at its address by itself, which a label tells
//! Service proxies to leave alone.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    api::Api,
    json::{list, text},
    registry, verbs,
};
use crate::store::{Change, Expect};

/// What stands in the label of a Service that is not the Service proxy's.
const SERVED_BY: &str = "podwright-dns";
const SERVED_BY_LABEL: &str = "/metadata/labels/service.kubernetes.io~1service-proxy-name";

/// Makes the Service, or, without addresses, removes ours, so that somebody else can make it. What
/// is somebody else's is left alone. A cluster works without it, so problems are only told.
pub(crate) async fn ensure(api: &Api, addresses: &[IpAddr]) {
    let row = registry::find("", "v1", "services").expect("bootstrapped kinds are in the table");
    let key = row.key("kube-system", "kube-dns");
    let stored = api.store.get(&key);
    let ours = |service: &Value| text(service, SERVED_BY_LABEL) == SERVED_BY;
    let usable = addresses.iter().copied();
    let usable: Vec<IpAddr> = usable.filter(|ip| api.ranges.have_usable(*ip)).collect();
    let is_right = |service: &Value| {
        let has = list(service, "/spec/clusterIPs").iter();
        let has = has.map(|ip| ip.as_str().and_then(|ip| ip.parse().ok()));
        ours(service) && has.eq(usable.iter().copied().map(Some))
    };
    if let Some(stored) = &stored {
        let service = stored.value();
        if is_right(&service) {
            return;
        }
        if !ours(&service) {
            if !addresses.is_empty() {
                tracing::warn!(
                    "the Service kube-system/kube-dns is somebody else's and stays; \
                     if its DNS is to serve the cluster, --disable dns"
                );
            }
            return;
        }
        let removed = api.store.commit(Change {
            key,
            expect: Expect::Revision(stored.revision()),
            guards: Vec::new(),
            put: None,
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "removing the Service kube-system/kube-dns");
            return;
        }
    }
    for address in addresses.iter().filter(|ip| !usable.contains(*ip)) {
        tracing::info!(%address, "cluster DNS has an address that no Service can have");
    }
    if usable.is_empty() {
        return;
    }
    let mut wanted = service(&usable);
    (row.strategy.default)(&mut wanted);
    if let Err(error) = verbs::store_new(api, row, wanted, false).await {
        let reason = error.message;
        tracing::warn!(addresses = ?usable, reason, "making the Service kube-system/kube-dns");
    }
}

/// With the labels that CoreDNS's has, which others select by. It has exactly these addresses: one that
/// the API server chose would be one that nobody serves.
fn service(addresses: &[IpAddr]) -> Value {
    let policy = if addresses.len() > 1 {
        "PreferDualStack"
    } else {
        "SingleStack"
    };
    let ips: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "targetPort": port});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
                "service.kubernetes.io/service-proxy-name": SERVED_BY,
            },
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ips.first(),
            "clusterIPs": ips,
            "ipFamilyPolicy": policy,
            "sessionAffinity": "None",
            "ports": [port("dns", "UDP", 53), port("dns-tcp", "TCP", 53), port("metrics", "TCP", 9153)],
        },
    })
}
