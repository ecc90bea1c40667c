// SPDX-License-Identifier: Apache-2.0
//! Small images to work with, and a store of the test's own.

use std::path::{Path, PathBuf};

use cri::image::{BuildOptions, Image, ImageStore, RootfsSource, no_progress};

use crate::registry::Registry;

/// A store in a temporary directory, and a place for other files beside it.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Bench { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The root file system of a real image: a static busybox with a few links and users.
    pub(crate) fn rootfs(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        drop(std::fs::remove_dir_all(&root));
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))
            .expect("the package busybox-static is installed");
        std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
        std::fs::hard_link(root.join("bin/busybox"), root.join("bin/cat")).unwrap();
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n",
        )
        .unwrap();
        root
    }

    /// An image with a layer of so many bytes that do not compress.
    pub(crate) async fn large(&self, name: &str, size: usize) -> Image {
        let root = self.path(&format!("large-{name}"));
        std::fs::create_dir_all(&root).unwrap();
        let mut bytes = vec![0; size];
        rand::fill(&mut bytes[..]);
        for (n, part) in bytes.chunks(size.div_ceil(50)).enumerate() {
            std::fs::write(root.join(n.to_string()), part).unwrap();
        }
        let options = BuildOptions::new(RootfsSource::Dir(root), name);
        self.store.build(options).await.unwrap()
    }

    /// A registry with `big:v1`, an image of one large layer.
    pub(crate) async fn pushed(size: usize) -> (Registry, Image) {
        let source = Bench::new();
        let image = source.large("big", size).await;
        let archive = source.path("big.tar");
        let exported = source.store.export("big", &archive, Default::default());
        exported.await.unwrap();
        let registry = Registry::start(None);
        registry.push_archive(&archive, "big", "v1", false).await;
        (registry, image)
    }

    pub(crate) async fn busybox(&self, name: &str) -> Image {
        let root = self.rootfs(&format!("rootfs-{}", name.replace(['/', ':'], "-")));
        let mut options = BuildOptions::new(RootfsSource::Dir(root), name);
        options.cmd = vec!["/bin/sh".into()];
        options.env = vec!["PATH=/bin".into()];
        self.store.build(options).await.unwrap()
    }

    /// Names of all files that the store keeps content in.
    pub(crate) fn content(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for sub in [
            "blobs/sha256",
            "blobs/sha512",
            "layers",
            "images",
            "refs",
            "leases",
            "partial",
            "tmp",
        ] {
            let entries = std::fs::read_dir(self.store.dir().join(sub)).unwrap();
            all.extend(entries.map(|entry| entry.unwrap().path()));
        }
        all
    }
}

pub(crate) fn open(dir: &Path) -> ImageStore {
    ImageStore::open(dir.join("store"), dir.join("registries")).unwrap()
}

pub(crate) async fn import(store: &ImageStore, path: &Path) -> Vec<Image> {
    store.import(path, no_progress()).await.unwrap()
}
