// SPDX-License-Identifier: Apache-2.0
//! Reading a JSON object field by field, so that what is wrong is named by its path, and what
//! nobody has read is refused instead of ignored.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What is wrong with which field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {path}: {problem}")]
pub struct FieldError {
    /// Where: `plugins[1].ipam.ranges[0][0].subnet`.
    pub path: String,
    /// What.
    pub problem: String,
    /// Is it a field that this plugin does not have or support, rather than a wrong value?
    pub unsupported: bool,
}

impl FieldError {
    /// A wrong value.
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> FieldError {
        FieldError {
            path: path.into(),
            problem: problem.into(),
            unsupported: false,
        }
    }
}

impl FieldError {
    /// A field, or a value of it, that this plugin does not have.
    pub(crate) fn unsupported(path: impl Into<String>, problem: impl Into<String>) -> FieldError {
        FieldError {
            unsupported: true,
            ..FieldError::new(path, problem)
        }
    }
}

/// An object whose fields are taken out one by one.
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    pub(crate) fn new(path: impl Into<String>, value: Value) -> Result<Fields, FieldError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { path, map }),
            other => Err(FieldError::new(
                path,
                format!("expected an object, found {}", kind(&other)),
            )),
        }
    }

    pub(crate) fn path_of(&self, name: &str) -> String {
        Fields::child(&self.path, name)
    }

    /// Where field `name` of the object at `path` is.
    pub(crate) fn child(path: &str, name: &str) -> String {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    }

    /// Take a field; `None` if it is not there or null.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, FieldError> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| FieldError::new(self.path_of(name), e.to_string())),
        }
    }

    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, FieldError> {
        self.take(name)?
            .ok_or_else(|| FieldError::new(self.path_of(name), "is missing"))
    }

    /// Take a field that is an object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, FieldError> {
        match self.take::<Value>(name)? {
            None => Ok(None),
            Some(value) => Fields::new(self.path_of(name), value).map(Some),
        }
    }

    /// Take a field that is a list of objects; an empty one if it is not there.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Vec<Fields>, FieldError> {
        let path = self.path_of(name);
        let listed: Vec<Value> = self.take(name)?.unwrap_or_default();
        let one = |(index, value)| Fields::new(format!("{path}[{index}]"), value);
        listed.into_iter().enumerate().map(one).collect()
    }

    pub(crate) fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.map.remove(*name)));
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), FieldError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(FieldError::unsupported(
                self.path_of(name),
                "is not supported",
            )),
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
