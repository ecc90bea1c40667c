// SPDX-License-Identifier: Apache-2.0
//! The store as its callers see it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build;
use super::content::{self, RECORDS_WAIT};
use super::credentials::CredentialFile;
use super::digest::{Digest, is_sha256_hex};
use super::disk::{self, Disk, Mode, Session, blocking};
use super::error::ImageError;
use super::export;
use super::gc;
use super::import;
use super::platform::Platform;
use super::pull::{self, SESSION_WAIT};
use super::records::{self, ImageRecord, LeaseRecord, RefRecord};
use super::reference::Reference;
use super::types::{
    Auth, BuildOptions, DiskUsage, ExportFormat, FsInfo, Image, ProgressFn, PullOptions, Removed,
};
use super::usage;

/// Shorter prefixes of an id are not looked up: they are too likely to be a typing error.
const MIN_ID_PREFIX: usize = 4;

/// A directory of images. Cheap to clone.
///
/// Safe for several processes at a time. All methods may be dropped at any point: what was begun
/// either completes or leaves a temporary file that the next collection of garbage removes.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Disk,
    registries_dir: PathBuf,
}

impl ImageStore {
    /// Where the store lives in a node's data directory.
    pub fn dir_in(data_dir: &Path) -> PathBuf {
        data_dir.join("cri").join("images")
    }

    /// Opens the store at `dir`, made if missing, and removes what a crash left behind, unless
    /// another process is using the store. Blocks, for as long as that removal takes.
    /// `registries_dir` holds `<host>/hosts.toml` files as containerd reads them; it need not exist.
    pub fn open(
        dir: impl Into<PathBuf>,
        registries_dir: impl Into<PathBuf>,
    ) -> Result<ImageStore, ImageError> {
        let disk = Disk::create(dir.into())?;
        gc::open(&disk)?;
        Ok(ImageStore {
            inner: Arc::new(Inner {
                disk,
                registries_dir: registries_dir.into(),
            }),
        })
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.disk().dir()
    }

    fn disk(&self) -> &Disk {
        &self.inner.disk
    }

    /// Pulls an image, or finds that all of it is here already. Names it by tag (when the reference
    /// has one) and by digest. Two pulls of the same content share its download and unpacking.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Auth,
        progress: ProgressFn,
    ) -> Result<Image, ImageError> {
        let options = PullOptions::default();
        self.pull_with(reference, auth, &options, progress).await
    }

    /// The same, with other options than the defaults. Dropping it ends the pull; what arrived of a
    /// layer is kept for the next one.
    pub async fn pull_with(
        &self,
        reference: &str,
        auth: Auth,
        options: &PullOptions,
        progress: ProgressFn,
    ) -> Result<Image, ImageError> {
        let parsed: Reference = reference.parse()?;
        let work = async {
            let auth = match auth {
                Auth::Anonymous => kept_credentials(&parsed, &options.credentials).await?,
                given => given,
            };
            let dir = &self.inner.registries_dir;
            pull::pull(self.disk(), dir, &parsed, auth, options, progress).await
        };
        let result = work.await;
        self.tidy_up().await;
        result.map_err(|source| ImageError::Pull {
            reference: parsed.to_string(),
            source: Box::new(source),
        })
    }

    /// The image of this reference, id (`sha256:…` or its hex part) or unambiguous id prefix.
    /// What is not a valid name is not found.
    pub async fn get(&self, ref_or_id: &str) -> Result<Option<Image>, ImageError> {
        let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
        blocking(move || {
            let refs = records::read_all(&disk.sub("refs"))?;
            match find(&disk, &refs, &wanted)? {
                Some(record) => view(&disk, &record, &refs),
                None => Ok(None),
            }
        })
        .await
    }

    /// All images, sorted by id.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let disk = self.disk().clone();
        blocking(move || {
            let refs = records::read_all(&disk.sub("refs"))?;
            let mut images = Vec::new();
            for record in records::read_all::<ImageRecord>(&disk.sub("images"))? {
                images.extend(view(&disk, &record, &refs)?);
            }
            images.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(images)
        })
        .await
    }

    /// Removes a name, and with its last name the image; or, given an id, the image and all of
    /// its names. Removing what is not there succeeds. Content goes when nothing refers to it:
    /// no image and no [lease](Self::lease).
    pub async fn remove(&self, ref_or_id: &str) -> Result<Removed, ImageError> {
        let lock = self.lock_records().await?;
        let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
        let removed = blocking(move || {
            let refs: Vec<RefRecord> = records::read_all(&disk.sub("refs"))?;
            let Some(record) = find(&disk, &refs, &wanted)? else {
                return Ok(Removed::default());
            };
            let removed = remove(&disk, &record, &refs, &wanted)?;
            drop(lock);
            Ok(removed)
        })
        .await?;
        self.collect_garbage().await?;
        Ok(removed)
    }

    /// Removes images without any name, or with `all` every image that no container uses; pinned ones
    /// stay. What was removed, and how many bytes that gave back.
    pub async fn prune(&self, all: bool) -> Result<(Vec<Removed>, u64), ImageError> {
        let before = self.fs_info().await?.used_bytes;
        let lock = self.lock_records().await?;
        let disk = self.disk().clone();
        let removed = blocking(move || {
            let refs: Vec<RefRecord> = records::read_all(&disk.sub("refs"))?;
            let leases = records::read_leases(&disk)?;
            let mut removed = Vec::new();
            for record in records::read_all::<ImageRecord>(&disk.sub("images"))? {
                let named = refs.iter().any(|r| r.image == record.id);
                let used = leases.iter().any(|lease| lease.uses(&record));
                if (!named || all) && !used && !record.pinned {
                    removed.push(remove(&disk, &record, &refs, &record.id.to_string())?);
                }
            }
            drop(lock);
            Ok(removed)
        })
        .await?;
        self.collect_garbage().await?;
        let after = self.fs_info().await?.used_bytes;
        Ok((removed, before.saturating_sub(after)))
    }

    /// Gives an image one more name.
    pub async fn tag(&self, ref_or_id: &str, name: &str) -> Result<Image, ImageError> {
        let name: Reference = name.parse()?;
        if name.digest().is_some() {
            return Err(ImageError::malformed(format!(
                "{name} is a digest, not a tag to give"
            )));
        }
        let lock = self.lock_records().await?;
        let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
        blocking(move || {
            let record = find_existing(&disk, &wanted)?;
            for name in [
                name.to_string(),
                name.with_digest(record.manifest.clone()).to_string(),
            ] {
                let path = disk.reference(&name);
                records::write(&path, &RefRecord::new(name, record.id.clone()))?;
            }
            let refs = records::read_all(&disk.sub("refs"))?;
            drop(lock);
            records::view(&disk, &record, &refs)
        })
        .await
    }

    /// Keeps the image's layers on disk for `owner` (a container id) until [`Self::release`], even
    /// when the image is removed meanwhile, until the machine goes down. Taking it again replaces it.
    /// Call this before mounting the layers.
    pub async fn lease(&self, owner: &str, ref_or_id: &str) -> Result<Image, ImageError> {
        self.lease_for(owner, ref_or_id, false).await
    }

    /// Keeps one more image's layers for an owner, beside those that it has: an image that is mounted
    /// as a volume. Ends with [`Self::release`] like the rest.
    pub async fn lease_also(&self, owner: &str, ref_or_id: &str) -> Result<Image, ImageError> {
        self.lease_for(owner, ref_or_id, true).await
    }

    async fn lease_for(
        &self,
        owner: &str,
        ref_or_id: &str,
        keep: bool,
    ) -> Result<Image, ImageError> {
        // While this is held no layer goes away, so those that are here now are still here when
        // the lease is written.
        let path = self.disk().content_lock();
        let moment = disk::lock(&path, Mode::Shared, SESSION_WAIT).await?;
        let (disk, owner) = (self.disk().clone(), owner.to_owned());
        let wanted = ref_or_id.to_owned();
        blocking(move || {
            let record = find_existing(&disk, &wanted)?;
            for layer in &record.layers {
                if !content::has_layer(&disk, &layer.diff_id)? {
                    return Err(ImageError::NotFound(wanted));
                }
            }
            let path = disk.lease(&owner);
            let held = match keep {
                true => records::read_lease(&path)?,
                false => None,
            };
            let mut lease = held.unwrap_or(LeaseRecord::new(owner, Vec::new(), Vec::new()));
            lease.images.push(record.id.clone());
            let layers = record.layers.iter().map(|layer| layer.diff_id.clone());
            lease.layers.extend(layers);
            records::write_unsynced(&path, &lease)?;
            drop(moment);
            let refs = records::read_all(&disk.sub("refs"))?;
            records::view(&disk, &record, &refs)
        })
        .await
    }

    /// Ends a lease. Succeeds when there is none.
    pub async fn release(&self, owner: &str) -> Result<(), ImageError> {
        let path = self.disk().lease(owner);
        let disk = self.disk().clone();
        blocking(move || {
            // Most containers outlive no image, so collecting now would mostly find nothing.
            // It is done when the lease was the last holder of something.
            let lease = records::read_lease(&path)?;
            disk::remove_file(&path)?;
            let Some(lease) = lease else {
                return Ok(());
            };
            let images: Vec<ImageRecord> = records::read_all(&disk.sub("images"))?;
            let used = |diff_id: &Digest| {
                images
                    .iter()
                    .any(|image| image.layers.iter().any(|l| l.diff_id == *diff_id))
            };
            if !lease.layers.iter().all(used) {
                gc::collect(&disk)?;
            }
            Ok(())
        })
        .await
    }

    /// Owners that hold a lease, sorted, for the repair of leaks at start.
    pub async fn leases(&self) -> Result<Vec<String>, ImageError> {
        let disk = self.disk().clone();
        blocking(move || {
            let leases = records::read_leases(&disk)?;
            let mut owners: Vec<String> = leases.into_iter().map(|lease| lease.owner).collect();
            owners.sort();
            Ok(owners)
        })
        .await
    }

    /// Marks an image as pinned or not.
    pub async fn pin(&self, ref_or_id: &str, pinned: bool) -> Result<(), ImageError> {
        let lock = self.lock_records().await?;
        let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
        blocking(move || {
            let record = find_existing(&disk, &wanted)?;
            if record.pinned != pinned {
                let path = disk.image(&record.id);
                records::write(&path, &ImageRecord { pinned, ..record })?;
            }
            drop(lock);
            Ok(())
        })
        .await
    }

    /// Takes in an OCI image layout (directory or tar archive) or the output of `docker save`.
    /// Unnamed images of an archive are kept without a name.
    pub async fn import(
        &self,
        path: &Path,
        progress: ProgressFn,
    ) -> Result<Vec<Image>, ImageError> {
        self.import_for(&Platform::host(), path, progress).await
    }

    /// The same, for another platform than this machine's.
    pub async fn import_for(
        &self,
        platform: &Platform,
        path: &Path,
        progress: ProgressFn,
    ) -> Result<Vec<Image>, ImageError> {
        let result = import::import(self.disk(), path, platform, progress).await;
        self.tidy_up().await;
        result
    }

    /// Writes an image to a file or directory, or to standard output for `-`. A file is replaced
    /// atomically; what is no file, such as a pipe, is written to.
    pub async fn export(
        &self,
        ref_or_id: &str,
        path: &Path,
        format: ExportFormat,
    ) -> Result<(), ImageError> {
        let session = Session::begin(self.disk(), SESSION_WAIT).await?;
        let find = {
            let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
            move || find_existing(&disk, &wanted)
        };
        let record = blocking(find.clone()).await?;
        let claims = content::claims([&record.id, &record.manifest], &record.layers);
        session.claim(claims).await?;
        let (disk, path) = (self.disk().clone(), path.to_owned());
        blocking(move || {
            // Again, now that its content stays.
            let record = find()?;
            let refs: Vec<RefRecord> = records::read_all(&disk.sub("refs"))?;
            export::export(&disk, &record, &refs, &path, format)?;
            drop(session);
            Ok(())
        })
        .await
    }

    /// Makes an image out of a root filesystem. The same input gives the same digest.
    pub async fn build(&self, options: BuildOptions) -> Result<Image, ImageError> {
        let result = build::build(self.disk(), options).await;
        self.tidy_up().await;
        result
    }

    /// Bytes and inodes that the store occupies. Unpacked layers count as measured when they were
    /// unpacked, so this reads no trees.
    pub async fn fs_info(&self) -> Result<FsInfo, ImageError> {
        let disk = self.disk().clone();
        blocking(move || usage::of_store(&disk)).await
    }

    /// What one image occupies, and how much of that other images use as well.
    pub async fn disk_usage(&self, ref_or_id: &str) -> Result<DiskUsage, ImageError> {
        let (disk, wanted) = (self.disk().clone(), ref_or_id.to_owned());
        blocking(move || {
            let record = find_existing(&disk, &wanted)?;
            let images: Vec<ImageRecord> = records::read_all(&disk.sub("images"))?;
            usage::of(&disk, &record, &images)
        })
        .await
    }

    /// Removes content that nothing refers to, and no operation that runs relies on.
    pub async fn collect_garbage(&self) -> Result<(), ImageError> {
        let disk = self.disk().clone();
        blocking(move || gc::collect(&disk).map(drop)).await
    }

    async fn lock_records(&self) -> Result<disk::Lock, ImageError> {
        disk::lock(&self.disk().records_lock(), Mode::Exclusive, RECORDS_WAIT).await
    }

    /// After a failure there is content that nobody refers to; after a success there may be, when
    /// a removal found the store in use, or a name moved. Failing to tidy up fails nobody.
    async fn tidy_up(&self) {
        if let Err(error) = self.collect_garbage().await {
            tracing::warn!(error = %error.message(), "collecting unused image content");
        }
    }
}

async fn kept_credentials(reference: &Reference, paths: &[PathBuf]) -> Result<Auth, ImageError> {
    if paths.is_empty() {
        return Ok(Auth::Anonymous);
    }
    let paths = paths.to_vec();
    let file = blocking(move || Ok(CredentialFile::first(&paths)?)).await?;
    Ok(file.find(reference).await?)
}

/// A view of a record, or `None` if the image was removed since the record was read.
fn view(
    disk: &Disk,
    record: &ImageRecord,
    refs: &[RefRecord],
) -> Result<Option<Image>, ImageError> {
    match records::view(disk, record, refs) {
        Ok(image) => Ok(Some(image)),
        Err(_) if !disk.image(&record.id).exists() => Ok(None),
        Err(error) => Err(error),
    }
}

fn find_existing(disk: &Disk, wanted: &str) -> Result<ImageRecord, ImageError> {
    let refs = records::read_all(&disk.sub("refs"))?;
    find(disk, &refs, wanted)?.ok_or_else(|| ImageError::NotFound(wanted.to_owned()))
}

/// By id, then by name, then by a prefix of the id.
fn find(disk: &Disk, refs: &[RefRecord], wanted: &str) -> Result<Option<ImageRecord>, ImageError> {
    if let Some(id) = full_id(wanted) {
        return records::read(&disk.image(&id));
    }
    let named = wanted.parse::<Reference>().ok().and_then(|reference| {
        let name = reference.to_string();
        refs.iter().find(|r| r.name == name)
    });
    if let Some(named) = named {
        return records::read(&disk.image(&named.image));
    }
    let prefix = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_hex = prefix
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if prefix.len() < MIN_ID_PREFIX || !is_hex {
        return Ok(None);
    }
    let mut matching = records::read_all::<ImageRecord>(&disk.sub("images"))?
        .into_iter()
        .filter(|image| image.id.hex().starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(_), Some(_)) => Err(ImageError::Ambiguous(wanted.to_owned())),
        (first, _) => Ok(first),
    }
}

fn full_id(text: &str) -> Option<Digest> {
    if is_sha256_hex(text) {
        return format!("sha256:{text}").parse().ok();
    }
    text.parse().ok()
}

/// Which names go, and whether the image goes with them. A tag takes its repository's digest
/// names along, unless another tag of the same repository still wants them (as docker does).
fn to_remove(id: &Digest, refs: &[RefRecord], wanted: &str) -> (Vec<String>, bool) {
    let mine: Vec<&RefRecord> = refs.iter().filter(|r| r.image == *id).collect();
    let name = wanted.parse::<Reference>().map(|r| r.to_string()).ok();
    let named = mine.iter().find(|r| Some(&r.name) == name.as_ref());
    let mut names: Vec<String> = match named {
        // Named by id.
        None => mine.iter().map(|r| r.name.clone()).collect(),
        Some(named) => {
            let others = mine.iter().any(|r| {
                r.name != named.name && !r.is_digest() && r.repository() == named.repository()
            });
            mine.iter()
                .filter(|r| {
                    let same = r.repository() == named.repository();
                    r.name == named.name || (r.is_digest() && same && !others)
                })
                .map(|r| r.name.clone())
                .collect()
        }
    };
    names.sort();
    let whole = names.len() == mine.len();
    (names, whole)
}

/// The caller holds the lock of the records.
fn remove(
    disk: &Disk,
    record: &ImageRecord,
    refs: &[RefRecord],
    wanted: &str,
) -> Result<Removed, ImageError> {
    let (names, whole) = to_remove(&record.id, refs, wanted);
    // The names first: a crash in between leaves an image without names, not a dead name.
    for name in &names {
        disk::remove_file(&disk.reference(name))?;
    }
    if whole {
        disk::remove_file(&disk.image(&record.id))?;
    }
    Ok(Removed {
        untagged: names,
        deleted: whole.then(|| record.id.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs(names: &[&str], id: &Digest) -> Vec<RefRecord> {
        let record = |name: &&str| RefRecord::new((*name).to_owned(), id.clone());
        names.iter().map(record).collect()
    }

    #[test]
    fn the_last_tag_takes_the_digest_and_the_image_along() {
        let id = Digest::of(b"image");
        let digest = format!("docker.io/library/a@{id}");
        let two = refs(
            &["docker.io/library/a:1", "docker.io/library/a:2", &digest],
            &id,
        );
        assert_eq!(
            to_remove(&id, &two, "a:1"),
            (vec!["docker.io/library/a:1".to_owned()], false)
        );
        let one = refs(&["docker.io/library/a:2", &digest], &id);
        assert_eq!(
            to_remove(&id, &one, "a:2"),
            (
                vec!["docker.io/library/a:2".to_owned(), digest.clone()],
                true
            )
        );
        assert_eq!(to_remove(&id, &two, &id.to_string()).0.len(), 3);
        let elsewhere = refs(&["docker.io/library/a:2", &digest, "b.example/a:2"], &id);
        let (names, whole) = to_remove(&id, &elsewhere, "a:2");
        assert_eq!((names.len(), whole), (2, false));
    }
}
