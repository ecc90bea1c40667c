// SPDX-License-Identifier: Apache-2.0
//! Writes an image as an OCI image layout: a tar archive, or a directory. Equal images give equal
//! archives. The Docker form has `manifest.json` besides, as `docker save` has written since 25.0:
//! its paths lead to the same blobs, so each layer is in it once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::disk::{Disk, blob_name};
use super::error::ImageError;
use super::import::{NAME_ANNOTATION, REF_ANNOTATION, STDIO};
use super::manifest;
use super::records::{self, ImageRecord, RefRecord};
use super::types::ExportFormat;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Blocks. The caller has claimed the content, so it stays.
pub(crate) fn export(
    disk: &Disk,
    record: &ImageRecord,
    refs: &[RefRecord],
    path: &Path,
    format: ExportFormat,
) -> Result<(), ImageError> {
    let mut parts = vec![
        ("oci-layout".to_owned(), LAYOUT.to_vec()),
        ("index.json".to_owned(), index(disk, record, refs)?),
    ];
    if format == ExportFormat::Docker {
        parts.push(("manifest.json".to_owned(), docker(record, refs)));
    }
    let fail = |source| ImageError::storage("writing", path, source);
    match format {
        ExportFormat::OciDir => directory(disk, record, &parts, path).map_err(fail),
        _ => archive(disk, record, &parts, path).map_err(fail),
    }
}

/// The image's blobs, each once, sorted.
fn blobs(record: &ImageRecord) -> Vec<String> {
    let layers = record.layers.iter().map(|layer| &layer.blob);
    let mut names: Vec<String> = [&record.id, &record.manifest]
        .into_iter()
        .chain(layers)
        .map(blob_name)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// To a file that is replaced when it is whole, or through what is there and is no file: a pipe, a
/// device. A link is followed, so that `/dev/stdout` is never replaced.
fn archive(
    disk: &Disk,
    record: &ImageRecord,
    parts: &[(String, Vec<u8>)],
    path: &Path,
) -> io::Result<()> {
    if path == Path::new(STDIO) {
        return entries(disk, record, parts, io::stdout());
    }
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let there = File::options().write(true).open(path)?;
        return entries(disk, record, parts, there);
    }
    // A bare file name has an empty parent.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::with_prefix_in(".export-", parent)?;
    entries(disk, record, parts, &mut file)?;
    // tempfile makes it 0600; an exported file is like any other the user writes.
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn entries(
    disk: &Disk,
    record: &ImageRecord,
    parts: &[(String, Vec<u8>)],
    to: impl Write,
) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 17, to));
    for (name, data) in parts {
        archive.append_data(&mut header(data.len() as u64), name, data.as_slice())?;
    }
    for name in blobs(record) {
        let file = File::open(disk.sub(&name))?;
        let size = file.metadata()?.len();
        archive.append_data(&mut header(size), name, file)?;
    }
    archive.into_inner()?.flush()
}

/// Into a directory that is made, or empty. `index.json` comes last: without it there is no layout.
fn directory(
    disk: &Disk,
    record: &ImageRecord,
    parts: &[(String, Vec<u8>)],
    path: &Path,
) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::ErrorKind::DirectoryNotEmpty.into());
    }
    for name in blobs(record) {
        let to = path.join(&name);
        fs::create_dir_all(to.parent().unwrap_or(path))?;
        fs::copy(disk.sub(&name), to)?;
    }
    for (name, data) in parts {
        fs::write(path.join(name), data)?;
    }
    nix::unistd::syncfs(File::open(path)?)?;
    Ok(())
}

fn tags<'a>(record: &ImageRecord, refs: &'a [RefRecord]) -> Vec<&'a str> {
    let mut names: Vec<&str> = refs
        .iter()
        .filter(|r| r.image == record.id && !r.is_digest())
        .map(|r| r.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

fn docker(record: &ImageRecord, refs: &[RefRecord]) -> Vec<u8> {
    let layers: Vec<String> = record.layers.iter().map(|l| blob_name(&l.blob)).collect();
    json!([{
        "Config": blob_name(&record.id),
        "RepoTags": tags(record, refs),
        "Layers": layers,
    }])
    .to_string()
    .into_bytes()
}

/// One entry per tag; one without a name for an image without tags.
fn index(disk: &Disk, record: &ImageRecord, refs: &[RefRecord]) -> Result<Vec<u8>, ImageError> {
    let manifest = records::read_blob(disk, &record.manifest, manifest::MAX_DOCUMENT)?;
    let media_type = serde_json::from_slice::<serde_json::Value>(&manifest)
        .ok()
        .and_then(|value| value.get("mediaType")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
    let plain = json!({
        "mediaType": media_type,
        "digest": record.manifest,
        "size": manifest.len(),
    });
    let mut entries = Vec::new();
    for name in tags(record, refs) {
        let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
        let mut entry = plain.clone();
        entry["annotations"] = json!({NAME_ANNOTATION: name, REF_ANNOTATION: tag});
        entries.push(entry);
    }
    if entries.is_empty() {
        entries.push(plain);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_INDEX,
        "manifests": entries,
    });
    Ok(index.to_string().into_bytes())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
