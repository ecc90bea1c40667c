// SPDX-License-Identifier: Apache-2.0
//! What a client's upgrade request asks for, and how it is answered.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::channels::Codec;

/// The header in which SPDY clients name protocols, in requests and answers.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The header in which a refusal names what would be accepted.
pub(super) const ACCEPTED: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exec and attach.
    Process,
    /// Port-forward.
    Ports,
}

/// How the last word of an exec is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWord {
    /// A `v1.Status`, from version 4 on.
    Status,
    /// The message of a failure, nothing after success.
    Text,
}

/// What both sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Channels in WebSocket messages.
    WebSocket(Codec),
    /// Streams of a SPDY connection.
    Spdy,
    /// A SPDY connection in WebSocket messages.
    Tunnel,
}

/// What was agreed on.
#[derive(Debug)]
pub struct Agreed {
    /// What both sides speak.
    pub wire: Wire,
    /// How a session's last word is written.
    pub last_word: LastWord,
    /// The answer's headers.
    pub headers: HeaderMap,
}

/// Why there is no stream.
#[derive(Debug)]
pub struct Refusal {
    /// 400, or 403 when no protocol is common.
    pub status: StatusCode,
    /// One line.
    pub text: String,
    /// For SPDY clients: what would be accepted.
    pub accepted: Vec<&'static str>,
}

impl Refusal {
    fn bad(text: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            text: text.into(),
            accepted: Vec::new(),
        }
    }
}

type Protocol = (&'static str, Wire, LastWord);

const PROCESS_WEBSOCKET: [Protocol; 5] = [
    (
        "v5.channel.k8s.io",
        Wire::WebSocket(Codec::Closing),
        LastWord::Status,
    ),
    (
        "v4.channel.k8s.io",
        Wire::WebSocket(Codec::Binary),
        LastWord::Status,
    ),
    (
        "v4.base64.channel.k8s.io",
        Wire::WebSocket(Codec::Base64),
        LastWord::Status,
    ),
    (
        "channel.k8s.io",
        Wire::WebSocket(Codec::Binary),
        LastWord::Text,
    ),
    (
        "base64.channel.k8s.io",
        Wire::WebSocket(Codec::Base64),
        LastWord::Text,
    ),
];
const PROCESS_SPDY: [Protocol; 4] = [
    ("v4.channel.k8s.io", Wire::Spdy, LastWord::Status),
    ("v3.channel.k8s.io", Wire::Spdy, LastWord::Text),
    ("v2.channel.k8s.io", Wire::Spdy, LastWord::Text),
    ("channel.k8s.io", Wire::Spdy, LastWord::Text),
];
const PORTS_WEBSOCKET: [Protocol; 3] = [
    (TUNNEL, Wire::Tunnel, LastWord::Text),
    (
        "v4.channel.k8s.io",
        Wire::WebSocket(Codec::Binary),
        LastWord::Text,
    ),
    (
        "v4.base64.channel.k8s.io",
        Wire::WebSocket(Codec::Base64),
        LastWord::Text,
    ),
];
const PORTS_SPDY: [Protocol; 1] = [("portforward.k8s.io", Wire::Spdy, LastWord::Text)];

/// Decides what to speak. A WebSocket client that names no protocol gets the oldest binary one, as
/// from upstream's server.
///
/// # Errors
/// The request is no upgrade that is served here; the refusal names what is.
pub fn negotiate(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let wanted = text(headers, &header::UPGRADE);
    if !is_upgrade(headers) {
        return Err(Refusal::bad(
            "unable to upgrade: missing upgrade headers in the request: use Upgrade: websocket or SPDY/3.1\n",
        ));
    }
    if wanted.eq_ignore_ascii_case("websocket") {
        let known: &[Protocol] = match kind {
            Kind::Process => &PROCESS_WEBSOCKET,
            Kind::Ports => &PORTS_WEBSOCKET,
        };
        return websocket(kind, known, headers);
    }
    if wanted.eq_ignore_ascii_case(SPDY) {
        let known: &[Protocol] = match kind {
            Kind::Process => &PROCESS_SPDY,
            Kind::Ports => &PORTS_SPDY,
        };
        return spdy(known, headers);
    }
    Err(Refusal::bad(format!(
        "unable to upgrade to {wanted:?}: use websocket or {SPDY}\n"
    )))
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    list(headers, &header::CONNECTION)
        .iter()
        .any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn websocket(kind: Kind, known: &[Protocol], headers: &HeaderMap) -> Result<Agreed, Refusal> {
    if text(headers, &header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err(Refusal::bad(
            "Sec-WebSocket-Version: only 13 is supported\n",
        ));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Refusal::bad("Sec-WebSocket-Key is missing\n"))?;
    let asked = list(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    let mut answer = HeaderMap::new();
    let (wire, last_word) = if asked.is_empty() {
        (Wire::WebSocket(Codec::Binary), LastWord::Text)
    } else {
        let Some((name, wire, last_word)) = choose(&asked, known) else {
            return Err(Refusal {
                status: StatusCode::FORBIDDEN,
                text: format!(
                    "{}: none of the WebSocket protocols {asked:?} is supported; supported: {}\n",
                    if kind == Kind::Ports {
                        "port-forward"
                    } else {
                        "exec and attach"
                    },
                    names(known).join(", ")
                ),
                accepted: Vec::new(),
            });
        };
        answer.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(name),
        );
        (wire, last_word)
    };
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    Ok(Agreed {
        wire,
        last_word,
        headers: answer,
    })
}

fn spdy(known: &[Protocol], headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let asked = list(headers, &STREAM_PROTOCOL);
    if asked.is_empty() {
        return Err(Refusal::bad(format!(
            "unable to upgrade: header {STREAM_PROTOCOL} names no protocol\n"
        )));
    }
    let Some((name, wire, last_word)) = choose(&asked, known) else {
        return Err(Refusal {
            status: StatusCode::FORBIDDEN,
            text: format!(
                "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server accepts {:?}\n",
                names(known)
            ),
            accepted: names(known),
        });
    };
    let mut answer = HeaderMap::new();
    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
    Ok(Agreed {
        wire,
        last_word,
        headers: answer,
    })
}

/// The first that the client names and we know.
fn choose(asked: &[&str], known: &[Protocol]) -> Option<Protocol> {
    asked
        .iter()
        .find_map(|name| known.iter().find(|(known, ..)| known == name))
        .copied()
}

fn names(known: &[Protocol]) -> Vec<&'static str> {
    known.iter().map(|(name, ..)| *name).collect()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    let value = headers.get(name).and_then(|v| v.to_str().ok());
    value.unwrap_or_default().trim()
}

/// The parts of a header that holds a list, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn websocket(protocol: &str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocol),
        ])
    }

    fn spdy(protocol: &str) -> HeaderMap {
        headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", protocol),
        ])
    }

    #[test]
    fn websocket_protocols_are_chosen_in_the_clients_order() {
        let agreed = negotiate(
            Kind::Process,
            &websocket("v4.channel.k8s.io, v5.channel.k8s.io"),
        );
        let agreed = agreed.unwrap();
        assert_eq!(agreed.wire, Wire::WebSocket(Codec::Binary));
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            agreed.headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let tunnel = negotiate(Kind::Ports, &websocket(TUNNEL)).unwrap();
        assert_eq!(tunnel.wire, Wire::Tunnel);
        let mut none = websocket("");
        none.remove("sec-websocket-protocol");
        let oldest = negotiate(Kind::Process, &none).unwrap();
        assert_eq!(
            (oldest.wire, oldest.last_word),
            (Wire::WebSocket(Codec::Binary), LastWord::Text)
        );
        let refused = negotiate(Kind::Process, &websocket(TUNNEL)).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(
            refused.text.contains("v5.channel.k8s.io"),
            "{}",
            refused.text
        );
    }

    #[test]
    fn spdy_protocols_are_chosen_in_the_clients_order() {
        let asked = "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io";
        let agreed = negotiate(Kind::Process, &spdy(asked)).unwrap();
        assert_eq!(agreed.wire, Wire::Spdy);
        assert_eq!(
            agreed.headers["x-stream-protocol-version"],
            "v4.channel.k8s.io"
        );
        let old = negotiate(Kind::Process, &spdy("channel.k8s.io")).unwrap();
        assert_eq!((old.wire, old.last_word), (Wire::Spdy, LastWord::Text));
        let refused = negotiate(Kind::Ports, &spdy(asked)).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert_eq!(refused.accepted, ["portforward.k8s.io"]);
    }

    #[test]
    fn what_is_no_upgrade_is_a_bad_request() {
        for request in [
            HeaderMap::new(),
            headers(&[("upgrade", "websocket")]),
            headers(&[("connection", "upgrade"), ("upgrade", "h2c")]),
            headers(&[("connection", "upgrade"), ("upgrade", "spdy/3.1")]),
            headers(&[("connection", "upgrade"), ("upgrade", "websocket")]),
        ] {
            let refused = negotiate(Kind::Process, &request).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{request:?}");
        }
    }
}
