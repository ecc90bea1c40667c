// SPDX-License-Identifier: Apache-2.0
//! Images as volumes, and options of mounts.

use std::fs;

use cri::image::ImageStore;
use cri::image::types::no_progress;
use cri::v1;
use sha2::{Digest as _, Sha256};

use crate::node::{Handle, context, shell, test};
use crate::userns;

/// What a layer has: (path, text), and links with `->` before their target.
type Layer<'a> = &'a [(&'a str, &'a str)];

fn archive(files: Layer<'_>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        match text.strip_prefix("->") {
            Some(target) => {
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Symlink);
                archive.append_link(&mut header, path, target).unwrap();
            }
            None => {
                header.set_size(text.len() as u64);
                archive
                    .append_data(&mut header, path, text.as_bytes())
                    .unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

/// Takes in an image of these layers, the lowest first, as `docker save` writes one.
async fn import(node: &Handle, name: &str, layers: &[Layer<'_>]) {
    let layers: Vec<Vec<u8>> = layers.iter().map(|files| archive(files)).collect();
    let digest = |layer: &Vec<u8>| {
        let hex: String = Sha256::digest(layer)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        format!("sha256:{hex}")
    };
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(digest).collect::<Vec<_>>()},
    })
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}.tar")).collect();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [name], "Layers": names}
    ])
    .to_string();
    let mut whole = tar::Builder::new(Vec::new());
    let texts = [("config.json", config), ("manifest.json", manifest)];
    let texts = texts.map(|(name, text)| (name.to_owned(), text.into_bytes()));
    for (name, data) in texts.into_iter().chain(names.into_iter().zip(layers)) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        whole.append_data(&mut header, name, &data[..]).unwrap();
    }
    let path = node.root().join("image.tar");
    fs::write(&path, whole.into_inner().unwrap()).unwrap();
    let of = node.config();
    let store = ImageStore::open(ImageStore::dir_in(&of.data_dir), &of.registries_dir).unwrap();
    store.import(&path, no_progress()).await.unwrap();
}

/// Two layers that merge, with something hidden and something in one of them only.
const LAYERS: &[Layer<'_>] = &[
    &[
        ("etc/one", "old"),
        ("etc/gone", "x"),
        ("top", "2"),
        ("lower/only", "3"),
    ],
    &[
        ("etc/one", "1"),
        ("etc/.wh.gone", ""),
        ("out", "->/etc/none"),
        ("in", "->/etc"),
    ],
];

fn volume(image: &str, at: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: at.to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

const DATA: &str = "example.test/data:1";

#[test]
fn an_image_is_a_volume() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("volumes")).await;
        let id = shows_an_image(&node, &pod).await;
        let status = node.status(&id).await;
        let image = status.mounts[0].image.clone().unwrap();
        let mut images = node.images().await;
        let spec = v1::ImageSpec {
            image: DATA.to_owned(),
            ..Default::default()
        };
        let request = v1::ImageStatusRequest {
            image: Some(spec.clone()),
            verbose: false,
        };
        let known = images.image_status(request).await.unwrap().into_inner();
        assert_eq!(image.image_ref, known.image.unwrap().id);

        // The image goes; what is mounted of it stays, also for the next daemon.
        let request = v1::RemoveImageRequest { image: Some(spec) };
        images.remove_image(request).await.unwrap();
        node.crash().await;
        let (text, _) = node.exec(&id, "cat /whole/top").await;
        assert_eq!(text, "2");
        let error = node.create(&pod, shell_with(volume(DATA, "/x", ""))).await;
        assert_eq!(error.unwrap_err().code(), tonic::Code::NotFound);
    });
}

/// A container of this pod that has an image as a volume in every way, and can write to none.
pub(crate) async fn shows_an_image(node: &Handle, pod: &str) -> String {
    import(node, DATA, LAYERS).await;
    let mut config = shell("main", "sleep 1000");
    config.mounts = vec![
        volume(DATA, "/whole", ""),
        volume(DATA, "/part", "etc"),
        volume(DATA, "/file", "/top"),
        volume(DATA, "/single", "lower"),
        volume(DATA, "/linked", "in"),
    ];
    let id = node.launch(pod, config).await;
    let read = "cat /whole/etc/one /part/one /file /single/only /linked/one";
    assert_eq!(node.exec(&id, read).await.0, "11231");
    let (text, _) = node.exec(&id, "ls /whole/etc /part").await;
    assert!(!text.contains("gone"), "{text}");
    for write in [
        "touch /whole/x",
        "touch /part/x",
        "echo x >/file",
        "touch /single/x",
    ] {
        let (_, code) = node.exec(&id, write).await;
        assert_ne!(code, 0, "{write}");
    }
    id
}

fn shell_with(mount: v1::Mount) -> v1::ContainerConfig {
    let mut config = shell("second", "true");
    config.mounts = vec![mount];
    config
}

#[test]
fn a_volume_that_cannot_be_is_refused_by_name() {
    test(|node| async move {
        import(&node, DATA, LAYERS).await;
        let pod = node.run_pod(node.pod("volumes")).await;
        let mut writable = volume(DATA, "/x", "");
        writable.readonly = false;
        let mut both = volume(DATA, "/x", "");
        both.host_path = "/tmp".to_owned();
        let mut option = volume(DATA, "/x", "");
        option.mount_options = vec!["suid".to_owned()];
        let cases = [
            ("readonly", writable),
            ("host_path", both),
            ("suid", option),
            ("image_sub_path", volume(DATA, "/x", "not-there")),
            ("image_sub_path", volume(DATA, "/x", "out")),
            ("image_sub_path", volume(DATA, "/x", "etc/gone")),
        ];
        for (word, mount) in cases {
            let error = node.create(&pod, shell_with(mount)).await.unwrap_err();
            assert!(error.message().contains(word), "{word}: {error}");
        }
        assert!(node.containers().await.is_empty());
    });
}

#[test]
fn a_volume_shows_its_ids_in_a_user_namespace() {
    test(|node| async move {
        import(&node, DATA, LAYERS).await;
        let options = userns::options(userns::FIRST);
        let pod = node
            .run_pod(userns::pod(&node, "volumes", options.clone()))
            .await;
        let mut config = shell("main", "sleep 1000");
        config.mounts = vec![volume(DATA, "/whole", ""), volume(DATA, "/single", "lower")];
        context(&mut config).namespace_options = Some(options);
        let id = node.launch(&pod, config).await;
        let (text, _) = node.exec(&id, "ls -ln /whole/etc/one /single/only").await;
        let owners: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().skip(2).take(2).collect())
            .collect();
        assert_eq!(owners, [["0", "0"], ["0", "0"]], "{text}");
    });
}

#[test]
fn mount_options_act() {
    test(|node| async move {
        let source = node.root().join("source");
        fs::create_dir_all(&source).unwrap();
        fs::copy("/bin/busybox", source.join("busybox")).unwrap();
        let pod = node.run_pod(node.pod("options")).await;
        let mut config = shell("main", "sleep 1000");
        config.mounts = vec![v1::Mount {
            container_path: "/m".to_owned(),
            host_path: source.display().to_string(),
            mount_options: ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec(),
            ..Default::default()
        }];
        let id = node.launch(&pod, config).await;
        let (_, code) = node.exec(&id, "/m/busybox true").await;
        assert_ne!(code, 0);
        let (text, _) = node.exec(&id, "grep ' /m ' /proc/self/mountinfo").await;
        for word in ["noexec", "nosuid", "nodev"] {
            assert!(text.contains(word), "{text}");
        }
    });
}
