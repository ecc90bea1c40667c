// SPDX-License-Identifier: Apache-2.0
//! ConfigMaps and Secrets.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::field::FieldErrors;
use crate::apiserver::{
    json::{self, text, truth},
    resource::Strategy,
};

/// Limit of the data of one object (upstream: `MaxSecretSize`).
const DATA_BYTES_MAX: usize = 1 << 20;

/// ConfigMaps.
pub(crate) const CONFIG_MAP: Strategy = Strategy {
    validate: |map, errors| {
        check_keys(map, &["data", "binaryData"], errors);
        let text_keys = map.get("data").and_then(Value::as_object);
        for key in text_keys.into_iter().flatten().map(|(key, _)| key) {
            if map
                .pointer("/binaryData")
                .and_then(|b| b.get(key))
                .is_some()
            {
                errors.invalid(
                    format!("data[{key}]"),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                );
            }
        }
    },
    validate_update: |new, old, errors| immutable(new, old, &["data", "binaryData"], errors),
    ..Strategy::NONE
};

/// Secrets.
pub(crate) const SECRET: Strategy = Strategy {
    default: |secret| {
        json::default_text(secret, "type", "Opaque");
        let written = json::remove(secret, "stringData");
        for (key, value) in written
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
            json::object(secret, "data")[key] = encoded.into();
        }
    },
    validate: |secret, errors| {
        check_keys(secret, &["data"], errors);
        let required: &[&str] = match text(secret, "/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if secret
                .get("data")
                .is_none_or(|data| data.get(key).is_none())
            {
                errors.required(format!("data[{key}]"), "");
            }
        }
    },
    validate_update: |new, old, errors| {
        errors.immutable("type", new.get("type"), old.get("type"));
        immutable(new, old, &["data"], errors);
    },
    ..Strategy::NONE
};

/// Keys become file names, so they must be harmless ones.
fn check_keys(object: &Value, fields: &[&str], errors: &mut FieldErrors) {
    let mut size = 0;
    for field in fields {
        for (key, value) in object
            .get(field)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            size += key.len() + value.as_str().map_or(0, str::len);
            let fine = key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if key.is_empty() || !fine || key.len() > 253 {
                errors.invalid(
                    format!("{field}[{key}]"),
                    key.as_str(),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                );
            } else if key == "." || key.starts_with("..") {
                errors.invalid(
                    format!("{field}[{key}]"),
                    key.as_str(),
                    "must not be '.' or start with '..'",
                );
            }
        }
    }
    if size > DATA_BYTES_MAX * 4 / 3 {
        errors.too_long("data", DATA_BYTES_MAX);
    }
}

fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    if !truth(old, "/immutable") {
        return;
    }
    if !truth(new, "/immutable") {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if new.get(field) != old.get(field) {
            errors.forbidden(*field, "field is immutable when `immutable` is set");
        }
    }
}
