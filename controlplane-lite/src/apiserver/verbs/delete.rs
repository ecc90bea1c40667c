// SPDX-License-Identifier: Apache-2.0
//! `delete` and `deletecollection`: grace, preconditions, propagation, finalizers
//! (apiserver, `pkg/registry/generic/registry/store.go` and `registry/rest/delete.go`).

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{ATTEMPTS, read::selector, store_failure};
use crate::{
    apiserver::{
        api::{Api, Call},
        body::{self, Body},
        error::ApiError,
        json::{self, int, list, text},
        present,
        request::Query,
        resource::Resource,
    },
    store::{Change, CommitError, Draft, Expect, Object},
};

/// Finalizer of foreground deletion: the garbage collector removes dependents first.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning: the garbage collector removes owner references first.
const ORPHAN: &str = "orphan";

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `metav1.DeleteOptions`, as far as they mean something here.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options from the query and the body, which may be empty.
    pub(crate) async fn read(query: &Query, request: Request<Incoming>) -> Result<Self, ApiError> {
        let value = body::optional(request).await?;
        Self::parse(query, &value)
    }

    /// Options from a body; the query fills in what the body does not say.
    pub(crate) fn parse(query: &Query, body: &Value) -> Result<Self, ApiError> {
        let grace = match body.get("gracePeriodSeconds") {
            None | Some(Value::Null) => query.get("gracePeriodSeconds").map(str::to_owned),
            Some(found) => Some(found.to_string()),
        };
        let grace = grace.map(|text| {
            text.parse::<i64>().map_err(|_| {
                ApiError::bad_request(format!(
                    "DeleteOptions: gracePeriodSeconds: expected a number, got {text}"
                ))
            })
        });
        let policy = match text(body, "/propagationPolicy") {
            "" => query.get("propagationPolicy").unwrap_or(""),
            policy => policy,
        };
        let orphan = body.get("orphanDependents").and_then(Value::as_bool);
        let propagation = match (policy, orphan) {
            ("Background", _) | ("", Some(false)) => Some(Propagation::Background),
            ("Foreground", _) => Some(Propagation::Foreground),
            ("Orphan", _) | ("", Some(true)) => Some(Propagation::Orphan),
            ("", None) => None,
            (other, _) => {
                return Err(ApiError::unprocessable(format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
                )));
            }
        };
        let some =
            |pointer: &str| Some(text(body, pointer).to_owned()).filter(|found| !found.is_empty());
        Ok(Self {
            grace: grace.transpose()?,
            propagation,
            uid: some("/preconditions/uid"),
            revision: some("/preconditions/resourceVersion"),
            dry_run: query.get("dryRun") == Some("All")
                || list(body, "/dryRun").iter().any(|d| d == "All"),
        })
    }
}

/// What a deletion did.
enum Outcome {
    /// The object is gone; this was its last state.
    Gone(Arc<Object>),
    /// It is marked, and goes when its grace is over and its finalizers are removed.
    Going(Arc<Object>),
}

/// Deletes one object.
pub(crate) async fn delete(
    api: &Api,
    call: &Call,
    options: DeleteOptions,
) -> Result<Response<Body>, ApiError> {
    let row = call.row;
    match remove(
        api,
        row,
        &call.target.namespace,
        &call.target.name,
        &options,
    )
    .await?
    {
        Outcome::Going(object) => present::one(row, call.form, 200, &object),
        Outcome::Gone(object) if row.kind == "Pod" => present::one(row, call.form, 200, &object),
        Outcome::Gone(object) => {
            let status = json!({
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": {
                    "name": call.target.name,
                    "group": row.group,
                    "kind": row.plural,
                    "uid": object.header().uid,
                },
            });
            Ok(present::value(200, &status))
        }
    }
}

/// Deletes everything that a selector selects, and answers with what it was.
pub(crate) async fn delete_collection(
    api: &Api,
    call: &Call,
    options: DeleteOptions,
) -> Result<Response<Body>, ApiError> {
    let selector = selector(call)?;
    let prefix = call.row.prefix(&call.target.namespace);
    let snapshot = api.store.range(&prefix, None);
    let mut snapshot = snapshot.map_err(|e| ApiError::internal(&e))?;
    snapshot.objects.retain(|object| selector.matches(object));
    for object in &snapshot.objects {
        let header = object.header();
        match remove(api, call.row, &header.namespace, &header.name, &options).await {
            Err(error) if error.code == 404 => {}
            result => drop(result?),
        }
    }
    let meta = json!({"resourceVersion": snapshot.revision.to_string()});
    present::list(call.row, call.form, &snapshot.objects, &meta)
}

async fn remove(
    api: &Api,
    row: &'static Resource,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Outcome, ApiError> {
    let key = row.key(namespace, name);
    for _ in 0..ATTEMPTS {
        let stored = api.store.get(&key);
        let stored = stored.ok_or_else(|| ApiError::not_found(row, name))?;
        check_preconditions(row, name, &stored, options)?;
        if row.kind == "Namespace" && matches!(name, "default" | "kube-system" | "kube-public") {
            return Err(ApiError::forbidden(
                "",
                "namespaces",
                name,
                "this namespace may not be deleted",
            ));
        }
        let old = stored.value();
        let new = marked(row, &old, options);
        if new.as_ref() == Some(&old) {
            return Ok(Outcome::Going(stored));
        }
        if options.dry_run {
            return Ok(match new {
                Some(new) => {
                    Outcome::Going(Draft::encode(&new).preview(&key, stored.revision()).into())
                }
                None => Outcome::Gone(stored),
            });
        }
        let change = Change {
            key: key.clone(),
            expect: Expect::Revision(stored.revision()),
            guards: Vec::new(),
            put: new.as_ref().map(Draft::encode),
        };
        match api.store.commit(change).await {
            Ok(object) if new.is_some() => return Ok(Outcome::Going(object)),
            Ok(object) => return Ok(Outcome::Gone(object)),
            Err(CommitError::Conflict(_) | CommitError::Guard) => {}
            Err(error) => return Err(store_failure(&error)),
        }
    }
    Err(ApiError::modified(row, name))
}

fn check_preconditions(
    row: &Resource,
    name: &str,
    stored: &Object,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let fail = |field: &str, wanted: &str, found: &str| {
        let why = format!(
            "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}"
        );
        Err(ApiError::conflict(row, name, &why))
    };
    let revision = stored.revision().to_string();
    match (&options.uid, &options.revision) {
        (Some(uid), _) if *uid != stored.header().uid => fail("UID", uid, &stored.header().uid),
        (_, Some(wanted)) if *wanted != revision => fail("ResourceVersion", wanted, &revision),
        _ => Ok(()),
    }
}

/// The object as it waits for its end, or nothing when it can go at once.
fn marked(row: &Resource, old: &Value, options: &DeleteOptions) -> Option<Value> {
    let grace = grace(row, old, options);
    let mut new = old.clone();
    set_propagation(&mut new, options.propagation);
    let held = !list(&new, "/metadata/finalizers").is_empty()
        || (row.kind == "Namespace" && !list(&new, "/spec/finalizers").is_empty());
    if grace == 0 && !held {
        return None;
    }
    let first = text(old, "/metadata/deletionTimestamp").is_empty();
    let known = int(old, "/metadata/deletionGracePeriodSeconds");
    let metadata = json::object(&mut new, "metadata");
    if first || known.is_some_and(|known| grace < known) {
        metadata["deletionTimestamp"] = json::time_after(grace).into();
        metadata["deletionGracePeriodSeconds"] = grace.into();
        if first && row.generation {
            let generation = int(old, "/metadata/generation").unwrap_or(0) + 1;
            metadata["generation"] = generation.into();
        }
    }
    if row.kind == "Namespace" {
        json::object(&mut new, "status")["phase"] = "Terminating".into();
    }
    Some(new)
}

/// How long the object may still take. Only pods that run somewhere get any time.
fn grace(row: &Resource, old: &Value, options: &DeleteOptions) -> i64 {
    if row.kind != "Pod" {
        return 0;
    }
    let phase = text(old, "/status/phase");
    if text(old, "/spec/nodeName").is_empty() || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let spec = int(old, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
    let asked = match options.grace {
        // A negative time is upstream's way to say: at once, but not by force.
        Some(asked) if asked < 0 => 1,
        Some(asked) => asked,
        None => spec,
    };
    let known = int(old, "/metadata/deletionGracePeriodSeconds");
    known.map_or(asked, |known| asked.min(known))
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let mut finalizers = list(object, "/metadata/finalizers").to_vec();
    finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
    }
    let finalizers = (!finalizers.is_empty()).then(|| finalizers.into());
    json::put(json::object(object, "metadata"), "finalizers", finalizers);
}
