// SPDX-License-Identifier: Apache-2.0
//! The one way to change a stored object: read, make the new state, check it, compare and swap.

use std::sync::Arc;

use serde_json::Value;

use super::{ATTEMPTS, decode::validate, store_failure};
use crate::{
    apiserver::{
        api::Api,
        error::ApiError,
        json::{self, int, list, text},
        resource::{Resource, Sub},
    },
    store::{Change, CommitError, Draft, Expect, Object},
};

/// Which object is changed, and through what.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) row: &'static Resource,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) sub: Option<Sub>,
    pub(super) dry_run: bool,
}

/// Changes an object. `make` gets the stored object and returns the wanted one, both in stored
/// form; it may run several times. When the wanted object names a `resourceVersion`, it must be
/// the stored one.
pub(super) async fn change(
    api: &Api,
    place: Place<'_>,
    mut make: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Arc<Object>, ApiError> {
    let Place { row, name, .. } = place;
    let key = row.key(place.namespace, name);
    for _ in 0..ATTEMPTS {
        let stored = api.store.get(&key);
        let stored = stored.ok_or_else(|| ApiError::not_found(row, name))?;
        let old = stored.value();
        let mut new = make(&old)?;
        let based_on = text(&new, "/metadata/resourceVersion");
        if !based_on.is_empty() && based_on != stored.revision().to_string() {
            return Err(ApiError::modified(row, name));
        }
        prepare(place, &mut new, &old)?;
        let guards = api
            .ranges
            .allocate(&*api.store, row, &mut new, Some(&old))?;
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == old {
            return Ok(stored);
        }
        validate(row, &new, Some(&old))?;
        let gone = is_to_go(&new);
        if place.dry_run {
            return Ok(Draft::encode(&new).preview(&key, stored.revision()).into());
        }
        let committed = api.store.commit(Change {
            key: key.clone(),
            expect: Expect::Revision(stored.revision()),
            guards,
            put: (!gone).then(|| Draft::encode(&new)),
        });
        match committed.await {
            Ok(object) => return Ok(object),
            Err(CommitError::Guard | CommitError::Conflict(_)) => {}
            Err(error) => return Err(store_failure(&error)),
        }
    }
    Err(ApiError::modified(row, name))
}

/// An object that was asked to go goes when nothing holds it any more.
fn is_to_go(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
        && list(object, "/metadata/finalizers").is_empty()
        && int(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (text(object, "/kind") != "Namespace" || list(object, "/spec/finalizers").is_empty())
}

/// Sets what this kind of update may not change.
fn prepare(place: Place<'_>, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    let row = place.row;
    let uid = text(new, "/metadata/uid");
    if !uid.is_empty() && uid != text(old, "/metadata/uid") {
        return Err(ApiError::conflict(
            row,
            place.name,
            &format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                text(old, "/metadata/uid")
            ),
        ));
    }
    match place.sub {
        None => {
            if row.sub("status").is_some() {
                json::put(new, "status", old.get("status").cloned());
            }
            (row.strategy.prepare_update)(new, old);
        }
        Some(Sub::Status) => keep_all_but_status(row, new, old),
        Some(_) => {}
    }
    let metadata = json::object(new, "metadata");
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generateName",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        let stored = old.pointer(&format!("/metadata/{field}")).cloned();
        json::put(metadata, field, stored);
    }
    if row.generation && new.get("spec") != old.get("spec") {
        let generation = int(old, "/metadata/generation").unwrap_or(0) + 1;
        new["metadata"]["generation"] = generation.into();
    }
    Ok(())
}

/// A status update leaves everything else alone, but nodes' and pods' status writers may also
/// set labels and annotations, as upstream lets them.
fn keep_all_but_status(row: &Resource, new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let mut kept = old.clone();
    if matches!(row.kind, "Pod" | "Node") {
        for field in ["labels", "annotations"] {
            let wanted = new.pointer(&format!("/metadata/{field}")).cloned();
            json::put(json::object(&mut kept, "metadata"), field, wanted);
        }
    }
    json::put(&mut kept, "status", status);
    *new = kept;
}
