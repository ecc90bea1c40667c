// SPDX-License-Identifier: Apache-2.0
//! The pure part: what a container names, and how the fetched objects become its environment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvFromSource, EnvVar, EnvVarSource, Pod, Secret, Service,
};

use super::expand::{expand_with, lookup};
use super::{EnvError, ObjectError, fields, services};
use crate::node::NodeFacts;

/// The objects that a container names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    pub(super) config_maps: BTreeSet<&'a str>,
    pub(super) secrets: BTreeSet<&'a str>,
}

/// What fetching them gave, missing ones included: whether that is an error is decided here.
#[derive(Default)]
pub(super) struct Fetched {
    pub(super) config_maps: BTreeMap<String, Result<Arc<ConfigMap>, ObjectError>>,
    pub(super) secrets: BTreeMap<String, Result<Arc<Secret>, ObjectError>>,
    pub(super) own_services: Arc<Vec<Service>>,
    pub(super) default_services: Arc<Vec<Service>>,
}

/// Lists the objects to fetch.
pub(super) fn wanted(container: &Container) -> Wanted<'_> {
    let mut wanted = Wanted::default();
    for source in container.env_from.iter().flatten() {
        wanted
            .config_maps
            .extend(source.config_map_ref.as_ref().map(|r| r.name.as_str()));
        wanted
            .secrets
            .extend(source.secret_ref.as_ref().map(|r| r.name.as_str()));
    }
    for from in container
        .env
        .iter()
        .flatten()
        .filter_map(|var| var.value_from.as_ref())
    {
        wanted
            .config_maps
            .extend(from.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
        wanted
            .secrets
            .extend(from.secret_key_ref.as_ref().map(|r| r.name.as_str()));
    }
    wanted
}

/// Everything that a reference may point at.
pub(super) struct Scope<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) node: &'a NodeFacts,
    pub(super) pod_ips: &'a [IpAddr],
    pub(super) fetched: &'a Fetched,
}

/// Builds the environment: `envFrom` first, `env` over it in order, service links where no name
/// is taken. `$(VAR)` sees what stands before it, and service links.
pub(super) fn resolve(scope: &Scope<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let links = scope
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let chosen = services::select(
        &scope.fetched.own_services,
        &scope.fetched.default_services,
        links,
    );
    let service_env = services::variables(chosen);
    let mut env = Env::default();
    for source in scope.container.env_from.iter().flatten() {
        for (name, value) in from_source(scope, source)? {
            env.set(name, value);
        }
    }
    for var in scope.container.env.iter().flatten() {
        if let Some(value) = value_of(scope, var, &env, &service_env)? {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in service_env {
        if !env.index.contains_key(&name) {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

/// An ordered list with each name once; a later value takes the earlier one's place.
#[derive(Default)]
struct Env {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        if let Some(&at) = self.index.get(&name) {
            self.list[at].1 = value;
        } else {
            self.index.insert(name.clone(), self.list.len());
            self.list.push((name, value));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.list[at].1.as_str())
    }
}

fn from_source(
    scope: &Scope<'_>,
    source: &EnvFromSource,
) -> Result<Vec<(String, String)>, EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut pairs = Vec::new();
    if let Some(reference) = &source.config_map_ref {
        let object = find(&scope.fetched.config_maps, "configmap", &reference.name);
        if let Some(map) = excuse(object, reference.optional)? {
            let data = map.data.iter().flatten();
            pairs.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
        }
    }
    if let Some(reference) = &source.secret_ref {
        let object = find(&scope.fetched.secrets, "secret", &reference.name);
        if let Some(secret) = excuse(object, reference.optional)? {
            let data = secret.data.iter().flatten();
            pairs.extend(data.map(|(key, value)| (format!("{prefix}{key}"), text(&value.0))));
        }
    }
    Ok(pairs)
}

/// The value of one `env` entry; `None` when an optional reference is absent.
fn value_of(
    scope: &Scope<'_>,
    var: &EnvVar,
    env: &Env,
    service_env: &[(String, String)],
) -> Result<Option<String>, EnvError> {
    let literal = var.value.as_deref().unwrap_or_default();
    if !literal.is_empty() {
        return Ok(Some(expand_with(literal, |name| {
            env.get(name)
                .or_else(|| lookup(service_env, name))
                .map_or_else(|| format!("$({name})"), str::to_owned)
        })));
    }
    match &var.value_from {
        None => Ok(Some(String::new())),
        Some(source) => from_reference(scope, &var.name, source),
    }
}

fn from_reference(
    scope: &Scope<'_>,
    name: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let namespace = scope.pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(field) = &source.field_ref {
        let value = fields::env_field(scope.pod, &field.field_path, scope.node, scope.pod_ips)?;
        return Ok(Some(value));
    }
    if let Some(selector) = &source.resource_field_ref {
        let value = fields::resource_field(scope.pod, Some(scope.container), selector, scope.node)?;
        return Ok(Some(value));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let object = find(&scope.fetched.config_maps, "configmap", &selector.name);
        let Some(map) = excuse(object, selector.optional)? else {
            return Ok(None);
        };
        let value = map.data.as_ref().and_then(|data| data.get(&selector.key));
        return key_or_error(value.cloned(), selector.optional, || EnvError::Key {
            key: selector.key.clone(),
            kind: "ConfigMap",
            object: format!("{namespace}/{}", selector.name),
        });
    }
    if let Some(selector) = &source.secret_key_ref {
        let object = find(&scope.fetched.secrets, "secret", &selector.name);
        let Some(secret) = excuse(object, selector.optional)? else {
            return Ok(None);
        };
        let value = secret.data.as_ref().and_then(|d| d.get(&selector.key));
        let value = value.map(|value| text(&value.0));
        return key_or_error(value, selector.optional, || EnvError::Key {
            key: selector.key.clone(),
            kind: "Secret",
            object: format!("{namespace}/{}", selector.name),
        });
    }
    let what = if source.file_key_ref.is_some() {
        "valueFrom.fileKeyRef is not supported"
    } else {
        "valueFrom names no source"
    };
    Err(EnvError::Unsupported(format!("env {name:?}: {what}")))
}

fn key_or_error(
    value: Option<String>,
    optional: Option<bool>,
    error: impl FnOnce() -> EnvError,
) -> Result<Option<String>, EnvError> {
    match value {
        None if optional != Some(true) => Err(error()),
        value => Ok(value),
    }
}

fn find<T>(
    objects: &BTreeMap<String, Result<Arc<T>, ObjectError>>,
    kind: &'static str,
    name: &str,
) -> Result<Arc<T>, ObjectError> {
    objects.get(name).cloned().unwrap_or_else(|| {
        Err(ObjectError::NotFound {
            kind,
            name: name.to_owned(),
        })
    })
}

fn excuse<T>(
    object: Result<Arc<T>, ObjectError>,
    optional: Option<bool>,
) -> Result<Option<Arc<T>>, ObjectError> {
    match object {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() && optional == Some(true) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Secrets are bytes, and CRI's environment is text: what is not UTF-8 cannot be carried over.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
