// SPDX-License-Identifier: Apache-2.0
//! Build, import, export, names, removal, leases: all without a network.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use cri::image::{BuildOptions, ErrorKind, ExportFormat, RootfsSource, no_progress, user};

use crate::images::{Bench, import, open};

#[tokio::test]
async fn the_same_input_builds_the_same_image_anywhere() {
    let (one, two) = (Bench::new(), Bench::new());
    let mut ids = Vec::new();
    for bench in [&one, &two] {
        let root = bench.rootfs("root");
        let mut options = BuildOptions::new(RootfsSource::Dir(root), "app:1");
        options.entrypoint = vec!["/bin/cat".into()];
        options.ports = vec!["80".into(), "53/udp".into()];
        options.labels = ('a'..='z')
            .map(|c| (c.to_string(), "x".to_owned()))
            .collect::<BTreeMap<_, _>>();
        let image = bench.store.build(options).await.unwrap();
        assert_eq!(image.repo_tags, ["docker.io/library/app:1"]);
        ids.push((image.id, image.repo_digests));
        // Times differ between the two.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(ids[0], ids[1]);
    let image = one.store.get("app:1").await.unwrap().unwrap();
    let config = image.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().clone().unwrap(), ["/bin/cat"]);
    let layer = &image.layers[0];
    let busybox = layer.join("bin/busybox").metadata().unwrap();
    assert_eq!((busybox.nlink(), busybox.mode() & 0o777), (2, 0o755));
    let output = Command::new(layer.join("bin/cat"))
        .arg("/proc/self/comm")
        .output();
    assert_eq!(output.unwrap().stdout, b"cat\n");
    let web = user::resolve(&image.layers, "web").unwrap();
    assert_eq!((web.uid, web.gid), (33, 33));
}

#[tokio::test]
async fn a_tar_becomes_a_layer_as_it_is() {
    let bench = Bench::new();
    let root = bench.rootfs("root");
    let tar = bench.path("root.tar.gz");
    let status = Command::new("tar")
        .args([
            "-C",
            root.to_str().unwrap(),
            "-czf",
            tar.to_str().unwrap(),
            ".",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let options = BuildOptions::new(RootfsSource::Tar(tar.clone()), "from-tar");
    let image = bench.store.build(options).await.unwrap();
    assert!(image.layers[0].join("bin/sh").is_symlink());
    std::fs::write(&tar, "this is no tar").unwrap();
    let options = BuildOptions::new(RootfsSource::Tar(tar), "from-tar");
    let error = bench.store.build(options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{}", error.message());
}

#[tokio::test]
async fn what_is_exported_is_imported_with_the_same_id() {
    let (from, to) = (Bench::new(), Bench::new());
    let image = from.busybox("bb:1").await;
    from.store.tag("bb:1", "example.com/other:2").await.unwrap();
    let (first, second) = (from.path("1.tar"), from.path("2.tar"));
    from.store
        .export("bb:1", &first, ExportFormat::Oci)
        .await
        .unwrap();
    from.store
        .export(&image.id.to_string(), &second, ExportFormat::Oci)
        .await
        .unwrap();
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
    let imported = import(&to.store, &first).await;
    assert_eq!(imported.len(), 1);
    assert_eq!(imported[0].id, image.id);
    let image = to.store.get("example.com/other:2").await.unwrap().unwrap();
    assert_eq!(image.repo_tags.len(), 2);
    // The layout as a directory, in a store that has it already.
    let layout = to.path("layout");
    std::fs::create_dir(&layout).unwrap();
    let status = Command::new("tar")
        .args([
            "-C",
            layout.to_str().unwrap(),
            "-xf",
            first.to_str().unwrap(),
        ])
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(import(&to.store, &layout).await[0].id, image.id);
    // A blob that is not what its name says.
    let blobs = layout.join("blobs/sha256");
    let fresh = Bench::new();
    for blob in std::fs::read_dir(&blobs).unwrap() {
        let path = blob.unwrap().path();
        let mut content = std::fs::read(&path).unwrap();
        let at = content.len() / 2;
        content[at] ^= 1;
        std::fs::write(&path, content).unwrap();
    }
    let error = fresh
        .store
        .import(&layout, no_progress())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadContent, "{}", error.message());
    assert!(
        error.message().contains("its digest is"),
        "{}",
        error.message()
    );
    assert_eq!(fresh.content(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn the_output_of_docker_save_is_imported() {
    let bench = Bench::new();
    let image = bench.busybox("bb").await;
    // The older form: a directory per layer, one of them a link to another.
    let saved = bench.path("saved");
    std::fs::create_dir_all(saved.join("aaa")).unwrap();
    std::fs::create_dir_all(saved.join("bbb")).unwrap();
    let blob = |hex: &str| bench.store.dir().join("blobs/sha256").join(hex);
    let layer = image.config.rootfs().diff_ids()[0].clone();
    let hex = layer.strip_prefix("sha256:").unwrap();
    std::fs::copy(blob(hex), saved.join("aaa/layer.tar")).unwrap();
    std::os::unix::fs::symlink("../aaa/layer.tar", saved.join("bbb/layer.tar")).unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}","{layer}"]}}}}"#
    );
    std::fs::write(saved.join("c.json"), config).unwrap();
    std::fs::write(
        saved.join("manifest.json"),
        r#"[{"Config":"c.json","RepoTags":["saved:1","saved:2"],"Layers":["aaa/layer.tar","bbb/layer.tar"]}]"#,
    )
    .unwrap();
    let tar = bench.path("saved.tar");
    let status = Command::new("tar")
        .args([
            "-C",
            saved.to_str().unwrap(),
            "-cf",
            tar.to_str().unwrap(),
            ".",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let other = Bench::new();
    let images = import(&other.store, &tar).await;
    assert_eq!(images[0].repo_tags.len(), 2);
    // Overlay refuses the same directory twice.
    assert_eq!(images[0].layers.len(), 1);
    // One that points outside of its archive.
    std::fs::remove_file(saved.join("bbb/layer.tar")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", saved.join("bbb/layer.tar")).unwrap();
    let error = other.store.import(&saved, no_progress()).await.unwrap_err();
    assert!(
        error.message().contains("bbb/layer.tar"),
        "{}",
        error.message()
    );
}

#[tokio::test]
async fn names_come_and_go_and_content_with_the_last_one() {
    let bench = Bench::new();
    let image = bench.busybox("a:1").await;
    let id = image.id.to_string();
    bench.store.tag(&id, "a:2").await.unwrap();
    for name in [
        "a:1",
        "docker.io/library/a:2",
        &id,
        image.id.hex(),
        image.id.short(),
    ] {
        let found = bench.store.get(name).await.unwrap();
        assert_eq!(
            found.map(|image| image.id),
            Some(image.id.clone()),
            "{name}"
        );
    }
    for name in ["a:3", "no such name", "", "ffffffff", "../../etc/passwd"] {
        assert!(bench.store.get(name).await.unwrap().is_none(), "{name}");
    }
    let used = bench.store.fs_info().await.unwrap();
    assert!(
        used.used_bytes > 1_000_000 && used.inodes_used > 5,
        "{used:?}"
    );
    let removed = bench.store.remove("a:1").await.unwrap();
    assert_eq!(removed.untagged, ["docker.io/library/a:1"]);
    assert_eq!(removed.deleted, None);
    assert_eq!(bench.store.remove("a:1").await.unwrap(), Default::default());
    let removed = bench.store.remove("a:2").await.unwrap();
    assert_eq!(removed.deleted, Some(image.id));
    assert_eq!(bench.content(), Vec::<std::path::PathBuf>::new());
    let used = bench.store.fs_info().await.unwrap();
    assert_eq!((used.used_bytes, used.inodes_used), (0, 0));
}

#[tokio::test]
async fn a_name_moves_to_the_newer_image() {
    let bench = Bench::new();
    let old = bench.busybox("a:1").await;
    let root = bench.rootfs("newer");
    std::fs::write(root.join("new"), "x").unwrap();
    let options = BuildOptions::new(RootfsSource::Dir(root), "a:1");
    let new = bench.store.build(options).await.unwrap();
    assert_ne!(old.id, new.id);
    let found = bench.store.get("a:1").await.unwrap().unwrap();
    assert_eq!(found.id, new.id);
    let old = bench.store.get(&old.id.to_string()).await.unwrap().unwrap();
    assert_eq!(old.repo_tags, Vec::<String>::new());
    assert_eq!(old.repo_digests.len(), 1);
    assert_eq!(bench.store.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_lease_keeps_the_layers_of_a_removed_image() {
    let bench = Bench::new();
    let image = bench.busybox("a").await;
    bench.store.lease("container-1", "a").await.unwrap();
    bench.store.remove("a").await.unwrap();
    assert!(image.layers[0].join("bin/busybox").exists());
    assert!(bench.store.get("a").await.unwrap().is_none());
    // It survives the daemon.
    let again = open(bench.dir.path());
    assert_eq!(again.leases().await.unwrap(), ["container-1"]);
    assert!(image.layers[0].exists());
    let error = again.lease("container-2", "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    again.release("container-1").await.unwrap();
    again.release("container-1").await.unwrap();
    assert!(!image.layers[0].exists());
}

#[tokio::test]
async fn two_users_of_one_store_see_each_other() {
    let bench = Bench::new();
    let other = open(bench.dir.path());
    let image = bench.busybox("a").await;
    assert_eq!(other.get("a").await.unwrap().unwrap().id, image.id);
    other.pin("a", true).await.unwrap();
    assert!(bench.store.get("a").await.unwrap().unwrap().pinned);
    other.remove("a").await.unwrap();
    assert!(bench.store.get("a").await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_crash_leaves_is_removed_and_never_seen() {
    let bench = Bench::new();
    let image = bench.busybox("a").await;
    let dir = bench.store.dir();
    std::fs::create_dir_all(dir.join("tmp/0123/deep/er")).unwrap();
    std::fs::write(dir.join("tmp/0123/deep/er/file"), "half").unwrap();
    std::fs::create_dir_all(dir.join("layers/0123456789abcdef01234567/half")).unwrap();
    std::fs::write(dir.join("blobs/sha256").join("0".repeat(64)), "orphan").unwrap();
    let again = open(bench.dir.path());
    assert_eq!(again.list().await.unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.join("layers")).unwrap().count(), 2);
    assert_eq!(
        std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count(),
        3
    );
    // A layer without its record is made again, not trusted.
    let record = std::fs::read_dir(dir.join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some())
        .unwrap();
    std::fs::remove_file(record).unwrap();
    std::fs::remove_file(image.layers[0].join("bin/busybox")).unwrap();
    bench.busybox("a").await;
    assert!(image.layers[0].join("bin/busybox").exists());
}

#[tokio::test]
async fn every_form_that_is_exported_is_imported() {
    let bench = Bench::new();
    let image = bench.busybox("bb:1").await;
    let forms = [
        ("a.tar", ExportFormat::Oci),
        ("dir", ExportFormat::OciDir),
        ("docker.tar", ExportFormat::Docker),
    ];
    for (name, format) in forms {
        let path = bench.path(name);
        bench.store.export("bb:1", &path, format).await.unwrap();
        let to = Bench::new();
        let found = import(&to.store, &path).await;
        assert_eq!(found[0].id, image.id);
        assert_eq!(found[0].repo_tags, image.repo_tags);
    }
    // The docker form alone, as an older tool sees it.
    let docker = bench.path("only-docker");
    std::fs::create_dir(&docker).unwrap();
    let mut archive = tar::Archive::new(std::fs::File::open(bench.path("docker.tar")).unwrap());
    archive.unpack(&docker).unwrap();
    std::fs::remove_file(docker.join("index.json")).unwrap();
    let to = Bench::new();
    let found = import(&to.store, &docker).await;
    assert_eq!(
        (&found[0].id, &found[0].repo_tags),
        (&image.id, &image.repo_tags)
    );
    let taken = bench.store.export("bb:1", &docker, ExportFormat::OciDir);
    assert!(taken.await.is_err(), "the directory is not empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_goes_through_a_pipe_and_follows_links() {
    let bench = Bench::new();
    bench.busybox("bb:1").await;
    let (file, link, pipe) = (bench.path("a.tar"), bench.path("link"), bench.path("pipe"));
    let format = ExportFormat::Oci;
    bench.store.export("bb:1", &file, format).await.unwrap();
    let expected = std::fs::read(&file).unwrap();

    // As /dev/stdout and /dev/null are: nothing of that is replaced by a file.
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    let from = pipe.clone();
    let reader = std::thread::spawn(move || std::fs::read(from).unwrap());
    bench.store.export("bb:1", &link, format).await.unwrap();
    assert!(reader.join().unwrap() == expected, "another archive");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!std::fs::symlink_metadata(&pipe).unwrap().is_file());

    std::fs::remove_file(&link).unwrap();
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink("a.tar", &link).unwrap();
    bench.store.export("bb:1", &link, format).await.unwrap();
    assert!(std::fs::read(&file).unwrap() == expected, "not its target");
}

#[tokio::test]
async fn pruning_keeps_what_is_named_used_or_pinned() {
    let bench = Bench::new();
    let old = bench.large("moves", 200_000).await;
    bench.store.lease("container", "moves").await.unwrap();
    let new = bench.large("moves", 300_000).await;
    bench.busybox("stays").await;
    bench.store.pin("stays", true).await.unwrap();
    let usage = bench.store.disk_usage("moves").await.unwrap();
    assert!(usage.layers >= 300_000 && usage.blobs >= 300_000 && usage.shared == 0);
    // The old one still has its digest for a name.
    let digest = bench.store.get(&old.id.to_string()).await.unwrap().unwrap();
    assert!(digest.repo_tags.is_empty() && !digest.repo_digests.is_empty());
    assert_eq!(bench.store.prune(false).await.unwrap(), (vec![], 0));
    let (removed, freed) = bench.store.prune(true).await.unwrap();
    let deleted: Vec<_> = removed.into_iter().filter_map(|r| r.deleted).collect();
    assert_eq!(deleted, [new.id]);
    assert!(freed >= 600_000, "{freed}");
    bench.store.release("container").await.unwrap();
    let (removed, _) = bench.store.prune(true).await.unwrap();
    assert_eq!(removed[0].deleted.as_ref(), Some(&old.id));
    assert_eq!(bench.store.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_lease_takes_more_images_and_ends_at_once() {
    let bench = Bench::new();
    bench.large("one", 1000).await;
    let two = bench.large("two", 2000).await;
    bench.store.lease("c", "one").await.unwrap();
    let mounted = bench.store.lease_also("c", "two").await.unwrap();
    for name in ["one", "two"] {
        bench.store.remove(name).await.unwrap();
    }
    assert!(mounted.layers[0].join("0").is_file());
    assert_eq!(bench.store.leases().await.unwrap(), ["c"]);
    bench.store.release("c").await.unwrap();
    assert!(!two.layers[0].exists());
    assert_eq!(bench.content(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn bad_build_options_are_named() {
    let bench = Bench::new();
    let root = bench.rootfs("root");
    let options = |name: &str| BuildOptions::new(RootfsSource::Dir(root.clone()), name);
    let mut all = vec![(options("UPPER"), "lower case")];
    let mut bad = options("a");
    bad.ports = vec!["99999".into()];
    all.push((bad, "99999"));
    let mut bad = options("a");
    bad.env = vec!["NOTHING".into()];
    all.push((bad, "NOTHING"));
    let mut bad = options("a");
    bad.workdir = Some("relative".into());
    all.push((bad, "relative"));
    let missing = RootfsSource::Dir(bench.path("missing"));
    all.push((BuildOptions::new(missing, "a"), "missing"));
    for (options, named) in all {
        let error = bench.store.build(options).await.unwrap_err();
        assert!(error.message().contains(named), "{}", error.message());
    }
    std::fs::write(root.join(".wh.x"), "").unwrap();
    let error = bench.store.build(options("a")).await.unwrap_err();
    assert!(error.message().contains(".wh.x"), "{}", error.message());
}
