// SPDX-License-Identifier: Apache-2.0
//! Errors of single fields, with upstream's words (apimachinery, `pkg/util/validation/field`).

use std::fmt;

use serde_json::{Value, json};

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Required,
    Invalid(Value),
    NotSupported(Value, Vec<String>),
    Duplicate(Value),
    NotFound(Value),
    Forbidden,
    TooLong(usize),
}

/// An error of one field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FieldError {
    kind: Kind,
    path: String,
    detail: String,
}

impl FieldError {
    fn body(&self) -> String {
        let with_detail = |head: String| {
            if self.detail.is_empty() {
                head
            } else {
                format!("{head}: {}", self.detail)
            }
        };
        match &self.kind {
            Kind::Required => with_detail("Required value".to_owned()),
            Kind::Invalid(value) => with_detail(format!("Invalid value: {value}")),
            Kind::NotSupported(value, known) => {
                let known: Vec<_> = known.iter().map(|k| format!("{k:?}")).collect();
                format!(
                    "Unsupported value: {value}: supported values: {}",
                    known.join(", ")
                )
            }
            Kind::Duplicate(value) => format!("Duplicate value: {value}"),
            Kind::NotFound(value) => format!("Not found: {value}"),
            Kind::Forbidden => with_detail("Forbidden".to_owned()),
            Kind::TooLong(most) => format!("Too long: may not be more than {most} bytes"),
        }
    }

    /// The entry in `details.causes`.
    pub(crate) fn cause(&self) -> Value {
        let reason = match self.kind {
            Kind::Required => "FieldValueRequired",
            Kind::Invalid(_) => "FieldValueInvalid",
            Kind::NotSupported(..) => "FieldValueNotSupported",
            Kind::Duplicate(_) => "FieldValueDuplicate",
            Kind::NotFound(_) => "FieldValueNotFound",
            Kind::Forbidden => "FieldValueForbidden",
            Kind::TooLong(_) => "FieldValueTooLong",
        };
        json!({"reason": reason, "message": self.body(), "field": self.path})
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Errors of an object, in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct FieldErrors(pub(crate) Vec<FieldError>);

impl FieldErrors {
    fn add(&mut self, kind: Kind, path: impl Into<String>, detail: impl Into<String>) {
        self.0.push(FieldError {
            kind,
            path: path.into(),
            detail: detail.into(),
        });
    }

    /// The field must be there.
    pub(crate) fn required(&mut self, path: impl Into<String>, detail: &str) {
        self.add(Kind::Required, path, detail);
    }

    /// The value is wrong.
    pub(crate) fn invalid(
        &mut self,
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.add(Kind::Invalid(value.into()), path, detail);
    }

    /// The value is not one of the known ones.
    pub(crate) fn unsupported(&mut self, path: impl Into<String>, value: &str, known: &[&str]) {
        let known = known.iter().map(|k| (*k).to_owned()).collect();
        self.add(Kind::NotSupported(value.into(), known), path, "");
    }

    /// The value is there already.
    pub(crate) fn duplicate(&mut self, path: impl Into<String>, value: impl Into<Value>) {
        self.add(Kind::Duplicate(value.into()), path, "");
    }

    /// The value names something that is not there.
    pub(crate) fn not_found(&mut self, path: impl Into<String>, value: impl Into<Value>) {
        self.add(Kind::NotFound(value.into()), path, "");
    }

    /// The field must not be set or changed.
    pub(crate) fn forbidden(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.add(Kind::Forbidden, path, detail);
    }

    /// The value is too long.
    pub(crate) fn too_long(&mut self, path: impl Into<String>, most: usize) {
        self.add(Kind::TooLong(most), path, "");
    }

    /// The value must be one of the known ones, if it is set.
    pub(crate) fn one_of(&mut self, path: impl Into<String>, value: &str, known: &[&str]) {
        if !value.is_empty() && !known.contains(&value) {
            self.unsupported(path, value, known);
        }
    }

    /// A field that must not change.
    pub(crate) fn immutable(&mut self, path: &str, new: Option<&Value>, old: Option<&Value>) {
        if new.unwrap_or(&Value::Null) != old.unwrap_or(&Value::Null) {
            let value = new.cloned().unwrap_or(Value::Null);
            self.invalid(path, value, "field is immutable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        let mut errors = FieldErrors::default();
        errors.required("spec.containers", "");
        errors.invalid("metadata.name", "X", "must be lower case");
        errors.one_of("spec.restartPolicy", "x", &["Always", "Never"]);
        let texts: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.containers: Required value",
                "metadata.name: Invalid value: \"X\": must be lower case",
                "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"Never\"",
            ]
        );
        assert_eq!(errors.0[0].cause()["reason"], "FieldValueRequired");
    }
}
