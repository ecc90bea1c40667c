// SPDX-License-Identifier: Apache-2.0
//! Who may do what.

use http::Method;
use serde_json::{Value, json};

use super::host::{Host, send};

#[tokio::test]
async fn a_node_writes_what_is_its_own() {
    let host = Host::start().await;
    let node = host.node_client("n1").await;
    let object =
        |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let post =
        |path: &'static str, body: Value| send(&node, Method::POST, path, "application/json", body);
    assert_eq!(post("/api/v1/nodes", object("n1")).await.0, 201);
    assert_eq!(post("/api/v1/nodes", object("n2")).await.0, 403);

    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, on: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": on, "containers": [{"name": "c", "image": "x"}]}})
    };
    host.create(pods, pod("mine", "n1")).await;
    host.create(pods, pod("other", "n2")).await;
    let status = json!({"status": {"phase": "Running"}});
    for (name, expected) in [("mine", 200), ("other", 403)] {
        let path = format!("{pods}/{name}/status");
        let kind = "application/strategic-merge-patch+json";
        let (code, answer) = send(&node, Method::PATCH, &path, kind, status.clone()).await;
        assert_eq!(code, expected, "{answer}");
    }
    let (code, error) = post("/api/v1/namespaces/default/secrets", json!({})).await;
    assert_eq!(code, 403);
    assert_eq!(
        error["message"],
        "secrets is forbidden: User \"system:node:n1\" cannot create resource \"secrets\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(
        post("/api/v1/namespaces/default/pods", pod("new", "n1"))
            .await
            .0,
        403
    );
    host.stop().await;
}

#[tokio::test]
async fn strangers_see_only_health_and_version() {
    let host = Host::start().await;
    let admin =
        std::fs::read_to_string(host.dir.path().join("server/kubeconfig.yaml")).expect("a file");
    let stripped: String = admin
        .lines()
        .filter(|l| !l.contains("client-"))
        .map(|l| format!("{l}\n"))
        .collect();
    let stripped = stripped.replace("  user:\n", "  user: {}\n");
    let path = host.dir.path().join("stranger.yaml");
    std::fs::write(&path, stripped).expect("a file");
    let stranger = super::host::client(&path).await;
    for (path, expected) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api/v1/pods", 401),
        ("/api", 401),
    ] {
        let (code, _) = send(
            &stranger,
            Method::GET,
            path,
            "application/json",
            Value::Null,
        )
        .await;
        assert_eq!(code, expected, "{path}");
    }
    host.stop().await;
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    let host = Host::start().await;
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (code, error) = host.send(Method::POST, token, json!({})).await;
    assert_eq!(code, 403);
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|m| m.contains("does not issue tokens")),
        "{error}"
    );
    let big = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(4 << 20)}});
    let (code, _) = host
        .send(Method::POST, "/api/v1/namespaces/default/configmaps", big)
        .await;
    assert_eq!(code, 413);
    host.stop().await;
}
