// SPDX-License-Identifier: Apache-2.0
//! One-time tokens: what was asked for over CRI, until it is taken up over HTTP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fault::{Fault, Kind, Result};

/// How long a token waits for its client, as in the kubelet's streaming library.
const LIFETIME: Duration = Duration::from_secs(60);
/// How many may wait: a client that only asks must not fill our memory.
const WAITING_MAX: usize = 1000;

/// A checked request for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stream {
    Exec {
        container: String,
        command: Vec<String>,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Attach {
        container: String,
        /// As asked for, like the streams: it decides which channels the client opens.
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    PortForward {
        sandbox: String,
        ports: Vec<u16>,
    },
}

impl Stream {
    /// The first part of the URL's path.
    fn kind(&self) -> &'static str {
        match self {
            Stream::Exec { .. } => "exec",
            Stream::Attach { .. } => "attach",
            Stream::PortForward { .. } => "portforward",
        }
    }
}

/// Requests that wait for their client.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// `http://address`, or `https`.
    base: String,
    waiting: Mutex<HashMap<String, (Stream, Instant)>>,
}

impl Tokens {
    /// URLs will point to `address`; to loopback, if it stands for every address.
    pub(crate) fn new(mut address: SocketAddr, tls: bool) -> Self {
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let scheme = if tls { "https" } else { "http" };
        Self {
            base: format!("{scheme}://{address}"),
            waiting: Mutex::new(HashMap::new()),
        }
    }

    /// For a runtime that serves no streams.
    pub(crate) fn unused() -> Self {
        Self::new((Ipv4Addr::LOCALHOST, 0).into(), false)
    }

    /// Keeps a request and returns the URL to take it up.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait.
    pub(crate) fn keep(&self, stream: Stream) -> Result<String> {
        self.keep_at(stream, Instant::now())
    }

    fn keep_at(&self, stream: Stream, now: Instant) -> Result<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, since)| now.saturating_duration_since(*since) < LIFETIME);
        if waiting.len() >= WAITING_MAX {
            return Err(Fault::new(
                Kind::Exhausted,
                format!("{WAITING_MAX} streams wait for their clients already"),
            ));
        }
        let bytes: [u8; 16] = rand::random();
        let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let url = format!("{}/{}/{token}", self.base, stream.kind());
        waiting.insert(token, (stream, now));
        Ok(url)
    }

    /// Takes a request up, once.
    pub(crate) fn take(&self, kind: &str, token: &str) -> Option<Stream> {
        self.take_at(kind, token, Instant::now())
    }

    fn take_at(&self, kind: &str, token: &str, now: Instant) -> Option<Stream> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, since) = waiting.remove(token)?;
        let fresh = now.saturating_duration_since(since) < LIFETIME;
        (fresh && stream.kind() == kind).then_some(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(([127, 0, 0, 1], 1234).into(), false)
    }

    fn stream() -> Stream {
        Stream::PortForward {
            sandbox: "s".into(),
            ports: vec![80],
        }
    }

    #[test]
    fn a_token_works_once_and_not_for_ever() {
        let tokens = tokens();
        let url = tokens.keep(stream()).unwrap();
        let token = url
            .strip_prefix("http://127.0.0.1:1234/portforward/")
            .unwrap();
        assert_eq!(tokens.take("portforward", token), Some(stream()));
        assert_eq!(tokens.take("portforward", token), None);
        let old = tokens.keep(stream()).unwrap();
        let token = old.rsplit('/').next().unwrap();
        assert_eq!(
            tokens.take_at("portforward", token, Instant::now() + LIFETIME),
            None
        );
    }

    #[test]
    fn urls_lead_somewhere() {
        let tokens = Tokens::new(([0_u16; 8], 99).into(), true);
        let url = tokens.keep(stream()).unwrap();
        assert!(url.starts_with("https://[::1]:99/portforward/"), "{url}");
    }

    #[test]
    fn waiting_requests_are_bounded_and_expire() {
        let tokens = tokens();
        let start = Instant::now();
        for _ in 0..WAITING_MAX {
            tokens.keep_at(stream(), start).unwrap();
        }
        assert_eq!(
            tokens.keep_at(stream(), start).unwrap_err().kind,
            Kind::Exhausted
        );
        assert!(tokens.keep_at(stream(), start + LIFETIME).is_ok());
    }
}
