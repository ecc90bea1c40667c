// SPDX-License-Identifier: Apache-2.0
//! Cluster addresses and node ports.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use super::host::Host;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    if object["spec"].get("ports").is_none() {
        object["spec"]["ports"] = json!([{"port": 80}]);
    }
    object
}

#[tokio::test]
async fn addresses_and_ports_are_given_kept_and_released() {
    let host = Host::start().await;
    let (_, kubernetes) = host.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let made = host
        .create(SERVICES, service("a", json!({"type": "NodePort"})))
        .await;
    let (address, port) = (
        &made["spec"]["clusterIP"],
        &made["spec"]["ports"][0]["nodePort"],
    );
    assert!(
        address.as_str().is_some_and(|a| a.starts_with("10.43.0.")),
        "{made}"
    );
    assert!(
        port.as_i64()
            .is_some_and(|p| (30_000..=32_767).contains(&p)),
        "{made}"
    );
    assert_eq!(made["spec"]["ports"][0]["targetPort"], 80);

    // An update that does not know about allocations keeps them.
    let path = format!("{SERVICES}/a");
    let (code, kept) = host
        .send(
            Method::PUT,
            &path,
            service("a", json!({"type": "NodePort", "selector": {"x": "y"}})),
        )
        .await;
    assert_eq!(code, 200, "{kept}");
    assert_eq!(
        (
            &kept["spec"]["clusterIP"],
            &kept["spec"]["ports"][0]["nodePort"]
        ),
        (address, port)
    );
    // Another cannot take them.
    let taken = service("b", json!({"clusterIP": address}));
    let (code, error) = host.send(Method::POST, SERVICES, taken.clone()).await;
    assert_eq!(code, 422, "{error}");
    // A change of type releases the port.
    let (_, plain) = host
        .send(
            Method::PUT,
            &path,
            service("a", json!({"type": "ClusterIP"})),
        )
        .await;
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    let again = service(
        "c",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]}),
    );
    host.create(SERVICES, again).await;
    // A deletion releases the address.
    host.send(Method::DELETE, &path, Value::Null).await;
    host.create(SERVICES, taken).await;
    host.stop().await;
}

#[tokio::test]
async fn concurrent_services_never_share_an_address() {
    let host = Host::start().await;
    let creating = (0..40).map(|n| {
        let host = &host;
        async move {
            host.create(
                SERVICES,
                service(&format!("s{n}"), json!({"type": "NodePort"})),
            )
            .await
        }
    });
    let made = futures::future::join_all(creating).await;
    let addresses: BTreeSet<_> = made
        .iter()
        .map(|s| s["spec"]["clusterIP"].to_string())
        .collect();
    let ports: BTreeSet<_> = made
        .iter()
        .map(|s| s["spec"]["ports"][0]["nodePort"].to_string())
        .collect();
    assert_eq!((addresses.len(), ports.len()), (40, 40));
    host.stop().await;
}

#[tokio::test]
async fn headless_and_external_services_have_no_address() {
    let host = Host::start().await;
    let made = host
        .create(SERVICES, service("h", json!({"clusterIP": "None"})))
        .await;
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    let made = host
        .create(
            SERVICES,
            service(
                "e",
                json!({"type": "ExternalName", "externalName": "example.com"}),
            ),
        )
        .await;
    assert_eq!(made["spec"].get("clusterIP"), None);
    let (code, changed) = host
        .patch(
            &format!("{SERVICES}/e"),
            "merge-patch",
            json!({"spec": {"type": "ClusterIP", "externalName": null}}),
        )
        .await;
    assert_eq!(code, 200, "{changed}");
    assert!(changed["spec"]["clusterIP"].is_string());
    host.stop().await;
}
