// SPDX-License-Identifier: Apache-2.0
//! Image references, normalised as docker and containerd do it (the grammar is that of
//! `github.com/distribution/reference`): `busybox` means `docker.io/library/busybox:latest`.
//!
//! A reference with both tag and digest keeps only the digest, as containerd's CRI does: the digest
//! decides what is run, and a tag beside it would claim something that nobody checked.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError, is_sha256_hex};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const DEFAULT_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// `NameTotalLengthMax` of the reference grammar: domain and path together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete, normalised reference: domain, path, and either a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    target: Target,
}

/// What a reference points with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Tag(String),
    Digest(Digest),
}

/// Why a string is not an image reference. The text is fit for `InvalidImageName`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("couldn't parse image name {reference:?}: {reason}")]
    Invalid {
        reference: String,
        reason: &'static str,
    },
    #[error("couldn't parse image name {reference:?}")]
    Digest {
        reference: String,
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// The registry's host, with port if one was given. `docker.io` stays `docker.io` here.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `domain/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        match &self.target {
            Target::Tag(_) => None,
            Target::Digest(digest) => Some(digest),
        }
    }

    /// The same repository, pointing at a digest.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            target: Target::Digest(digest),
            ..self.clone()
        }
    }

    /// The tag or digest as it stands in a registry URL.
    pub fn target_text(&self) -> String {
        match &self.target {
            Target::Tag(tag) => tag.clone(),
            Target::Digest(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    /// The normalised form, which is also what CRI answers carry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        match &self.target {
            Target::Tag(tag) => write!(f, ":{tag}"),
            Target::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let invalid = |reason| ReferenceError::Invalid {
            reference: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if is_sha256_hex(text) {
            return Err(invalid("64 hex digits name an image id, not a repository"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                    reference: text.to_owned(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "the tag must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'",
            ));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(invalid("the registry host is not valid"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid("the repository name must be lower case"));
        }
        if !is_path(&path) {
            return Err(invalid("invalid reference format"));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(invalid("the name has more than 255 characters"));
        }
        let target = match (digest, tag) {
            (Some(digest), _) => Target::Digest(digest),
            (None, tag) => Target::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Reference {
            domain,
            path,
            target,
        })
    }
}

/// Cuts the tag off: a colon after the last slash (one before it belongs to a port).
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let after_slash = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[after_slash..].find(':') {
        Some(colon) => (
            &text[..after_slash + colon],
            Some(&text[after_slash + colon + 1..]),
        ),
        None => (text, None),
    }
}

/// The first component is a host when it has a dot, a colon or an upper-case letter, or is
/// `localhost`. Everything else lives on Docker Hub.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        (domain.to_owned(), format!("{DEFAULT_PREFIX}{path}"))
    } else {
        (domain.to_owned(), path.to_owned())
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return is_ipv6(address),
            Some((address, port)) if is_ipv6(address) => match port.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return false,
            },
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    host.split('.').all(|label| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    }) && port.is_none_or(is_port)
}

fn is_ipv6(address: &str) -> bool {
    address.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, parted by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let edges_ok =
        bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    edges_ok
        && bytes.split(alphanumeric).all(|separator| match separator {
            [] | b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_docker_does() {
        let at = format!("busybox:1.36@sha256:{HEX}");
        let at_normal = format!("docker.io/library/busybox@sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            (at.as_str(), at_normal.as_str()),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x:y", "[::1]:5000/x:y"),
            ("[2001:db8::1]/x", "[2001:db8::1]/x:latest"),
            (
                "registry.k8s.io/pause:3.10.1",
                "registry.k8s.io/pause:3.10.1",
            ),
            ("Host/x", "Host/x:latest"),
            ("a__b/c.d--e", "docker.io/a__b/c.d--e:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
        ];
        for (given, wanted) in table {
            let parsed: Reference = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
            assert_eq!(parsed.to_string(), wanted, "{given}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{given} again");
        }
    }

    #[test]
    fn bad_references_are_refused() {
        let long = "a".repeat(300);
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":tag",
            "/x",
            "x/",
            "a//b",
            "Upper",
            "example.com/Upper",
            "x:",
            "x:-tag",
            "x:ta g",
            "x@",
            "x@sha256:12",
            "x@sha512:12",
            "-x",
            "a___b",
            "a..b",
            "a._b",
            "exa_mple.com/x",
            "example.com:port/x",
            "example.com:99999/x",
            "../../etc",
            "[::g]/x",
            "x\n",
            "ünicode",
            HEX,
            &long,
            &long_tag,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_error_names_the_reference_and_the_reason() {
        let error = "Nginx:latest".parse::<Reference>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "couldn't parse image name \"Nginx:latest\": the repository name must be lower case"
        );
    }
}
