// SPDX-License-Identifier: Apache-2.0
//! `podwright image …`: what the commands do to a store, and their exit codes.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cri::image::ImageStore;
use cri::image::cli::{ImageArgs, run};

use crate::images::Bench;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    image: ImageArgs,
}

async fn image(data_dir: &Path, arguments: &[&str]) -> bool {
    let line = [&["podwright-image"], arguments].concat();
    let line = Line::try_parse_from(line).unwrap();
    let code = run(line.image, data_dir, &data_dir.join("registries")).await;
    // ExitCode has no equality of its own.
    format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
}

#[tokio::test]
async fn an_image_goes_through_all_commands() {
    let bench = Bench::new();
    let data = bench.path("data");
    let root = bench.rootfs("root");
    let root = root.to_str().unwrap();
    let archive = bench.path("a.tar");
    let archive = archive.to_str().unwrap();
    let options = ["--cmd", "/bin/sh", "--cmd", "-i", "--port", "80"];
    let more = ["--label", "a=b", "--env", "K=v", "--user", "web"];
    let build = [&["build", root, "-t", "a:1"][..], &options, &more].concat();
    assert!(image(&data, &build).await);
    assert!(image(&data, &["tag", "a:1", "b:2"]).await);
    assert!(image(&data, &["inspect", "b:2"]).await);
    assert!(image(&data, &["export", "b:2", "-o", archive]).await);
    let layout = bench.path("layout");
    let layout = layout.to_str().unwrap();
    let export = ["export", "b:2", "--format", "oci-dir", "-o", layout];
    assert!(image(&data, &export).await);
    assert!(image(&data, &["pin", "b:2"]).await);
    assert!(image(&data, &["prune", "--all"]).await);
    assert!(image(&data, &["pin", "b:2", "--off"]).await);
    assert!(image(&data, &["rm", "a:1", "b:2"]).await);
    assert!(!image(&data, &["rm", "a:1"]).await);
    assert!(image(&data, &["import", layout]).await);
    assert!(image(&data, &["prune", "-a"]).await);
    assert!(!image(&data, &["inspect", "b:2"]).await);
    assert!(image(&data, &["import", archive, "--name", "c:3"]).await);
    assert!(image(&data, &["ls"]).await);
    assert!(image(&data, &["ls", "-q"]).await);
    let store = ImageStore::open(ImageStore::dir_in(&data), "").unwrap();
    let built = store.get("c:3").await.unwrap().unwrap();
    assert_eq!(built.repo_tags.len(), 3);
    let config = built.config.config().clone().unwrap();
    assert_eq!(config.cmd().clone().unwrap(), ["/bin/sh", "-i"]);
    assert_eq!(config.user().as_deref(), Some("web"));
}

#[tokio::test]
async fn failures_end_with_code_one() {
    let bench = Bench::new();
    let data = bench.path("data");
    for line in [
        &["pull", "Not/Valid"][..],
        &["pull", "127.0.0.1:1/nobody"],
        &["pull", "127.0.0.1:1/nobody", "--authfile", "/etc/passwd"],
        &["pin", "nothing"],
        &["import", "/etc", "--platform", "linux/s390x"],
        &["inspect", "nothing"],
        &["export", "nothing", "-o", "/nonexistent/x"],
        &["import", "/nonexistent"],
        &["import", "/etc/passwd"],
        &["build", "/nonexistent", "-t", "x"],
        &["tag", "nothing", "x"],
        &["export", "nothing", "--format", "oci-dir", "-o", "-"],
    ] {
        assert!(!image(&data, line).await, "{line:?}");
    }
}
