// SPDX-License-Identifier: Apache-2.0
//! Registry credentials from a pod's imagePullSecrets: types kubernetes.io/dockerconfigjson and
//! kubernetes.io/dockercfg.

use std::collections::BTreeMap;

use base64::Engine;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde::Deserialize;

use super::image::registry;
use super::spec;
use crate::cri_v1 as cri;
use crate::env::Objects;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Credentials for the image's registry, in the order of the secrets.
    pub auths: Vec<cri::AuthConfig>,
    /// Names of secrets that cannot be read.
    pub problems: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// Reads the pod's imagePullSecrets and picks what fits the registry of `image`.
pub async fn lookup(pod: &Pod, image: &str, objects: &dyn Objects) -> Found {
    let mut found = Found::default();
    for reference in spec::spec(pod).image_pull_secrets.iter().flatten() {
        match objects.secret(spec::namespace(pod), &reference.name).await {
            Ok(secret) => found.auths.extend(from_secret(&secret, image)),
            Err(_) => found.problems.push(reference.name.clone()),
        }
    }
    found
}

fn from_secret(secret: &Secret, image: &str) -> Option<cri::AuthConfig> {
    let data = secret.data.as_ref()?;
    let entries = if let Some(json) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(&json.0).ok()?.auths
    } else {
        serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?
    };
    let wanted = normal(registry(image));
    let (server, entry) = entries
        .into_iter()
        .find(|(server, _)| normal(host(server)) == wanted)?;
    Some(auth(server, entry))
}

fn host(server: &str) -> &str {
    let bare = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    bare.split('/').next().unwrap_or_default()
}

/// Docker Hub has several names.
fn normal(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

fn auth(server: String, entry: Entry) -> cri::AuthConfig {
    let mut config = cri::AuthConfig {
        username: entry.username,
        password: entry.password,
        server_address: server,
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
        ..Default::default()
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim());
    let decoded = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((username, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
        config.username = username.to_owned();
        config.password = password.to_owned();
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_images_registry_is_used() {
        let json = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOng="}, "r.io:5000": {"username": "a", "password": "b"}}}"#;
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(json)}
        }))
        .expect("a secret");
        let hub = from_secret(&secret, "busybox:1").expect("found");
        assert_eq!((hub.username.as_str(), hub.password.as_str()), ("u", "p:x"));
        let own = from_secret(&secret, "r.io:5000/x").expect("found");
        assert_eq!((own.username.as_str(), own.password.as_str()), ("a", "b"));
        assert!(from_secret(&secret, "quay.io/x").is_none());
    }
}
