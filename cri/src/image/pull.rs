// SPDX-License-Identifier: Apache-2.0
//! Pulling: resolve the name, fetch what is missing, verify all of it, commit.

use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::content;
use super::digest::Digest;
use super::disk::{self, Disk, Session};
use super::error::{ContentError, ErrorKind, ImageError};
use super::manifest::{self, Descriptor, Document, Manifest};
use super::records::{self, ImageRecord, LayerOf};
use super::reference::Reference;
use super::registry::{Server, hosts};
use super::types::{Auth, Image, Progress, ProgressFn};

/// Layers fetched at a time, for one pull: containerd's default as well.
const PARALLEL_LAYERS: usize = 3;
/// Attempts for a blob whose transfer breaks off. Each goes on where the last one stopped.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// How long to wait for a running collection of garbage, which holds its lock for a moment.
pub(crate) const SESSION_WAIT: Duration = Duration::from_secs(60);

pub(crate) async fn pull(
    disk: &Disk,
    registries_dir: &Path,
    reference: &Reference,
    auth: Auth,
    progress: ProgressFn,
) -> Result<Image, ImageError> {
    let servers = servers(registries_dir, reference, &auth)?;
    let session = Arc::new(Session::begin(disk, SESSION_WAIT).await?);
    let found = resolve(&servers, reference).await?;
    let job = Arc::new(Job {
        disk: disk.clone(),
        session,
        servers,
        progress,
    });
    let record = job.fetch(&found).await?;
    let mut names = vec![reference.with_digest(found.target).to_string()];
    if reference.tag().is_some() {
        names.push(reference.to_string());
    }
    // The session lives until the commit: nothing that it relies on can be collected before.
    content::commit(disk, record, names).await
}

fn servers(
    registries_dir: &Path,
    reference: &Reference,
    auth: &Auth,
) -> Result<Vec<Arc<Server>>, ImageError> {
    hosts::endpoints(registries_dir, reference.domain())?
        .into_iter()
        .map(|endpoint| Ok(Arc::new(Server::new(endpoint, reference, auth.clone())?)))
        .collect()
}

/// What a reference stands for right now.
struct Found {
    /// Digest of what the reference names: a manifest or an index.
    target: Digest,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
}

/// Asks the servers in order. The last one is the registry itself, so its error counts, unless an
/// earlier one knew that the image isn't there and the last one can't be reached.
async fn resolve(servers: &[Arc<Server>], reference: &Reference) -> Result<Found, ImageError> {
    let mut last = None;
    for server in servers {
        let able = match reference.digest() {
            Some(_) => server.endpoint().pull,
            None => server.endpoint().resolve,
        };
        if !able {
            continue;
        }
        match resolve_at(server, reference).await {
            Ok(found) => return Ok(found),
            Err(error) => {
                tracing::debug!(%reference, base = %server.endpoint().base, error = %error.message(), "resolving");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        ImageError::malformed(format!(
            "no host configured for {} may resolve",
            reference.domain()
        ))
    }))
}

async fn resolve_at(server: &Server, reference: &Reference) -> Result<Found, ImageError> {
    let bytes = server.manifest(&reference.target_text()).await?;
    let target = Digest::of(&bytes);
    if let Some(wanted) = reference.digest() {
        verify_document(wanted, &target)?;
    }
    match manifest::parse(&bytes)? {
        Document::Manifest(manifest) => Ok(Found {
            target,
            manifest_bytes: bytes,
            manifest,
        }),
        Document::Index(variants) => {
            let chosen = manifest::choose(&variants).ok_or_else(|| {
                ImageError::Unsupported(format!(
                    "no image for linux/{} in the index, which offers {}",
                    manifest::architecture(),
                    manifest::offered(&variants)
                ))
            })?;
            let wanted = &chosen.descriptor;
            let bytes = server.manifest(&wanted.digest.to_string()).await?;
            content::check(wanted, &Digest::of(&bytes), bytes.len() as u64)?;
            match manifest::parse(&bytes)? {
                Document::Manifest(manifest) => Ok(Found {
                    target,
                    manifest_bytes: bytes,
                    manifest,
                }),
                Document::Index(_) => Err(ImageError::Unsupported(
                    "the index refers to another index, which is not supported".to_owned(),
                )),
            }
        }
    }
}

fn verify_document(wanted: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if wanted == actual {
        return Ok(());
    }
    Err(ImageError::Content {
        what: "refused manifest",
        digest: wanted.clone(),
        source: ContentError::Digest {
            actual: actual.clone(),
        },
    })
}

/// One pull under way.
struct Job {
    disk: Disk,
    session: Arc<Session>,
    servers: Vec<Arc<Server>>,
    progress: ProgressFn,
}

impl Job {
    async fn fetch(self: &Arc<Self>, found: &Found) -> Result<ImageRecord, ImageError> {
        let manifest = &found.manifest;
        let config_bytes = self.config(&manifest.config).await?;
        let config = records::parse_config(&manifest.config.digest, &config_bytes)?;
        let layers = manifest::layers(manifest, &config)?;
        let manifest_digest = {
            let (disk, session) = (self.disk.clone(), self.session.clone());
            let bytes = found.manifest_bytes.clone();
            disk::blocking(move || {
                content::put_bytes(&disk, &session, &config_bytes)?;
                content::put_bytes(&disk, &session, &bytes)
            })
            .await?
        };
        (self.progress)(Progress::Resolved {
            manifest: manifest_digest.clone(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| (layer.digest.clone(), layer.size))
                .collect(),
        });
        self.layers(&manifest.layers, &layers).await?;
        let size = found.manifest_bytes.len() as u64
            + manifest.config.size
            + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        Ok(ImageRecord::new(
            manifest.config.digest.clone(),
            manifest_digest,
            layers,
            size,
        ))
    }

    async fn config(&self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if content::has_blob(&self.disk, &wanted.digest) {
            let (disk, digest) = (self.disk.clone(), wanted.digest.clone());
            return disk::blocking(move || {
                records::read_blob(&disk, &digest, manifest::MAX_DOCUMENT)
            })
            .await;
        }
        let mut last = None;
        for server in self.pullable() {
            match server.small_blob(&wanted.digest).await {
                Ok(bytes) => {
                    content::check(wanted, &Digest::of(&bytes), bytes.len() as u64)?;
                    return Ok(bytes);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.nobody_pulls()))
    }

    fn pullable(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().filter(|server| server.endpoint().pull)
    }

    fn nobody_pulls(&self) -> ImageError {
        ImageError::malformed("no host configured for the registry may pull")
    }

    /// All layers, a few at a time. The first failure ends the others: the set aborts its tasks
    /// when dropped, and so does dropping the pull.
    async fn layers(
        self: &Arc<Self>,
        blobs: &[Descriptor],
        layers: &[LayerOf],
    ) -> Result<(), ImageError> {
        let permits = Arc::new(Semaphore::new(PARALLEL_LAYERS));
        let mut tasks = JoinSet::new();
        for (blob, layer) in blobs.iter().zip(layers) {
            let (job, permits) = (self.clone(), permits.clone());
            let (blob, diff_id) = (blob.clone(), layer.diff_id.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                job.layer(&blob, &diff_id).await
            });
        }
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok(result) => result?,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(ImageError::malformed("the pull was cancelled")),
                },
            }
        }
        Ok(())
    }

    async fn layer(&self, blob: &Descriptor, diff_id: &Digest) -> Result<(), ImageError> {
        let _lock = content::lock_layer(&self.disk, diff_id).await?;
        let fetched = !content::has_blob(&self.disk, &blob.digest);
        if fetched {
            self.download(blob).await?;
        }
        (self.progress)(Progress::Unpacking {
            layer: blob.digest.clone(),
        });
        let unpacked =
            content::ensure_unpacked(&self.disk, &self.session, &blob.digest, diff_id).await?;
        (self.progress)(Progress::Ready {
            layer: blob.digest.clone(),
            cached: !fetched && !unpacked,
        });
        Ok(())
    }

    /// Fetches a blob to the disk, going on after a broken transfer, and from the next server when
    /// one fails for good.
    async fn download(&self, wanted: &Descriptor) -> Result<(), ImageError> {
        let path = self.session.fresh();
        let storage = |source| ImageError::storage("writing", &path, source);
        let mut transfer = Transfer {
            file: File::create_new(&path).await.map_err(storage)?,
            hasher: Sha256::new(),
            done: 0,
            path: &path,
            wanted,
            progress: &self.progress,
        };
        let mut last = None;
        for server in self.pullable() {
            match transfer.from(server).await {
                Ok(()) => {
                    transfer.file.sync_all().await.map_err(storage)?;
                    let (from, to) = (path.clone(), self.disk.blob(&wanted.digest));
                    return disk::blocking(move || disk::rename_durably(&from, &to)).await;
                }
                Err(error) => {
                    transfer.restart().await?;
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.nobody_pulls()))
    }
}

/// A blob on its way to the disk.
struct Transfer<'a> {
    file: File,
    hasher: Sha256,
    done: u64,
    path: &'a Path,
    wanted: &'a Descriptor,
    progress: &'a ProgressFn,
}

impl Transfer<'_> {
    async fn from(&mut self, server: &Server) -> Result<(), ImageError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.attempt(server).await {
                Ok(()) => break,
                Err(error)
                    if attempt < ATTEMPTS && error.kind() == ErrorKind::RegistryUnavailable =>
                {
                    tracing::debug!(layer = %self.wanted.digest, done = self.done, error = %error.message(), "transfer broke off");
                    // Half fixed and half random, so that nodes don't come back in step.
                    tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        let hash = self.hasher.clone().finalize();
        content::check(self.wanted, &Digest::from_hash(&hash), self.done)
    }

    async fn attempt(&mut self, server: &Server) -> Result<(), ImageError> {
        if self.done == self.wanted.size && self.done > 0 {
            return Ok(());
        }
        let mut response = server.blob(&self.wanted.digest, self.done).await?;
        if self.done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            self.restart().await?;
        }
        let url = server.url(&format!("blobs/{}", self.wanted.digest))?;
        loop {
            let chunk = response.chunk().await.map_err(|error| {
                server.failed(
                    &url,
                    ErrorKind::RegistryUnavailable,
                    format!(
                        "the transfer broke off after {} of {} bytes",
                        self.done, self.wanted.size
                    ),
                    Some(error),
                )
            })?;
            let Some(chunk) = chunk else { break };
            self.done = self.done.saturating_add(chunk.len() as u64);
            if self.done > self.wanted.size {
                // Stop reading: it can only get longer.
                return Ok(());
            }
            self.hasher.update(&chunk);
            self.file
                .write_all(&chunk)
                .await
                .map_err(|source| ImageError::storage("writing", self.path, source))?;
            (self.progress)(Progress::Downloading {
                layer: self.wanted.digest.clone(),
                done: self.done,
                total: self.wanted.size,
            });
        }
        self.file
            .flush()
            .await
            .map_err(|source| ImageError::storage("writing", self.path, source))
    }

    async fn restart(&mut self) -> Result<(), ImageError> {
        self.hasher = Sha256::new();
        self.done = 0;
        let rewind = async {
            self.file.set_len(0).await?;
            self.file.seek(SeekFrom::Start(0)).await
        };
        match rewind.await {
            Ok(_) => Ok(()),
            Err(source) => Err(ImageError::storage("writing", self.path, source)),
        }
    }
}
