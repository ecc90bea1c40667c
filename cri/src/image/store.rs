// SPDX-License-Identifier: Apache-2.0
//! The store as its callers see it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ImageError;
use super::types::{Auth, BuildOptions, FsInfo, Image, ProgressFn, Removed};

/// A directory of images. Cheap to clone.
///
/// Safe for several processes at a time. All methods may be dropped at any point: what was begun
/// either completes or leaves a temporary file that the next opener removes.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    #[expect(dead_code, reason = "read by pull, which lands next")]
    registries_dir: PathBuf,
}

fn not_yet<T>(what: &str) -> Result<T, ImageError> {
    Err(ImageError::Unsupported(format!(
        "image {what} is not implemented yet"
    )))
}

impl ImageStore {
    /// Where the store lives in a node's data directory.
    pub fn dir_in(data_dir: &Path) -> PathBuf {
        data_dir.join("cri").join("images")
    }

    /// Opens the store at `dir`, made if missing, and removes what a crash left behind.
    /// `registries_dir` holds `<host>/hosts.toml` files as containerd reads them; it need not exist.
    pub fn open(
        dir: impl Into<PathBuf>,
        registries_dir: impl Into<PathBuf>,
    ) -> Result<ImageStore, ImageError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)
            .map_err(|source| ImageError::storage("creating", &dir, source))?;
        Ok(ImageStore {
            inner: Arc::new(Inner {
                dir,
                registries_dir: registries_dir.into(),
            }),
        })
    }

    /// Pulls an image, or finds that all of it is here already. Names it by tag (when the reference
    /// has one) and by digest. Two pulls of the same content share its download and unpacking.
    pub async fn pull(
        &self,
        _reference: &str,
        _auth: Auth,
        _progress: ProgressFn,
    ) -> Result<Image, ImageError> {
        not_yet("pull")
    }

    /// The image of this reference, id (`sha256:…` or its hex part) or unambiguous id prefix.
    pub async fn get(&self, _ref_or_id: &str) -> Result<Option<Image>, ImageError> {
        not_yet("lookup")
    }

    /// All images, sorted by id.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        not_yet("list")
    }

    /// Removes a name, and with its last name the image; or, given an id, the image and all of
    /// its names. Removing what is not there succeeds. Content goes when nothing refers to it:
    /// no image and no [lease](Self::lease).
    pub async fn remove(&self, _ref_or_id: &str) -> Result<Removed, ImageError> {
        not_yet("removal")
    }

    /// Keeps the image's layers on disk for `owner` (a container id) until [`Self::release`], even
    /// when the image is removed meanwhile. Durable. Taking it again replaces it. Call this before
    /// mounting the layers.
    pub async fn lease(&self, _owner: &str, _ref_or_id: &str) -> Result<Image, ImageError> {
        not_yet("lease")
    }

    /// Ends a lease. Succeeds when there is none.
    pub async fn release(&self, _owner: &str) -> Result<(), ImageError> {
        not_yet("release")
    }

    /// Owners that hold a lease, for the repair of leaks at start.
    pub async fn leases(&self) -> Result<Vec<String>, ImageError> {
        not_yet("lease list")
    }

    /// Marks an image as pinned or not.
    pub async fn pin(&self, _ref_or_id: &str, _pinned: bool) -> Result<(), ImageError> {
        not_yet("pin")
    }

    /// Takes in an OCI image layout (directory or tar archive) or the output of `docker save`.
    /// Unnamed images of an archive are kept without a name.
    pub async fn import(
        &self,
        _path: &Path,
        _progress: ProgressFn,
    ) -> Result<Vec<Image>, ImageError> {
        not_yet("import")
    }

    /// Writes an image as an OCI archive (tar), replacing the file atomically.
    pub async fn export(&self, _ref_or_id: &str, _path: &Path) -> Result<(), ImageError> {
        not_yet("export")
    }

    /// Makes an image out of a root filesystem. The same input gives the same digest.
    pub async fn build(&self, _options: BuildOptions) -> Result<Image, ImageError> {
        not_yet("build")
    }

    /// Bytes and inodes that the store occupies.
    pub async fn fs_info(&self) -> Result<FsInfo, ImageError> {
        not_yet("file system information")
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }
}
