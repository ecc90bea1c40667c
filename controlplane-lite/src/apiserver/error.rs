// SPDX-License-Identifier: Apache-2.0
//! The errors of the API: `metav1.Status` objects with upstream's reasons, codes and sentences
//! (apimachinery, `pkg/api/errors`).

use serde_json::{Map, Value, json};

use super::{resource::Resource, strategy::field::FieldError};

/// A failure as the client sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, row: &Resource, name: &str) -> Self {
        self.details = Some(details(row.group, row.plural, name));
        self
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    /// 404 for an object.
    pub(crate) fn not_found(row: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", row.qualified());
        Self::new(404, "NotFound", message).about(row, name)
    }

    /// 404 for a path that nothing serves.
    pub(crate) fn no_such_path() -> Self {
        let mut error = Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        error.details = Some(json!({}));
        error
    }

    /// 409 on create.
    pub(crate) fn already_exists(row: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", row.qualified());
        Self::new(409, "AlreadyExists", message).about(row, name)
    }

    /// 409 with a cause.
    pub(crate) fn conflict(row: &Resource, name: &str, cause: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {cause}",
            row.qualified()
        );
        Self::new(409, "Conflict", message).about(row, name)
    }

    /// 409 because somebody else wrote first.
    pub(crate) fn modified(row: &Resource, name: &str) -> Self {
        Self::conflict(
            row,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per field.
    pub(crate) fn invalid(row: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = row.qualified_kind();
        let mut error = Self::new(
            422,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {joined}"),
        );
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        let mut about = details(row.group, row.kind, name);
        about["causes"] = causes.into();
        error.details = Some(about);
        error
    }

    /// 422 without an object, for a patch that cannot be applied.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 400.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 with the whole sentence.
    pub(crate) fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let qualified = qualified(group, plural);
        let message = if name.is_empty() {
            format!("{qualified} is forbidden: {why}")
        } else {
            format!("{qualified} \"{name}\" is forbidden: {why}")
        };
        let mut error = Self::new(403, "Forbidden", message);
        error.details = Some(details(group, plural, name));
        error
    }

    /// 403 for a path.
    pub(crate) fn forbidden_path(why: &str) -> Self {
        let mut error = Self::new(403, "Forbidden", format!("forbidden: {why}"));
        error.details = Some(json!({}));
        error
    }

    /// 405.
    pub(crate) fn method_not_allowed(row: &Resource) -> Self {
        let mut error = Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        error.details = Some(details(row.group, row.plural, ""));
        error
    }

    /// 406.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    }

    /// 410: the revision or the continue token is too old.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub(crate) fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 500.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {message}");
        Self::new(500, "InternalError", message)
    }

    /// 504: a revision that this server has not seen.
    pub(crate) fn future_revision(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut error = Self::new(504, "Timeout", message);
        error.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        error
    }

    /// Adds a cause, as upstream does for a namespace that is going away.
    pub(crate) fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause = json!({"reason": reason, "message": message, "field": field});
        let about = self.details.get_or_insert_with(|| json!({}));
        about["causes"] = json!([cause]);
        self
    }
}

/// `<plural>` or `<plural>.<group>`.
fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = Map::new();
    for (field, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details.insert(field.to_owned(), value.into());
        }
    }
    details.into()
}
