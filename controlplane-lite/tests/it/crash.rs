// SPDX-License-Identifier: Apache-2.0
//! What was acknowledged is there after a SIGKILL, and nobody's update is lost in a race.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use http::Method;
use serde_json::{Value, json};

use super::host::{Host, PATIENCE, client, config, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const FOLDER: &str = "PODWRIGHT_TEST_SERVE";

/// Not a test by itself: the server that another test kills.
#[tokio::test]
#[ignore = "only runs as the child of another test"]
async fn serve_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let (ready, _is_ready) = tokio::sync::oneshot::channel();
    let stop = tokio_util::sync::CancellationToken::new();
    let config = config(folder.as_ref());
    controlplane_lite::run(config, ready, stop)
        .await
        .expect("the server runs");
}

/// Kills its process when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "crash::serve_until_killed", "--ignored"])
        .env(FOLDER, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut server = Server(server.expect("a child"));
    let kubeconfig = config(dir.path()).kubeconfig_path();
    let started = Instant::now();
    while !kubeconfig.exists() {
        assert!(started.elapsed() < PATIENCE, "the child starts");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let admin = client(&kubeconfig).await;
    let mut acknowledged = Vec::new();
    for n in 0..50 {
        let map = json!({"metadata": {"name": format!("m{n}")}});
        let (code, made) = send(&admin, Method::POST, MAPS, "application/json", map).await;
        assert_eq!(code, 201, "{made}");
        acknowledged.push(made);
    }
    server.0.kill().expect("SIGKILL");
    server.0.wait().expect("it ends");

    let host = Host::start_in(dir).await;
    let (_, list) = host.get(MAPS).await;
    let found = list["items"].as_array().expect("items");
    assert_eq!(found.len(), acknowledged.len());
    assert!(acknowledged.iter().all(|made| found.contains(made)));
    let next = host
        .create(MAPS, json!({"metadata": {"name": "next"}}))
        .await;
    let revision = |o: &Value| {
        o["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|r| r.parse::<u64>().ok())
    };
    assert!(revision(&next) > acknowledged.last().and_then(revision));
    host.stop().await;
}

#[tokio::test]
async fn of_updates_based_on_the_same_state_one_wins() {
    let host = Host::start().await;
    let made = host
        .create(MAPS, json!({"metadata": {"name": "m"}, "data": {"n": "0"}}))
        .await;
    let path = format!("{MAPS}/m");
    let racing = (0..20).map(|n| {
        let (host, path, mut new) = (&host, &path, made.clone());
        new["data"]["n"] = format!("by {n}").into();
        async move { host.send(Method::PUT, path, new).await.0 }
    });
    let codes = futures::future::join_all(racing).await;
    assert_eq!(codes.iter().filter(|c| **c == 200).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|c| matches!(c, 200 | 409)), "{codes:?}");
    // Patches without a revision are applied one after the other instead.
    let patching = (0..20).map(|n| {
        let (host, path) = (&host, &path);
        async move {
            host.patch(path, "merge-patch", json!({"data": {format!("k{n}"): "v"}}))
                .await
                .0
        }
    });
    assert!(
        futures::future::join_all(patching)
            .await
            .iter()
            .all(|c| *c == 200)
    );
    let (_, merged) = host.get(&path).await;
    assert_eq!(
        merged["data"].as_object().map(serde_json::Map::len),
        Some(21)
    );
    host.stop().await;
}
