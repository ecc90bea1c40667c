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

/// Ranges of both families, and cluster DNS in both.
async fn dual_host(dir: tempfile::TempDir) -> Host {
    Host::start_with(dir, |config| {
        config.service_cidr = "10.43.0.0/24,fd43::/108".to_owned();
        let dns = ["10.43.0.10", "fd43::a"];
        config.cluster_dns = dns.map(|ip| ip.parse().expect("an address")).to_vec();
    })
    .await
}

#[tokio::test]
async fn addresses_of_both_families_are_kept_over_restarts_and_given_back() {
    let host = dual_host(tempfile::tempdir().expect("a folder")).await;
    let (_, kubernetes) = host.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIPs"], json!(["10.43.0.1"]));
    assert_eq!(kubernetes["spec"]["ipFamilyPolicy"], "SingleStack");
    let dns_path = "/api/v1/namespaces/kube-system/services/kube-dns";
    let (_, dns) = host.get(dns_path).await;
    assert_eq!(dns["spec"]["clusterIPs"], json!(["10.43.0.10", "fd43::a"]));
    assert_eq!(dns["spec"]["ipFamilyPolicy"], "PreferDualStack");

    let spec = json!({"ipFamilyPolicy": "RequireDualStack"});
    let made = host.create(SERVICES, service("a", spec)).await;
    let ips = made["spec"]["clusterIPs"].clone();
    let [v4, v6] = [0, 1].map(|n| ips[n].as_str().unwrap_or_default().to_owned());
    assert!(
        v4.starts_with("10.43.0.") && v6.starts_with("fd43::"),
        "{made}"
    );

    // Neither can be had by another, also not after a restart, until it is given back.
    let host = dual_host(host.stop().await).await;
    let (_, after) = host.get(dns_path).await;
    assert_eq!(after["metadata"]["uid"], dns["metadata"]["uid"]);
    let takes = |name: &str, ip: &str| service(name, json!({"clusterIP": ip}));
    for ip in [&v4, &v6] {
        let (code, error) = host.send(Method::POST, SERVICES, takes("b", ip)).await;
        assert_eq!(code, 422, "{error}");
        let words = format!("failed to allocate IP {ip}: provided IP is already allocated");
        assert!(error["message"].to_string().contains(&words), "{error}");
    }
    let path = format!("{SERVICES}/a");
    let patch = |policy: &str| json!({"spec": {"ipFamilyPolicy": policy}});
    let (code, single) = host
        .patch(&path, "strategic-merge-patch", patch("SingleStack"))
        .await;
    assert_eq!(code, 200, "{single}");
    assert_eq!(single["spec"]["clusterIPs"], json!([v4]));
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    let other = host.create(SERVICES, takes("b", &v6)).await;
    assert_eq!(other["spec"]["ipFamilies"], json!(["IPv6"]));
    let (code, again) = host
        .patch(&path, "merge-patch", patch("PreferDualStack"))
        .await;
    assert_eq!(code, 200, "{again}");
    assert_eq!(again["spec"]["clusterIPs"][0], v4);
    assert_ne!(again["spec"]["clusterIPs"][1], v6);
    host.send(Method::DELETE, &path, Value::Null).await;
    host.create(SERVICES, takes("c", &v4)).await;
    host.stop().await;
}

#[tokio::test]
async fn cluster_dns_follows_its_addresses() {
    let host = dual_host(tempfile::tempdir().expect("a folder")).await;
    let dir = host.stop().await;
    let host = Host::start_with(dir, |config| {
        config.service_cidr = "10.43.0.0/24,fd43::/108".to_owned();
        config.cluster_dns = vec!["fd43::a".parse().expect("an address")];
    })
    .await;
    let (_, dns) = host
        .get("/api/v1/namespaces/kube-system/services/kube-dns")
        .await;
    assert_eq!(dns["spec"]["clusterIPs"], json!(["fd43::a"]));
    assert_eq!(dns["spec"]["ipFamilyPolicy"], "SingleStack");
    host.stop().await;
}
