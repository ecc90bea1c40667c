// SPDX-License-Identifier: Apache-2.0
//! Layers whose archives leave directories out.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::images::{Bench, import};

fn tar(dir: &Path, archive: &Path, names: &[&str]) {
    let mut command = Command::new("tar");
    command
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(archive)
        .args(names);
    assert!(command.status().unwrap().success());
}

fn digest(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// What lists `tmp/x` alone does not make everybody's /tmp root's.
#[tokio::test]
async fn a_directory_that_is_not_listed_is_as_the_layer_below_has_it() {
    let bench = Bench::new();
    let (bottom, saved) = (bench.path("bottom"), bench.path("saved"));
    for name in ["tmp", "srv/data"] {
        std::fs::create_dir_all(bottom.join(name)).unwrap();
    }
    std::fs::set_permissions(bottom.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(bottom.join("srv/data"), PermissionsExt::from_mode(0o750)).unwrap();
    chown(bottom.join("srv/data"), Some(33), Some(34)).unwrap();
    std::fs::create_dir(&saved).unwrap();
    tar(&bottom, &saved.join("bottom.tar"), &["."]);
    for name in ["tmp/x", "srv/data/y", "new/z"] {
        let file = bottom.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
    }
    let files = ["tmp/x", "srv/data/y", "new/z"];
    tar(&bottom, &saved.join("top.tar"), &files);
    let layers = ["bottom.tar", "top.tar"].map(|name| digest(&saved.join(name)));
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}","sha256:{}"]}}}}"#,
        layers[0], layers[1]
    );
    std::fs::write(saved.join("c.json"), config).unwrap();
    let manifest =
        r#"[{"Config":"c.json","RepoTags":["saved:1"],"Layers":["bottom.tar","top.tar"]}]"#;
    std::fs::write(saved.join("manifest.json"), manifest).unwrap();
    let archive = bench.path("saved.tar");
    tar(&saved, &archive, &["."]);
    let images = import(&bench.store, &archive).await;
    let top = images[0]
        .layers
        .iter()
        .find(|layer| layer.join("new").exists())
        .unwrap();
    for (name, mode, uid, gid) in [
        ("tmp", 0o1777, 0, 0),
        ("srv", 0o755, 0, 0),
        ("srv/data", 0o750, 33, 34),
        ("new", 0o755, 0, 0),
    ] {
        let is = top.join(name).metadata().unwrap();
        assert_eq!(
            (is.mode() & 0o7777, is.uid(), is.gid()),
            (mode, uid, gid),
            "{name}"
        );
    }
}
