// SPDX-License-Identifier: Apache-2.0
//! The environment of a container: literals, references, service links and `$(VAR)` expansion.
//!
//! Reading objects (async, through [`Objects`]) and deciding (pure, in the submodules) are kept
//! apart: [`build`] fetches what the container names, then resolves without further I/O.

mod api;
mod expand;
mod fields;
mod objects;
mod resolve;
mod services;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};

pub use api::ApiObjects;
pub use expand::{expand, expand_strict};
pub use fields::{FieldError, metadata_field, resource_field};
pub use objects::{NoObjects, ObjectError, ObjectFuture, Objects};

use crate::node::NodeFacts;

/// Why a container's environment could not be made. The text is upstream's and goes into
/// `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A referenced object is missing or cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The object is there, the key is not.
    #[error("couldn't find key {key} in {kind} {object}")]
    Key {
        /// The key asked for.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// `namespace/name`.
        object: String,
    },
    /// A downward API reference that cannot be resolved.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A field that is not supported, by name.
    #[error("{0}")]
    Unsupported(String),
}

/// The whole environment of `container`, in order, each name once.
///
/// Objects are read concurrently; dropping the future is safe.
///
/// # Errors
/// A missing object or key without `optional`, an unreadable object, an unsupported reference.
pub async fn build(
    pod: &Pod,
    container: &Container,
    objects: &dyn Objects,
    node: &NodeFacts,
    pod_ips: &[IpAddr],
) -> Result<Vec<(String, String)>, EnvError> {
    let fetched = fetch(pod, container, objects).await?;
    resolve::resolve(&resolve::Scope {
        pod,
        container,
        node,
        pod_ips,
        fetched: &fetched,
    })
}

async fn fetch(
    pod: &Pod,
    container: &Container,
    objects: &dyn Objects,
) -> Result<resolve::Fetched, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let wanted = resolve::wanted(container);
    let config_maps = futures::future::join_all(wanted.config_maps.iter().map(|name| async {
        let object = objects.config_map(namespace, name).await;
        ((*name).to_owned(), object)
    }));
    let secrets = futures::future::join_all(wanted.secrets.iter().map(|name| async {
        let object = objects.secret(namespace, name).await;
        ((*name).to_owned(), object)
    }));
    let (config_maps, secrets, own_services, default_services) = tokio::join!(
        config_maps,
        secrets,
        objects.services(namespace),
        objects.services(services::API_NAMESPACE),
    );
    Ok(resolve::Fetched {
        config_maps: config_maps.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
        own_services: own_services?,
        default_services: default_services?,
    })
}
