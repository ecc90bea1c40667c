// SPDX-License-Identifier: Apache-2.0
//! Lists: pages, selectors, tables, discovery.

use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use super::host::Host;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn fill(host: &Host, count: usize) {
    for n in 0..count {
        let parity = if n % 2 == 0 { "even" } else { "odd" };
        let map = json!({"metadata": {"name": format!("m{n}"), "labels": {"parity": parity}}});
        host.create(MAPS, map).await;
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items
        .iter()
        .map(|i| i["metadata"]["name"].as_str().expect("a name"))
        .collect()
}

#[tokio::test]
async fn pages_show_one_moment() {
    let host = Host::start().await;
    fill(&host, 5).await;
    let (_, first) = host.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["m0", "m1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    host.send(Method::DELETE, &format!("{MAPS}/m2"), Value::Null)
        .await;
    host.create(MAPS, json!({"metadata": {"name": "m3a"}}))
        .await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let (_, rest) = host.get(&format!("{MAPS}?continue={token}")).await;
    assert_eq!(names(&rest), ["m2", "m3", "m4"]);
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let (code, _) = host.get(&format!("{MAPS}?continue=nonsense")).await;
    assert_eq!(code, 400);
    host.stop().await;
}

#[tokio::test]
async fn selectors_select() {
    let host = Host::start().await;
    fill(&host, 4).await;
    let (_, list) = host
        .get(&format!("{MAPS}?labelSelector=parity%20in%20(odd)"))
        .await;
    assert_eq!(names(&list), ["m1", "m3"]);
    let (_, list) = host
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm2"))
        .await;
    assert_eq!(names(&list), ["m2"]);
    let (code, error) = host.get(&format!("{MAPS}?fieldSelector=data.x%3Dy")).await;
    assert_eq!(
        (code, &error["message"]),
        (400, &json!("field label not supported: data.x"))
    );
    let (code, _) = host
        .send(
            Method::DELETE,
            &format!("{MAPS}?labelSelector=parity%3Deven"),
            Value::Null,
        )
        .await;
    assert_eq!(code, 200);
    let (_, list) = host.get(MAPS).await;
    assert_eq!(names(&list), ["m1", "m3"]);
    host.stop().await;
}

#[tokio::test]
async fn a_table_is_shown_when_asked_for() {
    let host = Host::start().await;
    fill(&host, 1).await;
    let request = Request::get(MAPS)
        .header(
            "accept",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .body(Vec::new())
        .expect("a request");
    let text = host.client.request_text(request).await.expect("a table");
    let table: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][1]["name"], "Data");
    assert_eq!(table["rows"][0]["cells"][0], "m0");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let request = Request::get(MAPS)
        .header("accept", "application/vnd.kubernetes.protobuf")
        .body(Body::empty())
        .expect("a request");
    let refused = host.client.send(request).await.expect("an answer");
    assert_eq!(refused.status(), 406);
    host.stop().await;
}

#[tokio::test]
async fn discovery_lists_every_kind() {
    let host = Host::start().await;
    let (_, groups) = host.get("/apis").await;
    assert_eq!(groups["groups"].as_array().map(Vec::len), Some(6));
    let (_, core) = host.get("/api/v1").await;
    let resources = core["resources"].as_array().expect("resources");
    for name in [
        "pods",
        "pods/log",
        "pods/exec",
        "namespaces/finalize",
        "services",
        "nodes/status",
    ] {
        assert!(resources.iter().any(|r| r["name"] == name), "{name}");
    }
    let (_, version) = host.get("/version").await;
    assert_eq!(
        (&version["major"], &version["minor"]),
        (&json!("1"), &json!("37"))
    );
    assert_eq!(host.get("/apis/nope/v1").await.0, 404);
    assert_eq!(host.get("/readyz").await, (200, json!("ok")));
    host.stop().await;
}
