// SPDX-License-Identifier: Apache-2.0
//! A process that is killed with SIGKILL at any moment of a pull: the image is whole or absent, what
//! is left over goes when the store is opened, and the next pull works.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cri::image::{Auth, ImageStore, no_progress};

use crate::images::{Bench, open};

const KILLS: u64 = 24;

fn child(bench: &Bench, name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "killed::in_child::pull"])
        .env("PODWRIGHT_TEST_STORE", bench.dir.path())
        .env("PODWRIGHT_TEST_IMAGE", name)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_whole_or_absent_after_a_kill() {
    let (registry, built) = Bench::pushed(4 << 20).await;
    let name = format!("{}/big:v1", registry.host);
    // How long a whole pull lasts here and now, so that the kills are spread over it.
    let bench = Bench::new();
    let start = std::time::Instant::now();
    assert!(child(&bench, &name).wait().unwrap().success());
    let whole = start.elapsed();
    for kill in 0..KILLS {
        let bench = Bench::new();
        let mut child = child(&bench, &name);
        let wait = whole.mul_f64((kill + 1) as f64 / KILLS as f64);
        tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        drop(child.kill());
        child.wait().unwrap();
        let store = open(bench.dir.path());
        let tmp = std::fs::read_dir(store.dir().join("tmp")).unwrap();
        assert_eq!(tmp.count(), 0, "left over");
        if let Some(image) = store.get(&name).await.unwrap() {
            assert_eq!(std::fs::read_dir(&image.layers[0]).unwrap().count(), 50);
        }
        let pull = store.pull(&name, Auth::Anonymous, no_progress());
        let image = pull.await.unwrap();
        assert_eq!(image.id, built.id);
        assert_eq!(std::fs::read_dir(&image.layers[0]).unwrap().count(), 50);
        store.remove(&name).await.unwrap();
        let mut left = bench.content();
        left.retain(|path| !is_being_written(path));
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
    }
}

/// A record that is not at its place yet. It stays for an hour, for it may be somebody's right now.
fn is_being_written(path: &std::path::Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".new-")
}

mod in_child {
    use super::*;

    #[tokio::test]
    #[ignore = "run by an_image_is_whole_or_absent_after_a_kill"]
    async fn pull() {
        let dir = std::path::PathBuf::from(std::env::var_os("PODWRIGHT_TEST_STORE").unwrap());
        let name = std::env::var("PODWRIGHT_TEST_IMAGE").unwrap();
        let store = ImageStore::open(dir.join("store"), dir.join("registries")).unwrap();
        let pull = store.pull(&name, Auth::Anonymous, no_progress());
        pull.await.unwrap();
    }
}
