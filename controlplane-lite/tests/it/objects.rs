// SPDX-License-Identifier: Apache-2.0
//! Create, update, patch, delete.

use http::Method;
use serde_json::{Value, json};

use super::host::Host;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "x:1"}]}})
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let host = Host::start().await;
    let made = host.create(MAPS, map("m")).await;
    assert!(made["metadata"]["uid"].is_string());
    let (code, error) = host.send(Method::POST, MAPS, map("m")).await;
    assert_eq!((code, &error["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(error["message"], "configmaps \"m\" already exists");

    let mut new = made.clone();
    new["data"]["a"] = "c".into();
    let path = format!("{MAPS}/m");
    let (code, changed) = host.send(Method::PUT, &path, new.clone()).await;
    assert_eq!((code, &changed["data"]["a"]), (200, &json!("c")));
    new["data"]["a"] = "d".into();
    let (code, error) = host.send(Method::PUT, &path, new).await;
    assert_eq!(code, 409);
    assert_eq!(
        error["message"],
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // A change that changes nothing is no change.
    let (_, same) = host
        .patch(&path, "merge-patch", json!({"data": {"a": "c"}}))
        .await;
    assert_eq!(
        same["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"]
    );

    let (code, status) = host.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")));
    let (code, error) = host.get(&path).await;
    assert_eq!(
        (code, &error["message"]),
        (404, &json!("configmaps \"m\" not found"))
    );
    host.stop().await;
}

#[tokio::test]
async fn every_kind_of_patch_is_applied() {
    let host = Host::start().await;
    host.create(PODS, pod("p")).await;
    let path = format!("{PODS}/p");
    let merge = json!({"metadata": {"labels": {"a": "1"}}});
    let (code, new) = host.patch(&path, "merge-patch", merge).await;
    assert_eq!((code, &new["metadata"]["labels"]["a"]), (200, &json!("1")));
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "x:2"}]}});
    let (code, new) = host.patch(&path, "strategic-merge-patch", strategic).await;
    assert_eq!(
        (code, &new["spec"]["containers"][0]["image"]),
        (200, &json!("x:2"))
    );
    assert_eq!(new["metadata"]["generation"], 2);
    let steps = json!([{"op": "test", "path": "/metadata/labels/a", "value": "1"},
        {"op": "remove", "path": "/metadata/labels/a"}]);
    let (code, new) = host.patch(&path, "json-patch", steps.clone()).await;
    assert_eq!(
        (code, new["metadata"].get("labels").and_then(|l| l.get("a"))),
        (200, None)
    );
    let (code, _) = host.patch(&path, "json-patch", steps).await;
    assert_eq!(code, 422);
    let (code, error) = host.patch(&path, "apply-patch", json!({})).await;
    assert_eq!(code, 415, "{error}");
    let forbidden = json!({"spec": {"hostNetwork": true}});
    let (code, error) = host.patch(&path, "merge-patch", forbidden).await;
    assert_eq!((code, &error["reason"]), (422, &json!("Invalid")));
    host.stop().await;
}

#[tokio::test]
async fn mistakes_are_named_by_path() {
    let host = Host::start().await;
    let mut wrong = pod("p");
    wrong["spec"]["foo"] = 1.into();
    let strict = format!("{PODS}?fieldValidation=Strict");
    let (code, error) = host.send(Method::POST, &strict, wrong.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(
        error["message"],
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
    );
    wrong["spec"] =
        json!({"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": "http"}]}]});
    let (code, error) = host.send(Method::POST, PODS, wrong.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(
        error["message"],
        "Pod in version \"v1\" cannot be handled as a Pod: spec.containers[0].ports[0].containerPort: expected i32, got string \"http\""
    );
    wrong["spec"] = json!({});
    let (code, error) = host.send(Method::POST, PODS, wrong).await;
    assert_eq!(code, 422);
    assert_eq!(
        error["message"],
        "Pod \"p\" is invalid: spec.containers: Required value"
    );
    assert_eq!(error["details"]["causes"][0]["field"], "spec.containers");
    let (code, error) = host
        .send(Method::POST, "/api/v1/namespaces/nope/pods", pod("p"))
        .await;
    assert_eq!(
        (code, &error["message"]),
        (404, &json!("namespaces \"nope\" not found"))
    );
    host.stop().await;
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let host = Host::start().await;
    host.create(&format!("{MAPS}?dryRun=All"), map("m")).await;
    assert_eq!(host.get(&format!("{MAPS}/m")).await.0, 404);
    host.stop().await;
}

#[tokio::test]
async fn a_bound_pod_gets_its_grace_and_finalizers_hold() {
    let host = Host::start().await;
    let mut bound = pod("bound");
    bound["spec"]["nodeName"] = "n".into();
    host.create(PODS, bound).await;
    let path = format!("{PODS}/bound");
    let (code, going) = host.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(
        (code, &going["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(30))
    );
    let (_, still) = host.get(&path).await;
    assert!(still["metadata"]["deletionTimestamp"].is_string());
    host.send(Method::DELETE, &path, json!({"gracePeriodSeconds": 0}))
        .await;
    assert_eq!(host.get(&path).await.0, 404);

    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    host.create(MAPS, held).await;
    let path = format!("{MAPS}/held");
    host.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(host.get(&path).await.0, 200);
    let (code, _) = host
        .patch(
            &path,
            "merge-patch",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(code, 200);
    assert_eq!(host.get(&path).await.0, 404);
    let wrong_uid = json!({"preconditions": {"uid": "x"}});
    host.create(MAPS, map("m")).await;
    let (code, _) = host
        .send(Method::DELETE, &format!("{MAPS}/m"), wrong_uid)
        .await;
    assert_eq!(code, 409);
    host.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_through_its_phases() {
    let host = Host::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    let made = host.create("/api/v1/namespaces", namespace).await;
    assert_eq!(made["status"]["phase"], "Active");
    host.send(Method::DELETE, "/api/v1/namespaces/n", Value::Null)
        .await;
    let (_, mut going) = host.get("/api/v1/namespaces/n").await;
    assert_eq!(going["status"]["phase"], "Terminating");
    let (code, error) = host
        .send(Method::POST, "/api/v1/namespaces/n/configmaps", map("m"))
        .await;
    assert_eq!(code, 403);
    assert_eq!(
        error["message"],
        "configmaps \"m\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    going["spec"]["finalizers"] = json!([]);
    host.send(Method::PUT, "/api/v1/namespaces/n/finalize", going)
        .await;
    assert_eq!(host.get("/api/v1/namespaces/n").await.0, 404);
    host.stop().await;
}

#[tokio::test]
async fn status_and_scale_change_only_their_part() {
    let host = Host::start().await;
    let base = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    host.create(base, deployment).await;
    let status =
        json!({"spec": {"replicas": 9}, "status": {"replicas": 1, "observedGeneration": 1}});
    let (code, new) = host
        .patch(&format!("{base}/d/status"), "merge-patch", status)
        .await;
    assert_eq!(
        (code, &new["spec"]["replicas"], &new["status"]["replicas"]),
        (200, &json!(1), &json!(1))
    );
    assert_eq!(new["metadata"]["generation"], 1);
    let scale = json!({"spec": {"replicas": 4}});
    let (code, new) = host
        .patch(&format!("{base}/d/scale"), "merge-patch", scale)
        .await;
    assert_eq!(
        (code, &new["kind"], &new["status"]["selector"]),
        (200, &json!("Scale"), &json!("a=b"))
    );
    let (_, new) = host.get(&format!("{base}/d")).await;
    assert_eq!(
        (&new["spec"]["replicas"], &new["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    host.stop().await;
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let host = Host::start().await;
    host.create(PODS, pod("p")).await;
    let binding = |node: &str| {
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": node}})
    };
    host.create(&format!("{PODS}/p/binding"), binding("n"))
        .await;
    let (_, bound) = host.get(&format!("{PODS}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, error) = host
        .send(Method::POST, &format!("{PODS}/p/binding"), binding("m"))
        .await;
    assert_eq!(code, 409);
    assert_eq!(
        error["message"],
        "Operation cannot be fulfilled on pods \"p\": pod p is already assigned to node \"n\""
    );
    host.stop().await;
}

#[tokio::test]
async fn events_are_the_same_in_both_groups() {
    let host = Host::start().await;
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
        "regarding": {"kind": "Pod", "name": "p"}, "note": "hello", "reason": "R", "type": "Normal",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "a"});
    let made = host
        .create("/apis/events.k8s.io/v1/namespaces/default/events", event)
        .await;
    assert_eq!(made["note"], "hello");
    let (_, list) = host
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Dp,type!%3DWarning")
        .await;
    assert_eq!(list["items"][0]["message"], "hello");
    host.stop().await;
}
