// SPDX-License-Identifier: Apache-2.0
//! What a power cut or a bad disk may leave: the store opens, says what it lost, and takes it again.

use std::fs;
use std::path::PathBuf;

use cri::image::Image;

use crate::images::{Bench, import, open};

struct Scene {
    bench: Bench,
    image: Image,
    archive: PathBuf,
}

async fn scene() -> Scene {
    let bench = Bench::new();
    let image = bench.busybox("a:1").await;
    let archive = bench.path("a.tar");
    let exported = bench.store.export("a:1", &archive, Default::default());
    exported.await.unwrap();
    Scene {
        bench,
        image,
        archive,
    }
}

fn files(scene: &Scene, sub: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(scene.bench.store.dir().join(sub)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// After the damage the image is whole or absent, and importing it again makes it whole.
async fn heals(damage: impl AsyncFn(&Scene), absent: bool) {
    let scene = scene().await;
    damage(&scene).await;
    let again = open(scene.bench.dir.path());
    let found = again.get("a:1").await.unwrap();
    assert_eq!(found.is_none(), absent);
    assert_eq!(again.list().await.unwrap().is_empty(), absent);
    import(&again, &scene.archive).await;
    let image = again.get("a:1").await.unwrap().unwrap();
    assert_eq!(image.id, scene.image.id);
    assert!(image.layers[0].join("bin/busybox").is_file());
    let out = scene.bench.path("again.tar");
    again.export("a:1", &out, Default::default()).await.unwrap();
    assert!(fs::read(out).unwrap() == fs::read(&scene.archive).unwrap());
    again.remove(&image.id.to_string()).await.unwrap();
    assert_eq!(scene.bench.content(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn records_that_are_empty_or_half_written() {
    for sub in ["images", "layers"] {
        for content in ["", "{\"version\":1,"] {
            let damage = async |scene: &Scene| {
                let mut records = files(scene, sub);
                records.retain(|path| path.extension().is_some());
                fs::write(&records[0], content).unwrap();
            };
            heals(damage, true).await;
        }
    }
}

#[tokio::test]
async fn names_that_are_empty() {
    let scene = scene().await;
    for name in files(&scene, "refs") {
        fs::write(name, "").unwrap();
    }
    let again = open(scene.bench.dir.path());
    assert!(again.get("a:1").await.unwrap().is_none());
    // The image itself is whole: it has lost its name only.
    let id = scene.image.id.to_string();
    again.tag(&id, "a:2").await.unwrap();
    assert_eq!(again.get("a:2").await.unwrap().unwrap().id, scene.image.id);
}

#[tokio::test]
async fn blobs_that_are_cut_or_gone() {
    for cut in [true, false] {
        // In order of size: a layer's blob is the largest, and needed for exports only.
        for (rank, absent) in [(0, true), (1, true), (2, false)] {
            let damage = async |scene: &Scene| {
                let mut blobs = files(scene, "blobs/sha256");
                blobs.sort_by_key(|path| path.metadata().unwrap().len());
                match cut {
                    true => fs::OpenOptions::new()
                        .write(true)
                        .open(&blobs[rank])
                        .unwrap()
                        .set_len(10)
                        .unwrap(),
                    false => fs::remove_file(&blobs[rank]).unwrap(),
                }
            };
            heals(damage, absent).await;
        }
    }
}

#[tokio::test]
async fn layers_that_are_gone() {
    let damage = async |scene: &Scene| fs::remove_dir_all(&scene.image.layers[0]).unwrap();
    heals(damage, true).await;
}

#[tokio::test]
async fn a_record_of_a_later_version_is_not_thrown_away() {
    let scene = scene().await;
    let record = files(&scene, "images").remove(0);
    let text = fs::read_to_string(&record).unwrap();
    let later = text.replace("\"version\":1", "\"version\":2");
    fs::write(&record, &later).unwrap();
    let dir = scene.bench.dir.path();
    let error = cri::image::ImageStore::open(dir.join("store"), dir.join("r")).unwrap_err();
    assert!(error.message().contains("version 2"), "{}", error.message());
    assert_eq!(fs::read_to_string(&record).unwrap(), later);
}
