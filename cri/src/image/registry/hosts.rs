// SPDX-License-Identifier: Apache-2.0
//! Which servers to ask for a registry's content: `hosts.toml` files in the form that containerd
//! reads (its `docs/hosts.md`), and the defaults when there is none.
//!
//! Read: `server`, `[host."URL"]`, and in both places `capabilities`, `skip_verify`, `ca` and
//! `override_path`. Other fields (`client`, `header`, `dial_timeout`) are refused by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::super::error::ImageError;

/// One server that may have the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Ends with `/v2` (or what an overridden path says), without a slash at the end.
    pub(crate) base: Url,
    /// May turn a tag into a digest.
    pub(crate) resolve: bool,
    /// May serve content by digest.
    pub(crate) pull: bool,
    pub(crate) skip_verify: bool,
    /// PEM files to trust besides the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Set for mirrors, so that one server can mirror several registries.
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    /// Kept as a table, because the order of the file is the order of asking.
    #[serde(default)]
    host: toml::Table,
    capabilities: Option<Vec<Capability>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany>,
    override_path: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    capabilities: Option<Vec<Capability>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany>,
    override_path: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    Push,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The servers to ask for content of `domain`, in order. Reads the disk at each call, so that an
/// edited file counts from the next pull on.
pub(crate) fn endpoints(registries_dir: &Path, domain: &str) -> Result<Vec<Endpoint>, ImageError> {
    for directory in directories(domain) {
        let path = registries_dir.join(directory).join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&path, &text, domain),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ImageError::storage("reading", &path, source)),
        }
    }
    let server = default_server(domain)?;
    Ok(vec![endpoint(
        server,
        Host::default(),
        domain,
        Path::new(""),
    )?])
}

/// containerd looks for `host_port_` first, as not all filesystems take a colon.
fn directories(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([domain.to_owned(), "_default".to_owned()]);
    names
}

fn parse(path: &Path, text: &str, domain: &str) -> Result<Vec<Endpoint>, ImageError> {
    let malformed = |source: toml::de::Error| ImageError::Malformed {
        what: format!("{} is not valid", path.display()),
        source: Some(source.into()),
    };
    let file: HostsFile = toml::from_str(text).map_err(malformed)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut endpoints = Vec::new();
    for (url, host) in file.host {
        let host: Host = host.try_into().map_err(malformed)?;
        endpoints.push(endpoint(url_of(path, &url)?, host, domain, directory)?);
    }
    let server = match &file.server {
        Some(server) => url_of(path, server)?,
        None => default_server(domain)?,
    };
    let host = Host {
        capabilities: file.capabilities,
        skip_verify: file.skip_verify,
        ca: file.ca,
        override_path: file.override_path,
    };
    endpoints.push(endpoint(server, host, domain, directory)?);
    Ok(endpoints)
}

fn endpoint(
    mut base: Url,
    host: Host,
    domain: &str,
    directory: &Path,
) -> Result<Endpoint, ImageError> {
    let path = base.path().trim_end_matches('/').to_owned();
    if host.override_path == Some(true) || path.ends_with("/v2") {
        base.set_path(&path);
    } else {
        base.set_path(&format!("{path}/v2"));
    }
    let can = |capability| {
        host.capabilities
            .as_ref()
            .is_none_or(|all| all.contains(&capability))
    };
    let same = base.host_str() == default_server(domain)?.host_str()
        && base.port_or_known_default() == default_server(domain)?.port_or_known_default();
    Ok(Endpoint {
        resolve: can(Capability::Resolve),
        pull: can(Capability::Pull),
        skip_verify: host.skip_verify.unwrap_or(false),
        ca: match host.ca {
            None => Vec::new(),
            Some(OneOrMany::One(path)) => vec![directory.join(path)],
            Some(OneOrMany::Many(paths)) => paths.iter().map(|p| directory.join(p)).collect(),
        },
        namespace: (!same).then(|| domain.to_owned()),
        base,
    })
}

/// A URL as `hosts.toml` has it: with a scheme, or a bare host, which means https.
fn url_of(path: &Path, text: &str) -> Result<Url, ImageError> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => Ok(url),
        _ => Err(ImageError::malformed(format!(
            "{}: {text:?} is not an http or https URL",
            path.display()
        ))),
    }
}

/// HTTPS, but plain HTTP to this machine itself, where nobody listens in (as containerd does).
fn default_server(domain: &str) -> Result<Url, ImageError> {
    let host = match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let https = Url::parse(&format!("https://{host}"))
        .map_err(|_| ImageError::malformed(format!("{domain:?} is not a host")))?;
    let loopback = match https.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if loopback && !domain.ends_with(":443") {
        return Url::parse(&format!("http://{host}"))
            .map_err(|_| ImageError::malformed(format!("{domain:?} is not a host")));
    }
    Ok(https)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, domain: &str) -> Vec<String> {
        parse(Path::new("/r/d/hosts.toml"), text, domain)
            .unwrap()
            .into_iter()
            .map(|endpoint| endpoint.base.to_string())
            .collect()
    }

    #[test]
    fn without_a_file_only_loopback_is_plain_http() {
        let none = Path::new("/nonexistent");
        for (domain, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("example.com:5000", "https://example.com:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.7", "http://127.0.0.7/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("127.0.0.1:443", "https://127.0.0.1/v2"),
            ("localhost.example.com", "https://localhost.example.com/v2"),
        ] {
            let endpoints = endpoints(none, domain).unwrap();
            assert_eq!(endpoints[0].base.as_str(), base);
            assert_eq!(endpoints[0].namespace, None);
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."http://z.example:5000"]
            capabilities = ["pull"]
            [host."https://a.example/v2/hub"]
            override_path = true
            skip_verify = true
            ca = "a.pem"
        "#;
        assert_eq!(
            bases(text, "docker.io"),
            [
                "http://z.example:5000/v2",
                "https://a.example/v2/hub",
                "https://registry-1.docker.io/v2"
            ]
        );
        let all = parse(Path::new("/r/d/hosts.toml"), text, "docker.io").unwrap();
        assert!(all[0].pull && !all[0].resolve && !all[0].skip_verify);
        assert_eq!(all[0].namespace.as_deref(), Some("docker.io"));
        assert!(all[1].resolve && all[1].skip_verify);
        assert_eq!(all[1].ca, [PathBuf::from("/r/d/a.pem")]);
        assert_eq!(all[2].namespace, None);
    }

    #[test]
    fn unknown_fields_are_named() {
        for (text, named) in [
            ("[host.\"https://a\"]\nclient = \"c.pem\"", "client"),
            ("sevrer = \"x\"", "sevrer"),
            ("server = \"ftp://x\"", "ftp"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"),
        ] {
            let error = parse(Path::new("/r/d/hosts.toml"), text, "d").unwrap_err();
            let text = error.message();
            assert!(
                text.contains(named) && text.contains("hosts.toml"),
                "{text}"
            );
        }
    }

    #[test]
    fn directories_are_those_of_containerd() {
        assert_eq!(
            directories("a.example:5000"),
            ["a.example_5000_", "a.example:5000", "_default"]
        );
        assert_eq!(directories("docker.io"), ["docker.io", "_default"]);
    }
}
