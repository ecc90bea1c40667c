// SPDX-License-Identifier: Apache-2.0
//! Tables of environments: what a container says, and what its process sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::json;

use super::*;

/// Objects in memory. A fake that behaves: absent names are not found.
#[derive(Default)]
struct InMemory {
    config_maps: BTreeMap<String, Arc<ConfigMap>>,
    secrets: BTreeMap<String, Arc<Secret>>,
    services: BTreeMap<String, Arc<Vec<Service>>>,
}

impl Objects for InMemory {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<ConfigMap>> {
        let object = self.config_maps.get(name).cloned();
        let name = name.to_owned();
        let kind = "configmap";
        Box::pin(async move { object.ok_or(ObjectError::NotFound { kind, name }) })
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<Secret>> {
        let object = self.secrets.get(name).cloned();
        let name = name.to_owned();
        let kind = "secret";
        Box::pin(async move { object.ok_or(ObjectError::NotFound { kind, name }) })
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> ObjectFuture<'a, Arc<RuntimeClass>> {
        let (kind, name) = ("runtimeclass.node.k8s.io", name.to_owned());
        Box::pin(async move { Err(ObjectError::NotFound { kind, name }) })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> ObjectFuture<'a, Arc<Vec<Service>>> {
        let list = self.services.get(namespace).cloned().unwrap_or_default();
        Box::pin(async move { Ok(list) })
    }
}

fn cluster() -> InMemory {
    let map = json!({"data": {"color": "blue", "size": "9"}});
    let secret = json!({"data": {"password": "aHVudGVy"}});
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.43.0.1", "ports": [{"port": 443}]}});
    let parse = |value| serde_json::from_value::<Service>(value).expect("a service");
    InMemory {
        config_maps: [("cm".into(), from(map))].into(),
        secrets: [("sec".into(), from(secret))].into(),
        services: [
            (
                "default".into(),
                Arc::new(vec![parse(service("kubernetes")), parse(service("other"))]),
            ),
            ("ns".into(), Arc::new(vec![parse(service("db"))])),
        ]
        .into(),
    }
}

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

async fn environment(container: serde_json::Value, links: bool) -> Result<Vec<String>, String> {
    let container: Container = serde_json::from_value(container).expect("a container");
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"},
        "spec": {"enableServiceLinks": links, "containers": []}}))
    .expect("a pod");
    let node = NodeFacts {
        allocatable_cpu_millis: 2000,
        ..NodeFacts::default()
    };
    build(&pod, &container, &cluster(), &node, &[[10, 1, 2, 3].into()])
        .await
        .map(|env| {
            env.into_iter()
                .filter(|(name, _)| !name.starts_with("KUBERNETES_"))
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        })
        .map_err(|error| error.to_string())
}

async fn check(env: serde_json::Value, env_from: serde_json::Value, want: Result<&[&str], &str>) {
    let container = json!({"name": "c", "env": env, "envFrom": env_from});
    let got = environment(container, false).await;
    let want = want
        .map(|list| list.iter().map(ToString::to_string).collect())
        .map_err(str::to_owned);
    assert_eq!(got, want);
}

#[tokio::test]
async fn literals_expand_what_stands_before_them() {
    check(
        json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)-$$(A)"}, {"name": "C", "value": "3"},
               {"name": "D"}, {"name": "A", "value": "$(A)0"}]),
        json!([]),
        Ok(&["A=10", "B=1-$(C)-$(A)", "C=3", "D="]),
    )
    .await;
}

#[tokio::test]
async fn references_give_values() {
    let key = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key}});
    check(
        json!([{"name": "C", "valueFrom": key("configMapKeyRef", "cm", "color")},
               {"name": "S", "valueFrom": key("secretKeyRef", "sec", "password")},
               {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
               {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]),
        json!([]),
        Ok(&["C=blue", "S=hunter", "IP=10.1.2.3", "CPU=2"]),
    )
    .await;
}

#[tokio::test]
async fn env_from_is_prefixed_and_env_wins() {
    check(
        json!([{"name": "x-size", "value": "mine"}]),
        json!([{"prefix": "x-", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}},
               {"configMapRef": {"name": "gone", "optional": true}}]),
        Ok(&["x-color=blue", "x-size=mine", "password=hunter"]),
    )
    .await;
}

#[tokio::test]
async fn what_is_missing_is_named_as_upstream_names_it() {
    let map_key = |name: &str, key: &str| json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}]);
    check(
        map_key("gone", "k"),
        json!([]),
        Err("configmap \"gone\" not found"),
    )
    .await;
    check(
        map_key("cm", "k"),
        json!([]),
        Err("couldn't find key k in ConfigMap ns/cm"),
    )
    .await;
    check(
        json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]),
        json!([]),
        Err("couldn't find key k in Secret ns/sec"),
    )
    .await;
    check(
        json!([]),
        json!([{"secretRef": {"name": "gone"}}]),
        Err("secret \"gone\" not found"),
    )
    .await;
    check(
        json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k", "optional": true}}},
               {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k", "optional": true}}}]),
        json!([]),
        Ok(&[]),
    )
    .await;
    check(
        json!([{"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}}]),
        json!([]),
        Err("env \"F\": valueFrom.fileKeyRef is not supported"),
    )
    .await;
}

#[tokio::test]
async fn service_links_fill_names_that_are_free() {
    let container = json!({"name": "c", "env": [{"name": "DB_PORT", "value": "mine"},
        {"name": "URL", "value": "$(DB_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)"}]});
    let env = environment(container.clone(), true)
        .await
        .expect("resolves");
    assert_eq!(env[..2], ["DB_PORT=mine", "URL=10.43.0.1:443"]);
    assert!(env.contains(&"DB_SERVICE_HOST=10.43.0.1".to_owned()));
    assert!(!env.iter().any(|line| line.starts_with("OTHER_")));
    let env = environment(container, false).await.expect("resolves");
    assert_eq!(env, ["DB_PORT=mine", "URL=$(DB_SERVICE_HOST):443"]);
}

#[tokio::test]
async fn a_kubelet_without_an_api_server_refuses_references_by_name() {
    let container: Container = serde_json::from_value(
        json!({"name": "c", "envFrom": [{"configMapRef": {"name": "cm", "optional": true}}]}),
    )
    .expect("a container");
    let pod = Pod::default();
    let got = build(&pod, &container, &NoObjects, &NodeFacts::default(), &[]).await;
    assert_eq!(
        got.map_err(|e| e.to_string()),
        Err("configmap \"cm\" cannot be read: this kubelet has no API server".to_owned())
    );
}
