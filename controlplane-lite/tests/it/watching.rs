// SPDX-License-Identifier: Apache-2.0
//! Watches: resuming, selectors, the initial state, expiry.

use http::Method;
use serde_json::{Value, json};

use super::host::Host;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": label}}})
}

fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_resumes_where_it_left_off_even_after_a_restart() {
    let host = Host::start().await;
    let first = host.create(MAPS, map("a", "1")).await;
    host.create(MAPS, map("b", "1")).await;
    host.send(Method::DELETE, &format!("{MAPS}/a"), Value::Null)
        .await;
    let revision = first["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision")
        .to_owned();
    let path = format!("{MAPS}?watch=true&resourceVersion={revision}");
    let mut watch = host.watch(&path).await;
    assert_eq!(watch.brief().await, event("ADDED", "b"));
    assert_eq!(watch.brief().await, event("DELETED", "a"));
    drop(watch);
    let host = Host::start_in(host.stop().await).await;
    let mut watch = host.watch(&path).await;
    assert_eq!(watch.brief().await, event("ADDED", "b"));
    assert_eq!(watch.brief().await, event("DELETED", "a"));
    host.create(MAPS, map("c", "1")).await;
    assert_eq!(watch.brief().await, event("ADDED", "c"));
    drop(watch);
    host.stop().await;
}

#[tokio::test]
async fn an_object_enters_and_leaves_a_selector() {
    let host = Host::start().await;
    let mut watch = host
        .watch(&format!("{MAPS}?watch=1&labelSelector=l%3Dyes"))
        .await;
    host.create(MAPS, map("m", "no")).await;
    let path = format!("{MAPS}/m");
    for (label, expected) in [("yes", "ADDED"), ("no", "DELETED"), ("yes", "ADDED")] {
        let (_, new) = host
            .patch(
                &path,
                "merge-patch",
                json!({"metadata": {"labels": {"l": label}}}),
            )
            .await;
        let (kind, object) = watch.next().await.expect("an event");
        assert_eq!(kind, expected);
        assert_eq!(
            object["metadata"]["resourceVersion"],
            new["metadata"]["resourceVersion"]
        );
    }
    host.patch(&path, "merge-patch", json!({"data": {"x": "y"}}))
        .await;
    assert_eq!(watch.brief().await, event("MODIFIED", "m"));
    drop(watch);
    host.stop().await;
}

#[tokio::test]
async fn a_watch_can_begin_with_the_state_and_says_where_it_ends() {
    let host = Host::start().await;
    host.create(MAPS, map("m", "1")).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = host.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.brief().await, event("ADDED", "m"));
    let (kind, object) = watch.next().await.expect("a bookmark");
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(watch.next().await, None, "the watch ends after its time");
    host.stop().await;
}

#[tokio::test]
async fn a_watch_of_one_object_shows_only_that() {
    let host = Host::start().await;
    host.create(MAPS, map("m", "1")).await;
    host.create(MAPS, map("n", "1")).await;
    let mut watch = host.watch(&format!("{MAPS}/n?watch=1")).await;
    assert_eq!(watch.brief().await, event("ADDED", "n"));
    drop(watch);
    host.stop().await;
}
