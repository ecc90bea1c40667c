// SPDX-License-Identifier: Apache-2.0
//! Pulling: resolve the name, fetch what is missing, verify all of it, commit.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::content;
use super::digest::Digest;
use super::disk::{self, Disk, Session};
use super::download;
use super::error::{ContentError, ImageError};
use super::intake::Wanted;
use super::manifest::{self, Choice, Descriptor, Manifest, Step};
use super::platform::Platform;
use super::records::{self, ImageRecord, LayerOf, RefRecord};
use super::reference::Reference;
use super::registry::{Server, hosts};
use super::types::{Auth, Image, Progress, ProgressFn, PullOptions};

/// How long to wait for a running collection of garbage, which holds its lock for a moment.
pub(crate) const SESSION_WAIT: Duration = Duration::from_secs(60);

pub(crate) async fn pull(
    disk: &Disk,
    registries_dir: &Path,
    reference: &Reference,
    auth: Auth,
    options: &PullOptions,
    progress: ProgressFn,
) -> Result<Image, ImageError> {
    let servers = servers(registries_dir, reference, &auth, options.progress_timeout)?;
    let job = Arc::new(Job {
        disk: disk.clone(),
        session: Arc::new(Session::begin(disk, SESSION_WAIT).await?),
        servers,
        platform: options.platform.clone().unwrap_or_else(Platform::host),
        parallel: options.parallel_layers.max(1),
        progress,
    });
    let (record, target) = match job.known(reference).await? {
        Some(known) => known,
        None => {
            let found = resolve(&job.servers, reference, &job.platform).await?;
            (job.fetch(&found).await?, found.target)
        }
    };
    let mut names = vec![reference.with_digest(target).to_string()];
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
    idle: Duration,
) -> Result<Vec<Arc<Server>>, ImageError> {
    hosts::endpoints(registries_dir, reference.domain())?
        .into_iter()
        .map(|endpoint| Server::new(endpoint, reference, auth.clone(), idle).map(Arc::new))
        .collect()
}

/// What a reference stands for right now.
struct Found {
    /// Digest of what the reference names: a manifest or an index.
    target: Digest,
    manifest_digest: Digest,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
}

fn may_resolve(server: &Server, reference: &Reference) -> bool {
    match reference.digest() {
        Some(_) => server.endpoint().pull,
        None => server.endpoint().resolve,
    }
}

/// Asks the servers in order. The last one is the registry itself, so its error counts.
async fn resolve(
    servers: &[Arc<Server>],
    reference: &Reference,
    platform: &Platform,
) -> Result<Found, ImageError> {
    let mut last = None;
    for server in servers.iter().filter(|s| may_resolve(s, reference)) {
        match resolve_at(server, reference, platform).await {
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

async fn resolve_at(
    server: &Server,
    reference: &Reference,
    platform: &Platform,
) -> Result<Found, ImageError> {
    let mut bytes = server.manifest(&reference.target_text()).await?;
    let target = match reference.digest() {
        Some(wanted) => verified(wanted, &bytes)?,
        None => Digest::of(&bytes),
    };
    let mut manifest_digest = target.clone();
    let mut choice = Choice::new(platform);
    loop {
        match choice.document(&bytes)? {
            Step::Found(manifest) => {
                return Ok(Found {
                    target,
                    manifest_digest,
                    manifest_bytes: bytes,
                    manifest,
                });
            }
            Step::Read(wanted) => {
                bytes = server.manifest(&wanted.digest.to_string()).await?;
                content::check(&wanted, &wanted.digest.like(&bytes), bytes.len() as u64)?;
                manifest_digest = wanted.digest;
            }
        }
    }
}

fn verified(wanted: &Digest, bytes: &[u8]) -> Result<Digest, ImageError> {
    let actual = wanted.like(bytes);
    match actual == *wanted {
        true => Ok(actual),
        false => Err(ImageError::Content {
            what: "refused manifest",
            digest: wanted.clone(),
            source: ContentError::Digest { actual },
        }),
    }
}

/// One pull under way.
struct Job {
    disk: Disk,
    session: Arc<Session>,
    servers: Vec<Arc<Server>>,
    platform: Platform,
    parallel: usize,
    progress: ProgressFn,
}

impl Job {
    /// The image, if the registry says that the name still means what it meant at an earlier pull.
    /// That question fetches nothing, and the registry checks the credentials at it.
    async fn known(
        &self,
        reference: &Reference,
    ) -> Result<Option<(ImageRecord, Digest)>, ImageError> {
        if !self.disk.reference(&reference.to_string()).exists() {
            return Ok(None);
        }
        let able = |server: &&Arc<Server>| may_resolve(server, reference);
        let Some(server) = self.servers.iter().find(able) else {
            return Ok(None);
        };
        // Whatever is wrong shows again, and is told, when the name is resolved.
        let Ok(Some(target)) = server.head(&reference.target_text()).await else {
            return Ok(None);
        };
        if reference.digest().is_some_and(|wanted| *wanted != target) {
            return Ok(None);
        }
        let name = reference.with_digest(target.clone()).to_string();
        let Some(record) = self.whole(&name).await? else {
            return Ok(None);
        };
        let layers = record.layers.iter();
        let layers: Vec<_> = layers
            .map(|of| (of.blob.clone(), of.size.unwrap_or(0)))
            .collect();
        (self.progress)(Progress::Resolved {
            manifest: record.manifest.clone(),
            layers: layers.clone(),
        });
        for (layer, _) in layers {
            (self.progress)(Progress::Ready {
                layer,
                cached: true,
            });
        }
        Ok(Some((record, target)))
    }

    /// The image of this name, if it is for the platform that is wanted and has all its content.
    async fn whole(&self, name: &str) -> Result<Option<ImageRecord>, ImageError> {
        let reference: Option<RefRecord> = records::read(&self.disk.reference(name))?;
        let Some(id) = reference.map(|reference| reference.image) else {
            return Ok(None);
        };
        let image = || records::read::<ImageRecord>(&self.disk.image(&id));
        let Some(record) = image()? else {
            return Ok(None);
        };
        let names = content::claims([&record.id, &record.manifest], &record.layers);
        self.session.claim(names).await?;
        // Looked at again, now that it stays.
        if image()?.as_ref() != Some(&record) {
            return Ok(None);
        }
        for of in &record.layers {
            let blob = of.size.map(|size| Descriptor::of(of.blob.clone(), size));
            let there = blob.is_some_and(|blob| content::has_blob(&self.disk, &blob));
            if !there || !content::has_layer(&self.disk, &of.diff_id)? {
                return Ok(None);
            }
        }
        let bytes = records::read_blob(&self.disk, &record.id, manifest::MAX_DOCUMENT)?;
        let config = records::parse_config(&record.id, &bytes)?;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        Ok(self.platform.takes(&os, &architecture).then_some(record))
    }

    async fn fetch(self: &Arc<Self>, found: &Found) -> Result<ImageRecord, ImageError> {
        let manifest = &found.manifest;
        let (id, manifest_digest) = (&manifest.config.digest, &found.manifest_digest);
        self.session
            .claim(content::claims([id, manifest_digest], &[]))
            .await?;
        let config_bytes = self.config(&manifest.config).await?;
        let config = records::parse_config(id, &config_bytes)?;
        let layers = manifest::layers(manifest, &config, &self.platform)?;
        self.session.claim(content::claims([], &layers)).await?;
        {
            let (disk, session) = (self.disk.clone(), self.session.clone());
            let (id, manifest_digest) = (id.clone(), manifest_digest.clone());
            let bytes = found.manifest_bytes.clone();
            disk::blocking(move || {
                content::put_bytes(&disk, &session, &config_bytes, &id)?;
                content::put_bytes(&disk, &session, &bytes, &manifest_digest)
            })
            .await?;
        }
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
            id.clone(),
            manifest_digest.clone(),
            layers,
            size,
        ))
    }

    async fn config(&self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if content::has_blob(&self.disk, wanted) {
            let (disk, wanted) = (self.disk.clone(), wanted.clone());
            let read = disk::blocking(move || {
                let bytes = records::read_blob(&disk, &wanted.digest, manifest::MAX_DOCUMENT)?;
                content::check(&wanted, &wanted.digest.like(&bytes), bytes.len() as u64)?;
                Ok(bytes)
            });
            if let Ok(bytes) = read.await {
                return Ok(bytes);
            }
        }
        let mut last = None;
        for server in self.pullable() {
            match server.small_blob(&wanted.digest).await {
                Ok(bytes) => {
                    content::check(wanted, &wanted.digest.like(&bytes), bytes.len() as u64)?;
                    return Ok(bytes);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(download::nobody_pulls))
    }

    fn pullable(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().filter(|server| server.endpoint().pull)
    }

    /// All layers, a few at a time. The first failure ends the others: the set aborts its tasks
    /// when dropped, and so does dropping the pull.
    async fn layers(
        self: &Arc<Self>,
        blobs: &[Descriptor],
        layers: &[LayerOf],
    ) -> Result<(), ImageError> {
        let permits = Arc::new(Semaphore::new(self.parallel));
        let mut tasks = JoinSet::new();
        for (blob, layer) in blobs.iter().zip(layers) {
            let (job, permits) = (self.clone(), permits.clone());
            let (blob, diff_id) = (blob.clone(), layer.diff_id.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                job.layer(blob, diff_id).await
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

    async fn layer(&self, blob: Descriptor, diff_id: Digest) -> Result<(), ImageError> {
        let lock = content::lock_layer(&self.disk, &diff_id).await?;
        let unpacked = content::has_layer(&self.disk, &diff_id)?;
        let layer = blob.digest.clone();
        let cached = if !content::has_blob(&self.disk, &blob) {
            let wanted = Wanted {
                disk: self.disk.clone(),
                session: self.session.clone(),
                lock,
                blob,
                diff_id,
                unpack: !unpacked,
            };
            let servers: Vec<_> = self.pullable().cloned().collect();
            download::download(&servers, &wanted, &self.progress).await?;
            false
        } else {
            (self.progress)(Progress::Unpacking {
                layer: layer.clone(),
            });
            !content::ensure_unpacked(&self.disk, &self.session, &lock, &layer, &diff_id).await?
        };
        (self.progress)(Progress::Ready { layer, cached });
        Ok(())
    }
}
