// SPDX-License-Identifier: Apache-2.0
//! What depends on the environment: credential helpers and HTTP proxies. Each test starts this
//! executable again for one test of it, in an environment of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use cri::image::credentials::{CredentialError, CredentialFile};
use cri::image::{Auth, no_progress};

use crate::images::Bench;
use crate::liar::Liar;

/// Runs the ignored test of this name in another environment.
fn again(test: &str, variables: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", test])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

fn helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn credential_helpers_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    let knows = r#"read server; [ "$1" = get ] && echo "{\"ServerURL\":\"$server\",\"Username\":\"of $server\",\"Secret\":\"s\"}""#;
    helper(dir.path(), "knows", knows);
    helper(
        dir.path(),
        "token",
        r#"echo '{"Username":"<token>","Secret":"t"}'"#,
    );
    let unknown = "echo credentials not found in native keychain; exit 1";
    helper(dir.path(), "unknown", unknown);
    helper(dir.path(), "fails", "echo the vault is sealed; exit 1");
    helper(dir.path(), "babbles", "echo hunter2");
    let path = format!("{}:/bin:/usr/bin", dir.path().display());
    again("credentials::in_child::helpers", &[("PATH", &path)]);
}

#[tokio::test]
async fn proxies_of_the_environment_are_used_but_not_for_this_machine() {
    let liar = Liar::start().await;
    liar.image();
    let proxy = format!("http://{}", liar.host);
    let direct = liar.host.clone();
    tokio::task::spawn_blocking(move || {
        let variables = [
            ("HTTP_PROXY", proxy.as_str()),
            ("http_proxy", proxy.as_str()),
            ("PODWRIGHT_TEST_DIRECT", direct.as_str()),
        ];
        again("credentials::in_child::proxies", &variables);
    })
    .await
    .unwrap();
    let requests = liar.requests.lock().unwrap().clone();
    let by_proxy = |r: &&String| r.contains(" http://registry.example.invalid/v2/app/");
    assert_eq!(requests.iter().filter(by_proxy).count(), 3, "{requests:?}");
    assert_eq!(requests.len(), 6, "{requests:?}");
}

mod in_child {
    use super::*;

    #[tokio::test]
    #[ignore = "run by credential_helpers_are_asked"]
    async fn helpers() {
        let file = serde_json::json!({
            "credsStore": "knows",
            "credHelpers": {"token.example": "token", "unknown.example": "unknown",
                "fails.example": "fails", "babbles.example": "babbles", "gone.example": "gone",
                "evil.example": "../../bin/sh"},
            "auths": {"unknown.example": {"username": "kept", "password": "p"}},
        });
        let file = CredentialFile::parse(Path::new("f"), file.to_string().as_bytes()).unwrap();
        let basic = |username: &str, password: &str| Auth::Basic {
            username: username.into(),
            password: password.into(),
        };
        for (reference, auth) in [
            ("busybox", basic("of https://index.docker.io/v1/", "s")),
            ("other.example:5000/a", basic("of other.example:5000", "s")),
            ("token.example/a", Auth::IdentityToken("t".into())),
            ("unknown.example/a", basic("kept", "p")),
        ] {
            let found = file.find(&reference.parse().unwrap()).await.unwrap();
            assert!(found == auth, "{reference}");
        }
        for (reference, part) in [
            ("fails.example/a", "the vault is sealed"),
            ("babbles.example/a", "not JSON"),
            ("gone.example/a", "docker-credential-gone"),
            ("evil.example/a", "not the name of a program"),
        ] {
            let error = file.find(&reference.parse().unwrap()).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, CredentialError::Helper { .. }));
            assert!(text.contains(part) && !text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    #[ignore = "run by proxies_of_the_environment_are_used_but_not_for_this_machine"]
    async fn proxies() {
        let bench = Bench::new();
        let hosts = bench.path("registries/registry.example.invalid");
        std::fs::create_dir_all(&hosts).unwrap();
        let text = "server = \"http://registry.example.invalid\"\n";
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        let name = "registry.example.invalid/app:v1";
        let pull = bench.store.pull(name, Auth::Anonymous, no_progress());
        pull.await.unwrap();
        let bench = Bench::new();
        let direct = format!("{}/app:v1", std::env::var("PODWRIGHT_TEST_DIRECT").unwrap());
        let pull = bench.store.pull(&direct, Auth::Anonymous, no_progress());
        pull.await.unwrap();
    }
}
