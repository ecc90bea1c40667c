// SPDX-License-Identifier: Apache-2.0
//! Short ways to read and fill JSON objects by path.

use serde_json::{Map, Value};

/// A string at a JSON pointer, or empty.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// A number at a JSON pointer.
pub(crate) fn int(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// A boolean at a JSON pointer, or false.
pub(crate) fn truth(value: &Value, pointer: &str) -> bool {
    value
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// A list at a JSON pointer, or an empty one.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// The items of a list field, to change.
pub(crate) fn items<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    let found = value.get_mut(field).and_then(Value::as_array_mut);
    found.into_iter().flatten()
}

/// An object field, made when absent.
pub(crate) fn object<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let found = &mut value[field];
    if !found.is_object() {
        *found = Value::Object(Map::new());
    }
    found
}

/// Sets a field unless it is there and not null.
pub(crate) fn default(value: &mut Value, field: &str, to: impl Into<Value>) {
    if value.get(field).is_none_or(Value::is_null) {
        value[field] = to.into();
    }
}

/// Sets a field unless it is there and neither null nor an empty string.
pub(crate) fn default_text(value: &mut Value, field: &str, to: &str) {
    if value.get(field).is_none_or(|v| v.is_null() || v == "") {
        value[field] = to.into();
    }
}

/// Removes a field.
pub(crate) fn remove(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut()?.remove(field)
}

/// Sets a field, or removes it when there is nothing to set.
pub(crate) fn put(value: &mut Value, field: &str, to: Option<Value>) {
    match to {
        Some(to) => value[field] = to,
        None => drop(remove(value, field)),
    }
}

/// The current time as `metav1.Time` writes it.
pub(crate) fn now() -> String {
    time_after(0)
}

/// The time in some seconds as `metav1.Time` writes it.
pub(crate) fn time_after(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + seconds);
    at.unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
