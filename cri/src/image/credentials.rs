// SPDX-License-Identifier: Apache-2.0
//! Credentials that a machine keeps: docker's `config.json` (docker's reference of `docker login`,
//! containers-auth.json(5)), and the credential helpers that it names.
//!
//! Keys of `auths` are matched as the kubelet does it (`pkg/credentialprovider`): a registry's host,
//! whose labels may be globs, and optionally a path that the repository begins with; the longest wins.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::reference::Reference;
use super::types::Auth;

/// Larger files hold something else.
const MAX_FILE: u64 = 4 << 20;
/// A helper may ask a service of its own on the network, but nobody at the terminal.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
const MAX_ANSWER: u64 = 1 << 20;
/// What Docker Hub is called in these files and by helpers.
const HUB: &str = "https://index.docker.io/v1/";
/// What helpers answer when they know nothing (docker-credential-helpers, `credentials/error.go`).
const UNKNOWN: &str = "credentials not found in native keychain";

/// Why kept credentials cannot be used. Never shows them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("reading credentials from {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("credentials in {path} are not valid: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("credential helper {helper} for {server}: {reason}")]
    Helper {
        helper: String,
        server: String,
        reason: String,
    },
}

/// A file of credentials, read.
#[derive(Debug, Default)]
pub struct CredentialFile {
    path: PathBuf,
    content: Content,
}

/// Other fields of the file are docker's own business.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for Content {
    /// Never shows a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.auths.keys()).finish()
    }
}

/// Where credentials are looked for, in this order, when none are given: the first file that exists
/// counts. `variable` reads the environment.
pub fn search_paths(variable: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let below = |name: &str, rest: &str| set(name).map(|dir| Path::new(&dir).join(rest));
    [
        set("REGISTRY_AUTH_FILE").map(PathBuf::from),
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("DOCKER_CONFIG", "config.json"),
        below("HOME", ".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl CredentialFile {
    /// Reads a file. Blocks.
    pub fn read(path: &Path) -> Result<CredentialFile, CredentialError> {
        let read = || super::rooted::read_bounded(std::fs::File::open(path)?, MAX_FILE);
        let bytes = read().map_err(|source| CredentialError::Read {
            path: path.to_owned(),
            source,
        })?;
        CredentialFile::parse(path, &bytes)
    }

    /// The first of these files that exists; an empty one when none does. Blocks.
    pub fn first(paths: &[PathBuf]) -> Result<CredentialFile, CredentialError> {
        match paths.iter().find(|path| path.exists()) {
            Some(path) => CredentialFile::read(path),
            None => Ok(CredentialFile::default()),
        }
    }

    pub fn parse(path: &Path, bytes: &[u8]) -> Result<CredentialFile, CredentialError> {
        // The parser's own text could quote a secret, so only the place is told.
        let content = serde_json::from_slice(bytes).map_err(|error| CredentialError::File {
            path: path.to_owned(),
            reason: format!("line {}, column {}", error.line(), error.column()),
        })?;
        Ok(CredentialFile {
            path: path.to_owned(),
            content,
        })
    }

    /// Credentials for the repository of a reference. Asks the helper that is configured for the
    /// registry, else the one for all registries; the file itself holds the rest. May be dropped: a
    /// helper that runs is killed.
    pub async fn find(&self, reference: &Reference) -> Result<Auth, CredentialError> {
        if let Some(helper) = self.helper(reference.domain()) {
            let server = server_name(reference.domain());
            if let Some(auth) = ask(helper, server).await? {
                return Ok(auth);
            }
        }
        self.kept(reference)
    }

    fn helper(&self, domain: &str) -> Option<&str> {
        let of_host = self.content.cred_helpers.iter().find_map(|(key, helper)| {
            let (host, path) = host_and_path(key);
            (path.is_empty() && same_host(host, domain)).then_some(helper)
        });
        of_host
            .or(Some(&self.content.creds_store))
            .map(String::as_str)
            .filter(|helper| !helper.is_empty())
    }

    /// What the file itself says.
    pub fn kept(&self, reference: &Reference) -> Result<Auth, CredentialError> {
        let matching = self.content.auths.iter().filter_map(|(key, entry)| {
            let (host, path) = host_and_path(key);
            let fits = same_host(host, reference.domain()) && begins(reference.path(), path);
            // An exact host before a pattern of the same length.
            let exact = !host.contains('*');
            (fits && !entry.is_empty()).then_some(((path.len(), exact, host.len()), key, entry))
        });
        match matching.max_by_key(|(weight, ..)| *weight) {
            None => Ok(Auth::Anonymous),
            Some((_, key, entry)) => entry.auth().ok_or_else(|| CredentialError::File {
                path: self.path.clone(),
                reason: format!("the entry of {key:?} does not hold base64 of user:password"),
            }),
        }
    }
}

impl Entry {
    /// Where a helper keeps the secret, docker leaves an empty entry behind.
    fn is_empty(&self) -> bool {
        [
            &self.auth,
            &self.username,
            &self.identitytoken,
            &self.registrytoken,
        ]
        .into_iter()
        .all(String::is_empty)
    }

    fn auth(&self) -> Option<Auth> {
        if !self.identitytoken.is_empty() {
            return Some(Auth::IdentityToken(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Some(Auth::RegistryToken(self.registrytoken.clone()));
        }
        if !self.username.is_empty() {
            return Some(Auth::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            });
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Auth::Basic {
            username: username.to_owned(),
            password: password.trim_matches('\0').to_owned(),
        })
    }
}

/// A key without its scheme and the API's version, which older files have.
fn host_and_path(key: &str) -> (&str, &str) {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_matches('/');
    match path {
        "v1" | "v2" => (host, ""),
        path => (host, path),
    }
}

fn same_host(pattern: &str, domain: &str) -> bool {
    let hub = |name: &str| {
        matches!(
            name,
            "docker.io" | "index.docker.io" | "registry-1.docker.io"
        )
    };
    if hub(pattern) && hub(domain) {
        return true;
    }
    let split = |name: &str| match name.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host.to_owned(), port.to_owned()),
        _ => (name.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(domain));
    let (labels, of): (Vec<_>, Vec<_>) = (host.split('.').collect(), pattern.split('.').collect());
    pattern_port == port
        && labels.len() == of.len()
        && labels
            .iter()
            .zip(of)
            .all(|(label, pattern)| glob(pattern, label))
}

/// A text against a pattern in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern.eq_ignore_ascii_case(text);
    };
    let Some(mut left) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, middle) = parts.split_last().unwrap_or((&"", &[]));
    for part in middle {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// Whole components only: `team` is not the beginning of `teams/app`.
fn begins(path: &str, prefix: &str) -> bool {
    prefix.is_empty()
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn server_name(domain: &str) -> &str {
    match domain {
        "docker.io" => HUB,
        other => other,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// `docker-credential-HELPER get`: the server's name on stdin, JSON on stdout.
async fn ask(helper: &str, server: &str) -> Result<Option<Auth>, CredentialError> {
    let failed = |reason: String| CredentialError::Helper {
        helper: helper.to_owned(),
        server: server.to_owned(),
        reason,
    };
    if helper.contains(['/', '\0']) {
        return Err(failed("not the name of a program".to_owned()));
    }
    let program = format!("docker-credential-{helper}");
    let (success, output) = match tokio::time::timeout(HELPER_DEADLINE, run(&program, server)).await
    {
        Err(_) => return Err(failed(format!("no answer within {HELPER_DEADLINE:?}"))),
        Ok(Err(error)) => return Err(failed(format!("running {program}: {error}"))),
        Ok(Ok(result)) => result,
    };
    let text = String::from_utf8_lossy(&output);
    if !success {
        let said: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        return match said.contains(UNKNOWN) {
            true => Ok(None),
            false => Err(failed(format!(
                "it failed: {}",
                said.chars().take(300).collect::<String>()
            ))),
        };
    }
    // Not with the parser's words: they could quote the secret.
    let answer: Answer =
        serde_json::from_str(&text).map_err(|_| failed("its answer is not JSON".to_owned()))?;
    Ok(Some(match answer.username.as_str() {
        "" if answer.secret.is_empty() => return Ok(None),
        "<token>" => Auth::IdentityToken(answer.secret),
        _ => Auth::Basic {
            username: answer.username,
            password: answer.secret,
        },
    }))
}

async fn run(program: &str, server: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input has decided already.
        drop(stdin.write_all(format!("{server}\n").as_bytes()).await);
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Auth {
        Auth::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    fn kept(json: serde_json::Value, reference: &str) -> Auth {
        let file = CredentialFile::parse(Path::new("f"), json.to_string().as_bytes()).unwrap();
        file.kept(&reference.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_longest_key_that_fits_wins() {
        let entry = |name: &str| serde_json::json!({"username": name, "password": "p"});
        let file = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:a:b")},
            "r.example:5000": entry("host"),
            "r.example:5000/team": entry("team"),
            "*.cloud.example": entry("cloud"),
            "eu.cloud.example": entry("eu"),
            "token.example": {"identitytoken": "t"},
            "helped.example": {},
        }});
        for (reference, auth) in [
            ("busybox", basic("hub", "a:b")),
            ("r.example:5000/app", basic("host", "p")),
            ("r.example:5000/team/app", basic("team", "p")),
            ("r.example:5000/teams/app", basic("host", "p")),
            ("r.example/app", Auth::Anonymous),
            ("us.cloud.example/app", basic("cloud", "p")),
            ("eu.cloud.example/app", basic("eu", "p")),
            ("a.b.cloud.example/app", Auth::Anonymous),
            ("token.example/app", Auth::IdentityToken("t".into())),
            ("helped.example/app", Auth::Anonymous),
        ] {
            assert_eq!(kept(file.clone(), reference), auth, "{reference}");
        }
    }

    #[test]
    fn a_bad_file_is_told_without_its_secrets() {
        let path = Path::new("/etc/c.json");
        let bad = br#"{"auths": {"a.example": {"auth": "c2VjcmV0", "#;
        let error = CredentialFile::parse(path, bad).unwrap_err().to_string();
        assert!(error.contains("/etc/c.json") && !error.contains("c2VjcmV0"));
        let bad = serde_json::json!({"auths": {"a.example": {"auth": "!hunter2"}}}).to_string();
        let file = CredentialFile::parse(path, bad.as_bytes()).unwrap();
        let error = file.kept(&"a.example/x".parse().unwrap()).unwrap_err();
        assert!(!format!("{error} {file:?}").contains("hunter2"));
    }

    #[test]
    fn files_are_searched_in_order() {
        let environment = |name: &str| match name {
            "HOME" => Some("/root".to_owned()),
            "XDG_RUNTIME_DIR" => Some("/run/user/0".to_owned()),
            "DOCKER_CONFIG" => Some(String::new()),
            _ => None,
        };
        let paths = search_paths(environment);
        assert_eq!(
            paths,
            [
                Path::new("/run/user/0/containers/auth.json"),
                Path::new("/root/.docker/config.json")
            ]
        );
    }

    #[test]
    fn globs_match_within_a_label() {
        for (pattern, label, fits) in [
            ("*", "a", true),
            ("a*c", "abc", true),
            ("a*b*c", "a1b2c", true),
            ("a*c", "ab", false),
            ("abc*abc", "abc", false),
            ("A", "a", true),
        ] {
            assert_eq!(glob(pattern, label), fits, "{pattern} {label}");
        }
    }
}
