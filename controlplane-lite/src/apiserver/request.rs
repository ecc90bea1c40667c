// SPDX-License-Identifier: Apache-2.0
//! What a request is about: path, verb and options, parsed once.

use std::collections::BTreeMap;

use http::Method;

use super::error::ApiError;

/// Query parameters. The last of a repeated name wins, except through [`Query::all`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses `a=b&c=d` with percent and plus decoding.
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        });
        Self {
            pairs: pairs.collect(),
        }
    }

    /// Adds a term to a parameter that holds a list of terms.
    pub(crate) fn add(&mut self, name: &str, term: &str) {
        let joined = match self.get(name) {
            Some(old) => format!("{old},{term}"),
            None => term.to_owned(),
        };
        self.pairs.push((name.to_owned(), joined));
    }

    /// A value, or nothing when absent or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of a repeated parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.pairs.iter().filter(move |(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }

    /// A boolean as Go's query conversion reads it: present and not `false` or `0` is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let found = self.pairs.iter().rev().find(|(n, _)| n == name);
        found.is_some_and(|(_, v)| !matches!(v.to_lowercase().as_str(), "false" | "0"))
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "invalid value \"{text}\" for query parameter {name}: expected a number that is not negative"
                    ))
                })
            })
            .transpose()
    }
}

/// Decodes percent escapes, and `+` in a query.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], escaped) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) if plus => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path below `/api/v1` or `/apis/<group>/<version>` that names a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) plural: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// What follows the subresource, for proxied paths.
    pub(crate) rest: String,
    /// The old `/watch/` prefix.
    pub(crate) old_watch: bool,
}

impl Target {
    /// Parses the segments of a path, or `None` when it does not name a resource.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|part| decode(part, false))
            .collect();
        if parts.iter().any(String::is_empty) {
            return None;
        }
        let mut target = Self::default();
        let head = match parts.first().map(String::as_str) {
            Some("api") => 2,
            Some("apis") => 3,
            _ => return None,
        };
        if parts.len() <= head {
            return None;
        }
        target.version = parts[head - 1].clone();
        if head == 3 {
            target.group = parts[1].clone();
        }
        parts.drain(..head);
        if parts[0] == "watch" && parts.len() > 1 {
            target.old_watch = true;
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 2 && !is_namespace_sub(&parts[2]) {
            target.namespace = parts[1].clone();
            parts.drain(..2);
        }
        let mut parts = parts.into_iter();
        target.plural = parts.next()?;
        target.name = parts.next().unwrap_or_default();
        target.subresource = parts.next().unwrap_or_default();
        target.rest = parts.collect::<Vec<_>>().join("/");
        Some(target)
    }

    /// The verb that authorisation sees.
    pub(crate) fn verb(&self, method: &Method, query: &Query) -> &'static str {
        let collection = self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD if self.old_watch || query.flag("watch") => "watch",
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => "",
        }
    }
}

/// Subresources of a namespace itself: not kinds inside it.
fn is_namespace_sub(segment: &str) -> bool {
    matches!(segment, "status" | "finalize")
}

/// Parses `Accept` or `Content-Type`: media types with parameters, in order of preference.
pub(crate) fn media_types(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<_> = header
        .split(',')
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next()?.to_ascii_lowercase();
            let parameters: BTreeMap<_, _> = parts
                .filter_map(|p| p.split_once('='))
                .map(|(n, v)| (n.trim().to_owned(), v.trim().trim_matches('"').to_owned()))
                .collect();
            (!kind.is_empty()).then_some((kind, parameters))
        })
        .collect();
    let weight = |parameters: &BTreeMap<String, String>| {
        let text = parameters.get("q").and_then(|q| q.parse::<f32>().ok());
        text.unwrap_or(1.0)
    };
    found.retain(|(_, parameters)| weight(parameters) > 0.0);
    found.sort_by(|a, b| weight(&b.1).total_cmp(&weight(&a.1)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: [&str; 6]) {
        let t = Target::parse(path).expect(path);
        let found = [
            &t.group,
            &t.version,
            &t.namespace,
            &t.plural,
            &t.name,
            &t.subresource,
        ];
        assert_eq!(found, expected.map(str::to_owned).each_ref(), "{path}");
    }

    #[test]
    fn paths_name_resources() {
        check("/api/v1/pods", ["", "v1", "", "pods", "", ""]);
        check(
            "/api/v1/namespaces/a",
            ["", "v1", "", "namespaces", "a", ""],
        );
        check(
            "/api/v1/namespaces/a/status",
            ["", "v1", "", "namespaces", "a", "status"],
        );
        check(
            "/api/v1/namespaces/a/finalize",
            ["", "v1", "", "namespaces", "a", "finalize"],
        );
        check("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]);
        check(
            "/api/v1/namespaces/a/pods/b/log",
            ["", "v1", "a", "pods", "b", "log"],
        );
        check(
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            ["apps", "v1", "a", "deployments", "b", "scale"],
        );
        check(
            "/api/v1/watch/namespaces/a/pods",
            ["", "v1", "a", "pods", "", ""],
        );
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/api/v1//pods/x",
        ] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query =
            Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&watch=true&command=a&command=%25");
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.flag("watch"));
        assert!(!query.flag("allowWatchBookmarks"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a", "%"]);
        assert_eq!(decode("%zz%4", false), "%zz%4");
    }

    #[test]
    fn media_types_are_sorted_by_preference() {
        let found = media_types("text/plain;q=0.1, application/json;as=Table;v=v1, */*;q=0");
        assert_eq!(found[0].0, "application/json");
        assert_eq!(found[0].1["as"], "Table");
        assert_eq!(found.len(), 2);
    }
}
