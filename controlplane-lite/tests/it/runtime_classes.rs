// SPDX-License-Identifier: Apache-2.0
//! RuntimeClasses, and the pods that name one.

use http::Method;
use serde_json::{Value, json};

use super::host::{self, Host};

const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn class(name: &str, more: Value) -> Value {
    let mut class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": name}, "handler": "crun"});
    let more = more.as_object().cloned().expect("an object");
    class.as_object_mut().expect("an object").extend(more);
    class
}

fn pod(name: &str, class: &str, overhead: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"runtimeClassName": class, "containers": [{"name": "c", "image": "x:1"}]}});
    if !overhead.is_null() {
        pod["spec"]["overhead"] = overhead;
    }
    pod
}

#[tokio::test]
async fn a_class_lives_from_create_to_delete_and_keeps_its_handler() {
    let host = Host::start().await;
    let mut watch = host.watch(&format!("{CLASSES}?watch=true")).await;
    host.create(CLASSES, class("a", json!({}))).await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()));
    let path = format!("{CLASSES}/a");
    let (code, error) = host
        .patch(&path, "merge-patch", json!({"handler": "runc"}))
        .await;
    assert_eq!(code, 422, "{error}");
    assert_eq!(
        error["message"],
        "RuntimeClass.node.k8s.io \"a\" is invalid: handler: Invalid value: \"runc\": field is immutable"
    );
    let overhead = json!({"overhead": {"podFixed": {"cpu": "10m"}}});
    let (code, changed) = host.patch(&path, "merge-patch", overhead).await;
    assert_eq!(
        (code, &changed["overhead"]["podFixed"]["cpu"]),
        (200, &json!("10m"))
    );
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "a".into()));
    let (code, error) = host
        .send(Method::POST, CLASSES, class("b", json!({"handler": "A/B"})))
        .await;
    assert_eq!(code, 422, "{error}");
    assert_eq!(error["details"]["causes"][0]["field"], "handler");

    // A node reads classes and changes none.
    let node = host.node_client("n").await;
    let json = "application/json";
    let (code, list) = host::send(&node, Method::GET, CLASSES, json, Value::Null).await;
    assert_eq!(
        (code, list["items"].as_array().map(Vec::len)),
        (200, Some(1))
    );
    let (code, _) = host::send(&node, Method::DELETE, &path, json, Value::Null).await;
    assert_eq!(code, 403);

    let (code, _) = host.send(Method::DELETE, CLASSES, Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(watch.brief().await, ("DELETED".into(), "a".into()));
    host.stop().await;
}

#[tokio::test]
async fn a_pod_gets_what_its_class_says_or_is_refused() {
    let host = Host::start().await;
    let small = json!({"overhead": {"podFixed": {"cpu": "10m", "memory": "1Mi"}},
        "scheduling": {"nodeSelector": {"kubernetes.io/os": "linux"}}});
    host.create(CLASSES, class("small", small)).await;
    host.create(CLASSES, class("plain", json!({}))).await;
    let made = host.create(PODS, pod("p", "small", Value::Null)).await;
    assert_eq!(
        made["spec"]["overhead"],
        json!({"cpu": "10m", "memory": "1Mi"})
    );
    assert_eq!(made["spec"]["nodeSelector"]["kubernetes.io/os"], "linux");
    let made = host.create(PODS, pod("q", "plain", Value::Null)).await;
    assert_eq!(made["spec"].get("overhead"), None);

    let cpu = || json!({"cpu": "1"});
    for (class, overhead, why) in [
        (
            "gone",
            Value::Null,
            "pod rejected: RuntimeClass \"gone\" not found",
        ),
        (
            "small",
            cpu(),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            "plain",
            cpu(),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
    ] {
        let (code, error) = host
            .send(Method::POST, PODS, pod("r", class, overhead))
            .await;
        let expected = format!("pods \"r\" is forbidden: {why}");
        assert_eq!((code, &error["message"]), (403, &json!(expected)));
    }

    // A pod outlives its class; the next one of the same name is refused.
    let path = format!("{CLASSES}/small");
    host.send(Method::DELETE, &path, Value::Null).await;
    let (code, _) = host
        .patch(
            &format!("{PODS}/p"),
            "merge-patch",
            json!({"metadata": {"labels": {"a": "b"}}}),
        )
        .await;
    assert_eq!(code, 200);
    let mut generated = pod("", "small", Value::Null);
    generated["metadata"] = json!({"generateName": "web-"});
    let (code, error) = host.send(Method::POST, PODS, generated).await;
    assert_eq!(code, 403);
    assert_eq!(
        error["message"],
        "pods \"web-\" is forbidden: pod rejected: RuntimeClass \"small\" not found"
    );
    host.stop().await;
}
