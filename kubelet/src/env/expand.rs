// SPDX-License-Identifier: Apache-2.0
//! `$(VAR)` expansion, by the rules of the API (kubernetes/kubernetes, `third_party/forked/golang/expansion`).

use std::collections::BTreeSet;

/// Expands `$(VAR)` in one word of a command, an argument or a value; `$$` is a literal `$`;
/// an unknown name stays as it is written.
#[must_use]
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    expand_with(text, |name| {
        lookup(env, name).map_or_else(|| format!("$({name})"), str::to_owned)
    })
}

/// As [`expand`], for `subPathExpr`: every name must have a value that is not empty.
///
/// # Errors
/// The names without one, sorted.
pub fn expand_strict(text: &str, env: &[(String, String)]) -> Result<String, Vec<String>> {
    let mut missing = BTreeSet::new();
    let expanded = expand_with(text, |name| match lookup(env, name) {
        Some(value) if !value.is_empty() => value.to_owned(),
        _ => {
            missing.insert(name.to_owned());
            String::new()
        }
    });
    if missing.is_empty() {
        Ok(expanded)
    } else {
        Err(missing.into_iter().collect())
    }
}

/// The value that a process would see: the last one of that name.
pub(super) fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

pub(super) fn expand_with(text: &str, mut value_of: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            out.push_str(&value_of(name));
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Vec<(String, String)> {
        [("A", "1"), ("EMPTY", ""), ("B", "two"), ("B", "three")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .to_vec()
    }

    #[test]
    fn references_escapes_and_unknown_names() {
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1ythreez"),
            ("$(EMPTY)", ""),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("100$", "100$"),
            ("$(A)$(A)", "11"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
            ("$é$(A)", "$é1"),
        ] {
            assert_eq!(expand(text, &env()), want, "expanding {text:?}");
        }
    }

    #[test]
    fn strict_expansion_names_what_is_missing_or_empty() {
        assert_eq!(expand_strict("a/$(B)", &env()), Ok("a/three".to_owned()));
        assert_eq!(
            expand_strict("$(Z)/$(EMPTY)/$(Z)", &env()),
            Err(vec!["EMPTY".to_owned(), "Z".to_owned()])
        );
    }
}
