// SPDX-License-Identifier: Apache-2.0
//! The `WWW-Authenticate` header of a registry (RFC 9110, section 11.6.1; the distribution
//! project's token specification), and tokens. No I/O.

use serde::Deserialize;

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The strongest challenge that we can meet: Bearer before Basic.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.filter_map(one).collect();
    let bearer = |challenge: &&Challenge| matches!(challenge, Challenge::Bearer { .. });
    all.iter().find(bearer).or(all.first()).cloned()
}

fn one(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    for (key, value) in parameters(rest) {
        match key.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

/// `key=value` and `key="quoted, value"`, parted by commas. Stops at what it can't read.
fn parameters(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',', '\t']);
        let Some((key, rest)) = text.split_once('=') else {
            return found;
        };
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => match unquote(quoted) {
                Some(pair) => pair,
                None => return found,
            },
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        found.push((key.trim(), value));
        text = rest;
    }
}

fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// The answer of a token server.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    /// The token, if it can stand in a header.
    pub(crate) fn token(self) -> Option<String> {
        self.token
            .filter(|token| !token.is_empty())
            .or(self.access_token)
            .filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/busybox:pull,push".into()),
        };
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#;
        assert_eq!(parse([header].into_iter()), Some(bearer.clone()));
        let both = ["Basic realm=\"x\"", header];
        assert_eq!(parse(both.into_iter()), Some(bearer));
        assert_eq!(parse(["basic"].into_iter()), Some(Challenge::Basic));
        for bad in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm=\"",
            "Bearer =,\"",
            "Bearer service=x",
        ] {
            assert_eq!(parse([bad].into_iter()), None, "{bad}");
        }
    }

    #[test]
    fn a_token_that_breaks_a_header_is_not_taken() {
        let token = |json: &str| serde_json::from_str::<TokenAnswer>(json).unwrap().token();
        assert_eq!(token(r#"{"token":"a.b"}"#).as_deref(), Some("a.b"));
        assert_eq!(token(r#"{"access_token":"c"}"#).as_deref(), Some("c"));
        assert_eq!(token(r#"{"token":"a\r\nX: y"}"#), None);
        assert_eq!(token("{}"), None);
    }
}
