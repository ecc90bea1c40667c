// SPDX-License-Identifier: Apache-2.0
//! Names, labels and annotations (apimachinery, `pkg/util/validation` and `pkg/api/validation`).

use serde_json::Value;

use super::field::FieldErrors;
use crate::apiserver::{
    json::text,
    resource::{NameRule, Resource},
};

/// Limit of all annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// RFC 1123 label.
pub(crate) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.starts_with(lower)
        && name.ends_with(lower)
        && name.chars().all(|c| lower(c) || c == '-')
}

/// RFC 1123 subdomain.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|part| {
            !part.is_empty()
                && part.starts_with(lower)
                && part.ends_with(lower)
                && part.chars().all(|c| lower(c) || c == '-')
        })
}

/// Why a name breaks its rule, or nothing.
pub(crate) fn broken(rule: NameRule, name: &str) -> Option<String> {
    let too_long = |most: usize| Some(format!("must be no more than {most} characters"));
    match rule {
        NameRule::Subdomain if name.len() > 253 => too_long(253),
        NameRule::Subdomain if !is_subdomain(name) => Some(SUBDOMAIN.to_owned()),
        NameRule::Label | NameRule::Label1035 if name.len() > 63 => too_long(63),
        NameRule::Label if !is_label(name) => Some(LABEL.to_owned()),
        NameRule::Label1035
            if !is_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) =>
        {
            Some(LABEL_1035.to_owned())
        }
        _ => None,
    }
}

/// A key of a label or annotation: `[prefix/]name`.
pub(crate) fn broken_qualified(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".to_owned());
        }
        if !is_subdomain(&prefix.to_ascii_lowercase()) {
            return Some(format!("prefix part {SUBDOMAIN}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters".to_owned());
    }
    (!is_word(name)).then(|| QUALIFIED.to_owned())
}

fn is_word(word: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    word.starts_with(edge)
        && word.ends_with(edge)
        && word.chars().all(|c| edge(c) || "-_.".contains(c))
}

/// What is wrong with the name of a port (`IsValidPortName`).
pub(crate) fn broken_port_name(name: &str) -> Vec<&'static str> {
    let inner = |c: char| lower(c) || c == '-';
    let checks = [
        (name.len() <= 15, "must be no more than 15 characters"),
        (
            name.chars().all(inner),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            name.contains(|c: char| c.is_ascii_lowercase()),
            "must contain at least one letter (a-z)",
        ),
        (!name.contains("--"), "must not contain consecutive hyphens"),
        (
            !(name.starts_with('-') || name.ends_with('-')),
            "must not begin or end with a hyphen",
        ),
    ];
    checks
        .into_iter()
        .filter(|(good, _)| !good)
        .map(|(_, why)| why)
        .collect()
}

/// Checks a map of labels.
pub(crate) fn labels(map: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        if let Some(why) = broken_qualified(key) {
            errors.invalid(path, key.as_str(), why);
        }
        let value = value.as_str().unwrap_or("");
        if value.len() > 63 {
            errors.invalid(path, value, "must be no more than 63 characters");
        } else if !value.is_empty() && !is_word(value) {
            errors.invalid(path, value, LABEL_VALUE);
        }
    }
}

/// Checks `metadata` of an object.
pub(crate) fn metadata(row: &Resource, object: &Value, errors: &mut FieldErrors) {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else if let Some(why) = broken(row.name_rule, name) {
        errors.invalid("metadata.name", name, why);
    }
    labels(
        object.pointer("/metadata/labels"),
        "metadata.labels",
        errors,
    );
    let mut size = 0;
    let annotations = object
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    for (key, value) in annotations.into_iter().flatten() {
        if let Some(why) = broken_qualified(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", key.as_str(), why);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX);
    }
    owners(object, errors);
}

fn owners(object: &Value, errors: &mut FieldErrors) {
    let mut controllers = 0;
    let owners = crate::apiserver::json::list(object, "/metadata/ownerReferences");
    for (at, owner) in owners.iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
                let path = format!("metadata.ownerReferences[{at}].{field}");
                errors.invalid(path, "", format!("{field} must not be empty"));
            }
        }
        controllers += usize::from(crate::apiserver::json::truth(owner, "/controller"));
    }
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            owners.to_vec(),
            "Only one reference can have Controller set to true",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rule() {
        for good in ["a", "a-b", "0a", "a.b-c"] {
            assert_eq!(broken(NameRule::Subdomain, good), None, "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "a/b"] {
            assert!(broken(NameRule::Subdomain, bad).is_some(), "{bad}");
        }
        assert!(broken(NameRule::Label, "a.b").is_some());
        assert!(broken(NameRule::Label1035, "0a").is_some());
    }

    #[test]
    fn label_keys_may_have_a_prefix() {
        for good in ["app", "app.kubernetes.io/name", "A_b.c"] {
            assert_eq!(broken_qualified(good), None, "{good}");
        }
        for bad in ["", "/x", "a/", "a/b/c", "-a", "UPPER_/x y"] {
            assert!(broken_qualified(bad).is_some(), "{bad}");
        }
    }
}
