// SPDX-License-Identifier: Apache-2.0
//! What callers hand to the store and get back from it: plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

use super::digest::Digest;
use super::platform::Platform;

/// An image that is complete in the store: all blobs present, all layers unpacked.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:…` of the image configuration. This is the CRI image id.
    pub id: Digest,
    /// Normalised `name:tag` names, sorted.
    pub repo_tags: Vec<String>,
    /// Normalised `name@sha256:…` names (the digest of the manifest or index), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers, as containerd counts them.
    pub size: u64,
    /// The image configuration (`application/vnd.oci.image.config.v1+json`).
    pub config: ImageConfiguration,
    /// Unpacked layer directories, **top first**: the order of overlay's `lowerdir`.
    pub layers: Vec<PathBuf>,
    /// Pinned images are not to be removed by the kubelet's garbage collection.
    pub pinned: bool,
}

/// Credentials for one pull.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// No credentials. A registry that hands out anonymous tokens still works.
    #[default]
    Anonymous,
    /// User name and password, sent as Basic or exchanged for a token, as the registry asks.
    Basic { username: String, password: String },
    /// An OAuth2 refresh token, exchanged for an access token at the registry's realm.
    IdentityToken(String),
    /// A ready bearer token.
    RegistryToken(String),
}

impl fmt::Debug for Auth {
    /// Never shows a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Anonymous => "Anonymous",
            Auth::Basic { .. } => "Basic(…)",
            Auth::IdentityToken(_) => "IdentityToken(…)",
            Auth::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// How images are pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullOptions {
    /// What to take of an index; this machine's platform if `None`.
    pub platform: Option<Platform>,
    /// A transfer in which no byte arrives for so long has failed; zero waits for ever. There is no
    /// limit on its whole duration.
    pub progress_timeout: Duration,
    /// Layers fetched at a time.
    pub parallel_layers: usize,
    /// Files in which credentials are looked for when none are given: the first that exists counts.
    pub credentials: Vec<PathBuf>,
}

impl Default for PullOptions {
    fn default() -> Self {
        PullOptions {
            platform: None,
            progress_timeout: Duration::from_secs(60),
            // containerd's default as well.
            parallel_layers: 3,
            credentials: Vec::new(),
        }
    }
}

/// How long to wait before an attempt is made again: twice as long each time, up to 20 s, half fixed
/// and half random, so that nodes don't come back in step.
pub(crate) fn pause(failures: u32) -> Duration {
    let step = Duration::from_millis(300).saturating_mul(1 << failures.saturating_sub(1).min(10));
    step.min(Duration::from_secs(20))
        .mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// The form of an exported image. All of them are OCI image layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ExportFormat {
    /// A tar archive.
    #[default]
    Oci,
    /// A directory, which must not exist or be empty.
    OciDir,
    /// A tar archive with `manifest.json` besides, as `docker save` writes it.
    Docker,
}

/// What an image occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskUsage {
    /// Bytes of manifest, configuration and compressed layers.
    pub blobs: u64,
    /// Bytes and inodes of the unpacked layers.
    pub layers: u64,
    pub inodes: u64,
    /// Of both, what other images use too.
    pub shared: u64,
}

/// What a pull or an import tells about itself. Calls come from several threads, in no strict
/// order between layers; `done` of one layer never goes back.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The manifest is known: these layers (compressed digest, compressed bytes) will be needed.
    Resolved {
        manifest: Digest,
        layers: Vec<(Digest, u64)>,
    },
    /// Bytes of a layer that arrived.
    Downloading {
        layer: Digest,
        done: u64,
        total: u64,
    },
    /// The layer is on disk and is being unpacked.
    Unpacking { layer: Digest },
    /// The layer is ready. `cached`: nothing had to be downloaded or unpacked.
    Ready { layer: Digest, cached: bool },
}

/// Receives progress; must return quickly.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// A [`ProgressFn`] for callers that don't care.
pub fn no_progress() -> ProgressFn {
    Arc::new(|_| {})
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer point anywhere.
    pub untagged: Vec<String>,
    /// Set when the image itself went (no name was left, or it was named by id).
    pub deleted: Option<Digest>,
}

/// Use of the filesystem by the store, for CRI `ImageFsInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// Bytes that the store occupies on disk.
    pub used_bytes: u64,
    /// Inodes that the store occupies.
    pub inodes_used: u64,
}

/// Where the single layer of a built image comes from.
#[derive(Debug, Clone)]
pub enum RootfsSource {
    /// A directory: its content becomes `/`.
    Dir(PathBuf),
    /// A tar file (plain, gzip or zstd), taken as the layer as it is.
    Tar(PathBuf),
}

/// How to build an image from a root filesystem. The result depends on this value and on the
/// content of the source only, so the same input gives the same digest on every machine.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    pub rootfs: RootfsSource,
    /// Reference to tag the result with.
    pub name: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Absolute path.
    pub workdir: Option<String>,
    /// `80`, `80/tcp` or `53/udp`.
    pub ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

impl BuildOptions {
    /// Options with nothing set but the source and the name.
    pub fn new(rootfs: RootfsSource, name: impl Into<String>) -> Self {
        BuildOptions {
            rootfs,
            name: name.into(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            user: None,
            workdir: None,
            ports: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}
