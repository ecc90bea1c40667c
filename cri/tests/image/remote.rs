// SPDX-License-Identifier: Apache-2.0
//! Pulls from a real registry.

use std::sync::{Arc, Mutex};

use cri::image::{Auth, ErrorKind, ExportFormat, Progress, ProgressFn, no_progress};
use serde_json::json;

use crate::images::{Bench, open};
use crate::registry::Registry;

/// `ada` / `secret`, as `htpasswd -nbB` makes it.
pub(crate) const HTPASSWD: &str =
    "ada:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

pub(crate) async fn archive(bench: &Bench) -> std::path::PathBuf {
    bench.busybox("source").await;
    let path = bench.path("source.tar");
    let exported = bench.store.export("source", &path, ExportFormat::Oci);
    exported.await.unwrap();
    path
}

fn recorder() -> (ProgressFn, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    let record: ProgressFn = Arc::new(move |progress| into.lock().unwrap().push(progress));
    (record, seen)
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_then_by_digest() {
    let source = Bench::new();
    let archive = archive(&source).await;
    let registry = Registry::start(None);
    let (digest, _) = registry
        .push_archive(&archive, "team/app", "v1", false)
        .await;
    let bench = Bench::new();
    let name = format!("{}/team/app:v1", registry.host);
    let (progress, seen) = recorder();
    let image = bench
        .store
        .pull(&name, Auth::Anonymous, progress)
        .await
        .unwrap();
    let by_digest = format!("{}/team/app@{digest}", registry.host);
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
    assert!(image.layers[0].join("bin/busybox").is_file());
    let original = source.store.get("source").await.unwrap().unwrap();
    assert_eq!((image.id, image.size), (original.id, original.size));
    let progress = seen.lock().unwrap().clone();
    assert!(matches!(progress[0], Progress::Resolved { .. }));
    let last = progress.last().unwrap();
    assert!(
        matches!(last, Progress::Ready { cached: false, .. }),
        "{last:?}"
    );
    // All is here: the second time nothing is fetched.
    let (progress, seen) = recorder();
    let again = bench.store.pull(&by_digest, Auth::Anonymous, progress);
    again.await.unwrap();
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert!(
        matches!(last, Progress::Ready { cached: true, .. }),
        "{last:?}"
    );
}

#[tokio::test]
async fn docker_manifests_and_indexes_are_understood() {
    let source = Bench::new();
    let archive = archive(&source).await;
    let registry = Registry::start(None);
    let (digest, size) = registry.push_archive(&archive, "app", "docker", true).await;
    let entry = |architecture: &str| {
        json!({
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "digest": digest, "size": size,
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index = |entries: Vec<serde_json::Value>| {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            "manifests": entries,
        })
    };
    let list = index(vec![entry("s390x"), entry("amd64")]);
    let list_digest = registry.push_manifest("app", "multi", &list).await;
    let nested = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            "digest": list_digest, "size": list.to_string().len(),
        }],
    });
    registry.push_manifest("app", "nested", &nested).await;
    let foreign = index(vec![entry("s390x")]);
    registry.push_manifest("app", "foreign", &foreign).await;
    let bench = Bench::new();
    let pull = |tag: &str| {
        let name = format!("{}/app:{tag}", registry.host);
        async {
            bench
                .store
                .pull(&{ name }, Auth::Anonymous, no_progress())
                .await
        }
    };
    let one = pull("docker").await.unwrap();
    let multi = pull("multi").await.unwrap();
    assert_eq!(one.id, multi.id);
    assert_eq!(pull("nested").await.unwrap().id, multi.id);
    let of_list = format!("{}/app@{list_digest}", registry.host);
    assert!(multi.repo_digests.contains(&of_list), "{multi:?}");
    let error = pull("foreign").await.unwrap_err();
    let text = error.message();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        text.contains("linux/amd64") && text.contains("linux/s390x"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_leaves_nothing() {
    let registry = Registry::start(None);
    let bench = Bench::new();
    let name = format!("{}/no/such:thing", registry.host);
    let error = bench
        .store
        .pull(&name, Auth::Anonymous, no_progress())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.message();
    assert!(text.contains(&name) && text.contains("not found"), "{text}");
    assert_eq!(bench.content(), Vec::<std::path::PathBuf>::new());
    let host = registry.host.clone();
    drop(registry);
    let error = bench
        .store
        .pull(&format!("{host}/a"), Auth::Anonymous, no_progress())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    let text = error.message();
    assert!(text.starts_with("RegistryUnavailable: "), "{text}");
    assert!(text.contains("cannot connect"), "{text}");
    let error = bench
        .store
        .pull("Not/Valid:", Auth::Anonymous, no_progress())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidReference);
}

#[tokio::test]
async fn a_registry_with_passwords_is_used_with_the_right_one() {
    let registry = Registry::start(Some(HTPASSWD));
    let bench = Bench::new();
    let pull = |auth: Auth| {
        let name = format!("{}/app:v1", registry.host);
        async {
            bench
                .store
                .pull(&{ name }, auth, no_progress())
                .await
                .unwrap_err()
        }
    };
    let basic = |password: &str| Auth::Basic {
        username: "ada".into(),
        password: password.into(),
    };
    for auth in [Auth::Anonymous, basic("wrong")] {
        let error = pull(auth).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.message());
        assert!(!error.message().contains("wrong"));
    }
    // Past the door, there is no such image.
    let error = pull(basic("secret")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.message());
}

#[tokio::test]
async fn a_mirror_serves_another_registrys_name() {
    let source = Bench::new();
    let archive = archive(&source).await;
    let registry = Registry::start(None);
    registry
        .push_archive(&archive, "team/app", "v1", false)
        .await;
    let bench = Bench::new();
    let hosts = bench.path("registries/registry.example.invalid");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let name = "registry.example.invalid/team/app:v1";
    let image = bench
        .store
        .pull(name, Auth::Anonymous, no_progress())
        .await
        .unwrap();
    assert_eq!(image.repo_tags, [name]);
}

#[tokio::test]
async fn two_processes_pull_one_image_at_the_same_time() {
    let source = Bench::new();
    let archive = archive(&source).await;
    let registry = Registry::start(None);
    registry.push_archive(&archive, "app", "v1", false).await;
    let bench = Bench::new();
    let name = format!("{}/app:v1", registry.host);
    // Locks are of open files, so two stores in one process contend like two processes.
    let other = open(bench.dir.path());
    let (first, first_seen) = recorder();
    let (second, second_seen) = recorder();
    let remover = open(bench.dir.path());
    let (a, b, ()) = tokio::join!(
        bench.store.pull(&name, Auth::Anonymous, first),
        other.pull(&name, Auth::Anonymous, second),
        async { remover.collect_garbage().await.unwrap() },
    );
    assert_eq!(a.unwrap().id, b.unwrap().id);
    let unpacked = [first_seen, second_seen]
        .iter()
        .flat_map(|seen| seen.lock().unwrap().clone())
        .filter(|progress| matches!(progress, Progress::Ready { cached: false, .. }))
        .count();
    assert_eq!(unpacked, 1);
    let image = bench.store.get(&name).await.unwrap().unwrap();
    assert!(image.layers[0].join("bin/busybox").is_file());
}

#[tokio::test]
async fn https_is_verified_by_the_authority_of_hosts_toml() {
    let names = vec!["127.0.0.1".to_owned()];
    let signed = rcgen::generate_simple_self_signed(names).unwrap();
    let pem = signed.cert.pem();
    let registry = Registry::start_tls(&pem, &signed.signing_key.serialize_pem());
    let bench = Bench::new();
    let hosts = bench.path("registries").join(&registry.host);
    std::fs::create_dir_all(&hosts).unwrap();
    let name = format!("{}/app:v1", registry.host);
    let pull = async |hosts_toml: String| {
        std::fs::write(hosts.join("hosts.toml"), hosts_toml).unwrap();
        let pull = bench.store.pull(&name, Auth::Anonymous, no_progress());
        pull.await.unwrap_err()
    };
    let server = format!("server = \"https://{}\"\n", registry.host);
    let error = pull(server.clone()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    let text = error.message();
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    // Past the handshake, there is no such image.
    std::fs::write(hosts.join("ca.pem"), &pem).unwrap();
    for trust in ["ca = \"ca.pem\"\n", "skip_verify = true\n"] {
        let error = pull(format!("{server}{trust}")).await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.message());
    }
    let error = pull(format!("{server}client = \"key.pem\"\n")).await;
    assert!(error.message().contains("client"), "{}", error.message());
    // With a certificate to show, which this server does not ask for.
    let both = pem + &signed.signing_key.serialize_pem();
    std::fs::write(hosts.join("both.pem"), both).unwrap();
    let shown = "ca = \"ca.pem\"\nclient = \"both.pem\"\ndial_timeout = \"5s\"\n";
    let error = pull(format!("{server}{shown}")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.message());
}

#[tokio::test]
async fn a_repository_is_called_otherwise_where_hosts_toml_says_so() {
    let source = Bench::new();
    let archive = archive(&source).await;
    let registry = Registry::start(None);
    registry
        .push_archive(&archive, "mirror/app", "v1", false)
        .await;
    let bench = Bench::new();
    let hosts = bench.path("registries/_default");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[rewrite]\n'^team/(.*)' = 'mirror/$1'\n",
        registry.host
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let name = "registry.example.invalid/team/app:v1";
    let pull = bench.store.pull(name, Auth::Anonymous, no_progress());
    assert_eq!(pull.await.unwrap().repo_tags, [name]);
}
