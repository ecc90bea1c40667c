// SPDX-License-Identifier: Apache-2.0
//! `get` and `list`.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    apiserver::{
        api::{Api, Call},
        body::Body,
        error::ApiError,
        present,
        selector::Selector,
    },
    store::{Object, Snapshot},
};

/// Answers with one object.
pub(crate) fn get(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    if let Some(revision) = call.query.number("resourceVersion")? {
        not_in_future(api, revision)?;
    }
    let object = api.store.get(&call.key());
    let object = object.ok_or_else(|| ApiError::not_found(call.row, &call.target.name))?;
    present::one(call.row, call.form, 200, &object)
}

/// The selector of a request.
pub(super) fn selector(call: &Call) -> Result<Selector, ApiError> {
    let part = |name| call.query.get(name).unwrap_or("");
    Selector::parse(call.row, part("labelSelector"), part("fieldSelector"))
}

/// A revision that this server has not reached cannot be served.
pub(super) fn not_in_future(api: &Api, revision: u64) -> Result<(), ApiError> {
    let current = api.store.revision();
    if revision > current {
        return Err(ApiError::future_revision(revision, current));
    }
    Ok(())
}

/// Where a paged list goes on. Opaque for the client.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "rv")]
    revision: u64,
    /// Key of the last object of the page before.
    after: String,
}

impl Continue {
    fn decode(text: &str) -> Result<Self, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let token = bytes.and_then(|b| serde_json::from_slice(&b).ok());
        token.ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("two plain fields encode"))
    }
}

/// Answers with the objects of a namespace, or of all.
pub(crate) fn list(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let selector = selector(call)?;
    let token = call
        .query
        .get("continue")
        .map(Continue::decode)
        .transpose()?;
    let limit = call.query.number("limit")?.unwrap_or(0);
    let snapshot = snapshot(api, call, token.as_ref())?;

    let mut found: Vec<Arc<Object>> = Vec::new();
    let mut more = None;
    let after = token.as_ref().map_or("", |t| t.after.as_str());
    let mut rest = snapshot.objects.iter().filter(|o| o.key() > after);
    for object in rest.by_ref() {
        if !selector.matches(object) {
            continue;
        }
        if limit > 0 && found.len() as u64 == limit {
            more = found.last().map(|last| Continue {
                revision: snapshot.revision,
                after: last.key().to_owned(),
            });
            break;
        }
        found.push(object.clone());
    }

    let mut meta = json!({"resourceVersion": snapshot.revision.to_string()});
    if let Some(more) = more {
        meta["continue"] = more.encode().into();
        if selector.is_empty() {
            meta["remainingItemCount"] = (rest.count() + 1).into();
        }
    }
    present::list(call.row, call.form, &found, &meta)
}

fn snapshot(api: &Api, call: &Call, token: Option<&Continue>) -> Result<Snapshot, ApiError> {
    let prefix = call.row.prefix(&call.target.namespace);
    let revision = call.query.number("resourceVersion")?;
    let matching = call.query.get("resourceVersionMatch");
    let at = match (token, revision, matching) {
        (Some(_), Some(revision), _) if revision > 0 => {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        (Some(token), _, _) => Some(token.revision),
        (None, None, Some(_)) => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        (None, Some(0) | None, _) => None,
        (None, Some(revision), Some("Exact")) => Some(revision),
        (None, Some(revision), _) => {
            not_in_future(api, revision)?;
            None
        }
    };
    if let Some(at) = at {
        not_in_future(api, at)?;
    }
    api.store.range(&prefix, at).map_err(|_| {
        ApiError::expired(if token.is_some() {
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter."
        } else {
            "The resourceVersion for the provided list is too old."
        })
    })
}
