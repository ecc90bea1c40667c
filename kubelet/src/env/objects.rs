// SPDX-License-Identifier: Apache-2.0
//! The port through which environment and volumes see the cluster's objects.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;

/// The kind of RuntimeClasses in messages.
pub(super) const RUNTIME_CLASS: &str = "runtimeclass.node.k8s.io";

/// Why an object could not be had. The text is upstream's, because users see it in events.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The API server answered, and the object does not exist.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret` or `runtimeclass.node.k8s.io`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// This kubelet runs without an API server.
    #[error("{kind} \"{name}\" cannot be read: this kubelet has no API server")]
    NoApiServer {
        /// `configmap`, `secret` or `runtimeclass.node.k8s.io`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// The API server could not be asked. Worth a retry.
    #[error("failed to get {kind} \"{name}\": {message}")]
    Unavailable {
        /// As in the others, or `services`.
        kind: &'static str,
        /// The object's name, or the namespace for a list.
        name: String,
        /// What the client reported, its causes included.
        message: String,
    },
}

impl ObjectError {
    /// True when `optional: true` excuses the error.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// Answers of an [`Objects`] call.
pub type ObjectFuture<'a, T> = BoxFuture<'a, Result<T, ObjectError>>;

/// Where ConfigMaps, Secrets, Services and RuntimeClasses come from. Calls may be repeated at will
/// and dropped at any time; implementations cache and have a deadline of their own.
pub trait Objects: Send + Sync + 'static {
    /// One ConfigMap.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> ObjectFuture<'a, Arc<ConfigMap>>;

    /// One Secret.
    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<Secret>>;

    /// Every Service of one namespace, for service links.
    fn services<'a>(&'a self, namespace: &'a str) -> ObjectFuture<'a, Arc<Vec<Service>>>;

    /// One RuntimeClass.
    fn runtime_class<'a>(&'a self, name: &'a str) -> ObjectFuture<'a, Arc<RuntimeClass>>;
}

/// The answer of a kubelet without an API server: no services, and every reference is refused
/// by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObjects;

impl Objects for NoObjects {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<ConfigMap>> {
        no_api_server("configmap", name)
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<Secret>> {
        no_api_server("secret", name)
    }

    fn services<'a>(&'a self, _: &'a str) -> ObjectFuture<'a, Arc<Vec<Service>>> {
        Box::pin(async { Ok(Arc::new(Vec::new())) })
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> ObjectFuture<'a, Arc<RuntimeClass>> {
        no_api_server(RUNTIME_CLASS, name)
    }
}

fn no_api_server<T: Send + 'static>(kind: &'static str, name: &str) -> ObjectFuture<'static, T> {
    let name = name.to_owned();
    Box::pin(async move { Err(ObjectError::NoApiServer { kind, name }) })
}
