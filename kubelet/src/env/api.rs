// SPDX-License-Identifier: Apache-2.0
//! Objects from the API server, remembered for a moment.
//!
//! A pod that starts asks for the same objects several times (volumes, then each container); the
//! short memory turns that into one request without showing anybody old content for long. Absence
//! and failures are never remembered, so a ConfigMap that was just created is found at once.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use super::objects::RUNTIME_CLASS;
use super::{ObjectError, ObjectFuture, Objects};

/// How long an answer is good for.
const MEMORY: Duration = Duration::from_secs(1);
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The adapter over an API client.
pub struct ApiObjects {
    client: Client,
    config_maps: Memory<ConfigMap>,
    secrets: Memory<Secret>,
    services: Memory<Vec<Service>>,
    runtime_classes: Memory<RuntimeClass>,
}

impl ApiObjects {
    /// Nothing is requested before the first call.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            config_maps: Memory::default(),
            secrets: Memory::default(),
            services: Memory::default(),
            runtime_classes: Memory::default(),
        }
    }

    /// An object through `api`, which is that of its namespace.
    async fn get<K>(
        &self,
        api: Api<K>,
        memory: &Memory<K>,
        kind: &'static str,
        name: &str,
    ) -> Result<Arc<K>, ObjectError>
    where
        K: kube::Resource + Clone + Debug + DeserializeOwned,
    {
        let key = (
            api.namespace().unwrap_or_default().to_owned(),
            name.to_owned(),
        );
        if let Some(object) = memory.recall(&key, Instant::now()) {
            return Ok(object);
        }
        let object = match tokio::time::timeout(DEADLINE, api.get_opt(name)).await {
            Ok(Ok(Some(object))) => Arc::new(object),
            Ok(Ok(None)) => {
                return Err(ObjectError::NotFound {
                    kind,
                    name: name.to_owned(),
                });
            }
            Ok(Err(error)) => return Err(unavailable(kind, name, &error)),
            Err(_) => return Err(late(kind, name)),
        };
        memory.keep(key, Arc::clone(&object), Instant::now());
        Ok(object)
    }

    async fn list_services(&self, namespace: &str) -> Result<Arc<Vec<Service>>, ObjectError> {
        let key = (namespace.to_owned(), String::new());
        if let Some(list) = self.services.recall(&key, Instant::now()) {
            return Ok(list);
        }
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default();
        let list = match tokio::time::timeout(DEADLINE, api.list(&params)).await {
            Ok(Ok(list)) => Arc::new(list.items),
            Ok(Err(error)) => return Err(unavailable("services", namespace, &error)),
            Err(_) => return Err(late("services", namespace)),
        };
        self.services.keep(key, Arc::clone(&list), Instant::now());
        Ok(list)
    }
}

impl Objects for ApiObjects {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> ObjectFuture<'a, Arc<ConfigMap>> {
        let api = Api::namespaced(self.client.clone(), namespace);
        Box::pin(self.get(api, &self.config_maps, "configmap", name))
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<Secret>> {
        let api = Api::namespaced(self.client.clone(), namespace);
        Box::pin(self.get(api, &self.secrets, "secret", name))
    }

    fn services<'a>(&'a self, namespace: &'a str) -> ObjectFuture<'a, Arc<Vec<Service>>> {
        Box::pin(self.list_services(namespace))
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> ObjectFuture<'a, Arc<RuntimeClass>> {
        let api = Api::all(self.client.clone());
        Box::pin(self.get(api, &self.runtime_classes, RUNTIME_CLASS, name))
    }
}

fn unavailable(kind: &'static str, name: &str, error: &kube::Error) -> ObjectError {
    ObjectError::Unavailable {
        kind,
        name: name.to_owned(),
        message: chain(error),
    }
}

fn late(kind: &'static str, name: &str) -> ObjectError {
    ObjectError::Unavailable {
        kind,
        name: name.to_owned(),
        message: format!("no answer within {} s", DEADLINE.as_secs()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

type Key = (String, String);

/// Answers by namespace and name. What is too old goes with the next insertion, so the size is
/// bounded by what was asked for within [`MEMORY`].
struct Memory<T>(Mutex<HashMap<Key, (Instant, Arc<T>)>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Memory<T> {
    fn recall(&self, key: &Key, now: Instant) -> Option<Arc<T>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, object) = entries.get(key)?;
        (now.duration_since(*at) < MEMORY).then(|| Arc::clone(object))
    }

    fn keep(&self, key: Key, object: Arc<T>, now: Instant) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, (at, _)| now.duration_since(*at) < MEMORY);
        entries.insert(key, (now, object));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_forgotten_after_a_moment() {
        let memory = Memory::default();
        let key = |name: &str| ("ns".to_owned(), name.to_owned());
        let start = Instant::now();
        memory.keep(key("a"), Arc::new(1), start);
        assert_eq!(memory.recall(&key("a"), start).as_deref(), Some(&1));
        assert_eq!(memory.recall(&key("b"), start), None);
        let later = start + MEMORY;
        assert_eq!(memory.recall(&key("a"), later), None);
        memory.keep(key("b"), Arc::new(2), later);
        assert_eq!(memory.0.lock().expect("not poisoned").len(), 1);
    }
}
