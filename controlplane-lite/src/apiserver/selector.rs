// SPDX-License-Identifier: Apache-2.0
//! Label and field selectors (apimachinery, `pkg/labels/selector.go` and `pkg/fields`).

use std::collections::BTreeSet;

use super::{error::ApiError, resource::Resource};
use crate::store::{Header, Object};

/// What a list or watch is restricted to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    path: String,
    equals: bool,
    value: String,
}

impl Selector {
    /// Parses both selectors of a request.
    pub(crate) fn parse(row: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let selector = Self {
            labels: parse_labels(labels).map_err(|why| {
                ApiError::bad_request(format!("unable to parse requirement: {why}"))
            })?,
            fields: parse_fields(fields)?,
        };
        for field in &selector.fields {
            let common = matches!(field.path.as_str(), "metadata.name" | "metadata.namespace");
            if !common && !row.selectable.contains(&field.path.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {}",
                    field.path
                )));
            }
        }
        Ok(selector)
    }

    /// Whether it selects everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.is_empty() || self.matches_header(object.header())
    }

    fn matches_header(&self, header: &Header) -> bool {
        self.labels.iter().all(|r| r.matches(header))
            && self
                .fields
                .iter()
                .all(|f| (header.field(&f.path) == f.value) == f.equals)
    }
}

impl Requirement {
    fn matches(&self, header: &Header) -> bool {
        let value = header.labels.get(&self.key);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::Absent => value.is_none(),
            Operator::Greater(than) => number().is_some_and(|n| n > *than),
            Operator::Less(than) => number().is_some_and(|n| n < *than),
        }
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    let terms = text.split(',').filter(|term| !term.is_empty());
    terms
        .map(|term| {
            let (path, equals, value) = if let Some((path, value)) = term.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = term.split_once("==") {
                (path, true, value)
            } else if let Some((path, value)) = term.split_once('=') {
                (path, true, value)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            Ok(FieldRequirement {
                path: path.trim().to_owned(),
                equals,
                value: value.trim().replace('\\', ""),
            })
        })
        .collect()
}

/// Splits at commas that are not inside parentheses.
fn terms(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let mut start = 0;
    let mut found = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    terms(text).into_iter().map(parse_label_term).collect()
}

fn parse_label_term(term: &str) -> Result<Requirement, String> {
    let term = term.trim();
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    let (key, operator) = if let Some((key, set)) = split_word(term, "notin") {
        (key, Operator::NotIn(parse_set(set)?))
    } else if let Some((key, set)) = split_word(term, "in") {
        (key, Operator::In(parse_set(set)?))
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Operator::NotIn(one(value)))
    } else if let Some((key, value)) = term.split_once("==") {
        (key, Operator::In(one(value)))
    } else if let Some((key, value)) = term.split_once('=') {
        (key, Operator::In(one(value)))
    } else if let Some((key, value)) = term.split_once('>') {
        (key, Operator::Greater(parse_number(value)?))
    } else if let Some((key, value)) = term.split_once('<') {
        (key, Operator::Less(parse_number(value)?))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Operator::Absent)
    } else {
        (term, Operator::Exists)
    };
    let key = key.trim();
    if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "()!=<>,".contains(c)) {
        return Err(format!("found '{term}', expected: identifier"));
    }
    if let Operator::In(values) | Operator::NotIn(values) = &operator
        && let Some(bad) = values.iter().find(|v| !is_label_value(v))
    {
        return Err(format!(
            "values[0][{key}]: Invalid value: \"{bad}\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
        ));
    }
    Ok(Requirement {
        key: key.to_owned(),
        operator,
    })
}

/// `key word (set)`, with the word standing alone.
fn split_word<'a>(term: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let open = term.find('(')?;
    let head = term[..open].trim_end();
    let key = head.strip_suffix(word)?;
    key.ends_with(char::is_whitespace)
        .then(|| (key.trim(), &term[open..]))
}

fn parse_set(text: &str) -> Result<BTreeSet<String>, String> {
    let inner = text
        .trim()
        .strip_prefix('(')
        .and_then(|t| t.strip_suffix(')'))
        .ok_or_else(|| format!("found '{text}', expected: '(' ... ')'"))?;
    Ok(inner.split(',').map(|v| v.trim().to_owned()).collect())
}

fn parse_number(text: &str) -> Result<i64, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("values[0]: Invalid value: \"{text}\": for 'Gt', 'Lt' operators, the value must be an integer"))
}

fn is_label_value(value: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    value.len() <= 63
        && value.chars().all(|c| alphanumeric(c) || "-_.".contains(c))
        && (value.is_empty() || (value.starts_with(alphanumeric) && value.ends_with(alphanumeric)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let header = Header {
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Header::default()
        };
        let parsed = parse_labels(selector).expect(selector);
        let found = parsed.iter().all(|r| r.matches(&header));
        assert_eq!(found, expected, "{selector} on {labels:?}");
    }

    #[test]
    fn equality_and_set_requirements() {
        let labels = [("app", "web"), ("tier", "a"), ("n", "5")];
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "app in (web, db)",
            "app notin (db)",
            "tier",
            "!missing",
            "n>4",
            "n<6",
            "missing!=x",
            "missing notin (x,y)",
            "app=web,tier in (a,b)",
        ] {
            check(yes, &labels, true);
        }
        for no in [
            "app=db",
            "app in (db)",
            "app notin (web)",
            "missing",
            "!app",
            "n>5",
            "missing in (x)",
            "app=web,tier=b",
        ] {
            check(no, &labels, false);
        }
        // "in" as the end of a key is part of the key.
        check("admin=x", &[("admin", "x")], true);
        check("login", &[("login", "")], true);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["=x", "a in b", "a b", "a=b c", "a>x", ",", "a in (b"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }
}
