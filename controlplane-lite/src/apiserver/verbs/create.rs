// SPDX-License-Identifier: Apache-2.0
//! `create`.

use std::sync::Arc;

use http::Response;
use rand::{Rng, seq::IndexedRandom};
use serde_json::Value;

use super::{
    ATTEMPTS,
    decode::{decode, set_namespace, validate, warn},
    store_failure,
};
use crate::{
    apiserver::{
        api::{Api, Call},
        authn::User,
        authz,
        body::{Body, Received},
        error::ApiError,
        json::{self, text},
        present, registry,
        resource::Resource,
        strategy,
    },
    store::{Change, CommitError, Draft, Expect, Guard, Object},
};

/// Letters of generated names (apimachinery, `pkg/util/rand`): no vowels, nothing that looks
/// like something else.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// Longest prefix that `generateName` contributes.
const GENERATED_PREFIX_MAX: usize = 63 - SUFFIX_LENGTH;

/// Stores a new object.
pub(crate) async fn create(
    api: &Api,
    call: &Call,
    user: &User,
    received: Received,
) -> Result<Response<Body>, ApiError> {
    if call.row.namespaced && call.target.namespace.is_empty() {
        return Err(ApiError::bad_request(
            "an empty namespace may not be set during creation",
        ));
    }
    let decoded = decode(call.row, call.validation, received.value, received.repeated)?;
    let mut value = decoded.value;
    set_namespace(call, &mut value)?;
    authz::check_new(user, call.row, &value)?;
    let object = store_new(api, call.row, value, call.dry_run).await?;
    let response = present::one(call.row, call.form, 201, &object)?;
    Ok(warn(response, &decoded.warnings))
}

/// Fills in what the server fills in, checks and stores an object with its defaults.
pub(crate) async fn store_new(
    api: &Api,
    row: &'static Resource,
    mut value: Value,
    dry_run: bool,
) -> Result<Arc<Object>, ApiError> {
    if !text(&value, "/metadata/resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generated = text(&value, "/metadata/name").is_empty();
    let prefix = text(&value, "/metadata/generateName").to_owned();
    stamp(row, &mut value);
    (row.strategy.prepare_create)(&mut value);
    for _ in 0..ATTEMPTS {
        if generated && !prefix.is_empty() {
            value["metadata"]["name"] = generate_name(&prefix).into();
        }
        let mut attempt = value.clone();
        let mut guards = Vec::new();
        guards.extend(admit(api, row, &mut attempt)?);
        validate(row, &attempt, None)?;
        guards.extend(namespace_guard(api, row, &attempt)?);
        guards.extend(api.ranges.allocate(&*api.store, row, &mut attempt, None)?);
        let name = text(&attempt, "/metadata/name").to_owned();
        let key = row.key(text(&attempt, "/metadata/namespace"), &name);
        let exists = || ApiError::already_exists(row, &name);
        if dry_run {
            if api.store.get(&key).is_some() {
                return Err(exists());
            }
            return Ok(Draft::encode(&attempt)
                .preview(&key, api.store.revision())
                .into());
        }
        let change = Change {
            key,
            expect: Expect::Absent,
            guards,
            put: Some(Draft::encode(&attempt)),
        };
        match api.store.commit(change).await {
            Ok(object) => return Ok(object),
            Err(CommitError::Guard) => {}
            Err(CommitError::Conflict(_)) if generated => {}
            Err(CommitError::Conflict(_)) => return Err(exists()),
            Err(error) => return Err(store_failure(&error)),
        }
    }
    Err(ApiError::internal(
        "the object could not be stored: others kept changing what it depends on",
    ))
}

/// What the server says about a new object, whatever the client said.
fn stamp(row: &Resource, value: &mut Value) {
    let metadata = json::object(value, "metadata");
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
        "generation",
    ] {
        json::remove(metadata, field);
    }
    metadata["uid"] = uid().into();
    metadata["creationTimestamp"] = json::now().into();
    if row.generation {
        metadata["generation"] = 1.into();
    }
}

/// A random UUID, version 4.
pub(crate) fn uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let hex = hex.concat();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn generate_name(prefix: &str) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix = (0..SUFFIX_LENGTH).map(|_| {
        let letter = SUFFIX_LETTERS.choose(&mut rng).expect("there are letters");
        char::from(*letter)
    });
    prefix[..end].chars().chain(suffix).collect()
}

/// What a pod gets from its RuntimeClass, or why it is refused. The guard makes the class be the same
/// at the moment of the commit.
fn admit(api: &Api, row: &Resource, pod: &mut Value) -> Result<Option<Guard>, ApiError> {
    if row.kind != "Pod" {
        return Ok(None);
    }
    let (mut guard, mut class) = (None, None);
    if let Some(name) = pod
        .pointer("/spec/runtimeClassName")
        .and_then(Value::as_str)
    {
        let key = registry::runtime_classes().key("", name);
        if let Some(found) = api.store.get(&key) {
            class = Some(found.value());
            guard = Some(Guard::Key {
                key,
                revision: found.revision(),
            });
        }
    }
    strategy::admit_runtime_class(pod, class.as_ref())
        .map_err(|why| ApiError::forbidden(row.group, row.plural, name_of(pod), &why))?;
    Ok(guard)
}

/// The name, or what it is generated from.
fn name_of(object: &Value) -> &str {
    match text(object, "/metadata/generateName") {
        "" => text(object, "/metadata/name"),
        prefix => prefix,
    }
}

/// Nothing may be created in a namespace that is not there or is going away. The guard makes
/// this hold at the moment of the commit.
fn namespace_guard(api: &Api, row: &Resource, value: &Value) -> Result<Option<Guard>, ApiError> {
    if !row.namespaced {
        return Ok(None);
    }
    let namespaces = registry::namespaces();
    let namespace = text(value, "/metadata/namespace");
    let key = namespaces.key("", namespace);
    let found = api.store.get(&key);
    let found = found.ok_or_else(|| ApiError::not_found(namespaces, namespace))?;
    let terminating = !text(&found.value(), "/metadata/deletionTimestamp").is_empty();
    // Events about the end of a namespace still have to be written.
    if terminating && row.stored != "events" {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let name = text(value, "/metadata/name");
        return Err(
            ApiError::forbidden(row.group, row.plural, name, &why).with_cause(
                "NamespaceTerminating",
                &format!("namespace {namespace} is being terminated"),
                "metadata.namespace",
            ),
        );
    }
    Ok(Some(Guard::Key {
        key,
        revision: found.revision(),
    }))
}
