// SPDX-License-Identifier: Apache-2.0
//! Which servers to ask for a registry's content: `hosts.toml` files in the form that containerd
//! reads (its `docs/hosts.md`), and the defaults when there is none.
//!
//! Read: `server`, `[host."URL"]`, and in both places `capabilities`, `skip_verify`, `ca`, `client`,
//! `header`, `override_path`, `dial_timeout`, and `rewrite`, a table of regular expressions and what
//! to put in place of what they match in the repository's name (as k3s has it). Other fields are
//! refused by name. Without the file, `*.crt`, `*.cert` and `*.key` are read as docker does.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::error::ImageError;

/// One server that may have the content.
#[derive(Debug, Clone)]
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
    /// PEM files of a certificate and its key to show, which may be one file.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    /// Sent to this server, and to no other that it may redirect to.
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
    rewrites: Vec<(Regex, String)>,
    /// Set for mirrors, so that one server can mirror several registries.
    pub(crate) namespace: Option<String>,
}

impl Endpoint {
    /// What the repository is called on this server: the first rewrite that changes it counts.
    pub(crate) fn repository(&self, name: &str) -> String {
        self.rewrites
            .iter()
            .map(|(pattern, by)| pattern.replace_all(name, by.as_str()))
            .find(|rewritten| rewritten != name)
            .map_or_else(|| name.to_owned(), |rewritten| rewritten.into_owned())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    /// Kept as a table, because the order of the file is the order of asking.
    #[serde(default)]
    host: toml::Table,
    // The same as in `Host`: serde does not flatten into what refuses unknown fields.
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<Client>,
    header: Option<toml::map::Map<String, toml::Value>>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    rewrite: Option<toml::Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<Client>,
    header: Option<toml::map::Map<String, toml::Value>>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    rewrite: Option<toml::Table>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// A file with both, or a list of such files and of pairs: two files in a list are no pair.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    Many(Vec<OneOrMany<PathBuf>>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// The servers to ask for content of `domain`, in order. Reads the disk at each call, so that an
/// edited file counts from the next pull on.
pub(crate) fn endpoints(registries_dir: &Path, domain: &str) -> Result<Vec<Endpoint>, ImageError> {
    let found = directories(domain)
        .into_iter()
        .map(|name| registries_dir.join(name))
        .find(|directory| directory.is_dir());
    let host = match found {
        None => Host::default(),
        Some(directory) => {
            let path = directory.join("hosts.toml");
            match fs::read_to_string(&path) {
                Ok(text) if !text.is_empty() => return parse(&path, &text, domain),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::storage("reading", &path, error));
                }
                _ => certificates(&directory)
                    .map_err(|source| ImageError::storage("listing", &directory, source))?,
            }
        }
    };
    let place = Place {
        file: registries_dir,
        directory: Path::new(""),
    };
    Ok(vec![endpoint(
        default_server(domain)?,
        host,
        domain,
        &place,
    )?])
}

/// Docker's way to say what to trust and what to show: `NAME.crt`, and `NAME.cert` with `NAME.key`.
fn certificates(directory: &Path) -> io::Result<Host> {
    let (mut trusted, mut shown) = (Vec::new(), Vec::new());
    let mut paths = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => trusted.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                shown.push(match key.exists() {
                    true => OneOrMany::Many(vec![path, key]),
                    false => OneOrMany::One(path),
                });
            }
            _ => {}
        }
    }
    Ok(Host {
        ca: Some(OneOrMany::Many(trusted)),
        client: Some(Client::Many(shown)),
        ..Host::default()
    })
}

/// Where an entry was read: for messages, and for relative paths.
struct Place<'a> {
    file: &'a Path,
    directory: &'a Path,
}

impl Place<'_> {
    fn bad(&self, what: impl std::fmt::Display) -> ImageError {
        ImageError::malformed(format!("{}: {what}", self.file.display()))
    }
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

/// The servers that a `hosts.toml` of this path and text names for a registry.
pub(crate) fn parse(path: &Path, text: &str, domain: &str) -> Result<Vec<Endpoint>, ImageError> {
    let malformed = |source: toml::de::Error| ImageError::Malformed {
        what: format!("{} is not valid", path.display()),
        source: Some(source.into()),
    };
    let file: HostsFile = toml::from_str(text).map_err(malformed)?;
    let place = Place {
        file: path,
        directory: path.parent().unwrap_or(Path::new("")),
    };
    let mut endpoints = Vec::new();
    for (url, host) in file.host {
        let host: Host = host.try_into().map_err(malformed)?;
        endpoints.push(endpoint(url_of(path, &url)?, host, domain, &place)?);
    }
    let server = match file.server.as_deref().filter(|server| !server.is_empty()) {
        Some(server) => url_of(path, server)?,
        None => default_server(domain)?,
    };
    let host = Host {
        capabilities: file.capabilities,
        skip_verify: file.skip_verify,
        ca: file.ca,
        client: file.client,
        header: file.header,
        override_path: file.override_path,
        dial_timeout: file.dial_timeout,
        rewrite: file.rewrite,
    };
    endpoints.push(endpoint(server, host, domain, &place)?);
    Ok(endpoints)
}

fn endpoint(
    mut base: Url,
    host: Host,
    domain: &str,
    place: &Place<'_>,
) -> Result<Endpoint, ImageError> {
    let path = base.path().trim_end_matches('/').to_owned();
    if host.override_path == Some(true) || path.ends_with("/v2") {
        base.set_path(&path);
    } else {
        base.set_path(&format!("{path}/v2"));
    }
    let (resolve, pull) = capabilities(host.capabilities.unwrap_or_default(), place)?;
    let upstream = default_server(domain)?;
    let same = base.host_str() == upstream.host_str()
        && base.port_or_known_default() == upstream.port_or_known_default();
    let trusted = host.ca.map(OneOrMany::into_vec).unwrap_or_default();
    Ok(Endpoint {
        resolve,
        pull,
        skip_verify: host.skip_verify.unwrap_or(false),
        ca: trusted.iter().map(|p| place.directory.join(p)).collect(),
        client: host.client.map(|c| client(c, place)).transpose()?.flatten(),
        headers: headers(host.header.unwrap_or_default(), place)?,
        dial_timeout: host
            .dial_timeout
            .filter(|text| !text.is_empty())
            .map(|text| duration(&text, place))
            .transpose()?,
        rewrites: rewrites(host.rewrite.unwrap_or_default(), place)?,
        namespace: (!same).then(|| domain.to_owned()),
        base,
    })
}

/// Whether a host may resolve and pull; one that says nothing may. Nothing here pushes.
fn capabilities(named: Vec<String>, place: &Place<'_>) -> Result<(bool, bool), ImageError> {
    let (mut resolve, mut pull) = (named.is_empty(), named.is_empty());
    for name in named {
        match name.to_ascii_lowercase().as_str() {
            "resolve" => resolve = true,
            "pull" => pull = true,
            "push" | "referrers" => {}
            _ => return Err(place.bad(format!("unknown capability {name:?}"))),
        }
    }
    Ok((resolve, pull))
}

/// A certificate to show: one file with both, or a certificate and its key.
fn client(given: Client, place: &Place<'_>) -> Result<Option<(PathBuf, PathBuf)>, ImageError> {
    let entries = match given {
        Client::One(file) => vec![OneOrMany::One(file)],
        Client::Many(entries) => entries,
    };
    let mut pairs = Vec::new();
    for entry in entries {
        let files = entry.into_vec();
        let files: Vec<PathBuf> = files.iter().map(|p| place.directory.join(p)).collect();
        pairs.push(match files.as_slice() {
            [both] => (both.clone(), both.clone()),
            [certificate, key] => (certificate.clone(), key.clone()),
            _ => return Err(place.bad("client must be a file, or pairs of certificate and key")),
        });
    }
    match pairs.len() {
        0 | 1 => Ok(pairs.pop()),
        n => Err(place.bad(format!(
            "{n} client certificates for one host are not supported, only one is"
        ))),
    }
}

fn headers(
    given: toml::map::Map<String, toml::Value>,
    place: &Place<'_>,
) -> Result<HeaderMap, ImageError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let values: Vec<String> = value
            .try_into::<OneOrMany<String>>()
            .map_err(|_| place.bad(format!("header {name:?} must be a text or a list of texts")))?
            .into_vec();
        let key: HeaderName = name
            .parse()
            .map_err(|_| place.bad(format!("{name:?} is not the name of a header")))?;
        for text in values {
            // The value may be a secret, so it is not shown.
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| place.bad(format!("the value of header {name:?} is not valid")))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// As Go writes durations: `3s`, `1m30s`, `500ms`.
fn duration(text: &str, place: &Place<'_>) -> Result<Duration, ImageError> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            place.bad(format!(
                "dial_timeout {text:?} is not a duration such as \"3s\""
            ))
        })
}

fn rewrites(given: toml::Table, place: &Place<'_>) -> Result<Vec<(Regex, String)>, ImageError> {
    let rewrite = |(pattern, by): (String, toml::Value)| {
        let expression = Regex::new(&pattern).map_err(|error| ImageError::Malformed {
            what: format!("{}: rewrite {pattern:?} is not valid", place.file.display()),
            source: Some(error.into()),
        })?;
        match by {
            toml::Value::String(by) => Ok((expression, by)),
            _ => Err(place.bad(format!("what rewrite {pattern:?} puts in must be a text"))),
        }
    };
    given.into_iter().map(rewrite).collect()
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
            ("[host.\"https://a\"]\nclients = \"c.pem\"", "clients"),
            ("client = [\"c.pem\", \"d.pem\"]", "2 client certificates"),
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
    fn all_fields_of_a_host_are_read() {
        let text = r#"
            [host."https://m.example"]
            capabilities = ["Pull", "push"]
            ca = ["a.pem", "/b.pem"]
            client = [["c.pem", "k.pem"]]
            dial_timeout = "1m30s"
            [host."https://m.example".header]
            X-One = "1"
            X-Two = ["a", "b"]
            [host."https://m.example".rewrite]
            "^team/(.*)$" = "mirror/$1"
            "^library/" = "hub/"
        "#;
        let all = parse(Path::new("/r/d/hosts.toml"), text, "r.example").unwrap();
        let host = &all[0];
        assert!(host.pull && !host.resolve);
        assert_eq!(host.ca, [Path::new("/r/d/a.pem"), Path::new("/b.pem")]);
        let pair = ("/r/d/c.pem".into(), "/r/d/k.pem".into());
        assert_eq!(host.client, Some(pair));
        assert_eq!(host.dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!(host.headers.get_all("x-two").iter().count(), 2);
        assert_eq!(host.repository("team/app"), "mirror/app");
        assert_eq!(host.repository("library/busybox"), "hub/busybox");
        assert_eq!(host.repository("other/app"), "other/app");
        assert_eq!(all[1].repository("team/app"), "team/app");
    }

    #[test]
    fn dockers_certificate_files_are_read_when_there_is_no_hosts_toml() {
        let dir = tempfile::tempdir().unwrap();
        let of = dir.path().join("r.example_5000_");
        fs::create_dir(&of).unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "README"] {
            fs::write(of.join(name), "").unwrap();
        }
        // The first directory that exists counts, even if it says less than another.
        fs::create_dir(dir.path().join("_default")).unwrap();
        fs::write(dir.path().join("_default/hosts.toml"), "skip_verify = true").unwrap();
        let all = endpoints(dir.path(), "r.example:5000").unwrap();
        assert_eq!(all[0].ca, [of.join("ca.crt")]);
        assert_eq!(all[0].client, Some((of.join("me.cert"), of.join("me.key"))));
        assert!(!all[0].skip_verify);
        assert!(endpoints(dir.path(), "other.example").unwrap()[0].skip_verify);
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
