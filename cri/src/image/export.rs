// SPDX-License-Identifier: Apache-2.0
//! Writes an image as an OCI archive: a tar of an image layout. Equal images give equal archives.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::digest::Digest;
use super::disk::Disk;
use super::error::ImageError;
use super::import::{NAME_ANNOTATION, REF_ANNOTATION};
use super::manifest;
use super::records::{self, ImageRecord, RefRecord};

/// Blocks. The caller holds a session, so the content stays.
pub(crate) fn export(
    disk: &Disk,
    record: &ImageRecord,
    refs: &[RefRecord],
    to: &Path,
) -> Result<(), ImageError> {
    let storage = |source| ImageError::storage("writing", to, source);
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let file = tempfile::NamedTempFile::new_in(directory).map_err(storage)?;
    let mut archive = tar::Builder::new(BufWriter::new(file));
    add_bytes(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .map_err(storage)?;
    let index = index(disk, record, refs)?;
    add_bytes(&mut archive, "index.json", &index).map_err(storage)?;
    let mut blobs: Vec<&Digest> = vec![&record.manifest, &record.id];
    blobs.extend(record.layers.iter().map(|layer| &layer.blob));
    blobs.sort();
    blobs.dedup();
    for digest in blobs {
        let path = disk.blob(digest);
        let blob = File::open(&path)
            .map_err(|source| ImageError::storage("opening blob", &path, source))?;
        add_file(
            &mut archive,
            &format!("blobs/sha256/{}", digest.hex()),
            blob,
        )
        .map_err(storage)?;
    }
    let finish = || {
        let file = archive.into_inner()?.into_inner()?;
        // tempfile makes it 0600; an exported file is like any other the user writes.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(to).map_err(|error| error.error)
    };
    finish().map(drop).map_err(storage)
}

/// One entry per tag, or a nameless one: that is how containerd and skopeo read several names.
fn index(disk: &Disk, record: &ImageRecord, refs: &[RefRecord]) -> Result<Vec<u8>, ImageError> {
    let manifest = records::read_blob(disk, &record.manifest, manifest::MAX_DOCUMENT)?;
    let media_type = serde_json::from_slice::<serde_json::Value>(&manifest)
        .ok()
        .and_then(|value| value.get("mediaType")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
    let mut names: Vec<&str> = refs
        .iter()
        .filter(|r| r.image == record.id && !r.is_digest())
        .map(|r| r.name.as_str())
        .collect();
    names.sort_unstable();
    let plain = json!({
        "mediaType": media_type,
        "digest": record.manifest,
        "size": manifest.len(),
    });
    let mut entries = Vec::new();
    for name in names {
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

fn add_bytes<W: Write>(archive: &mut tar::Builder<W>, name: &str, data: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(data.len() as u64), name, data)
}

fn add_file<W: Write>(archive: &mut tar::Builder<W>, name: &str, file: File) -> io::Result<()> {
    let size = file.metadata()?.len();
    archive.append_data(&mut header(size), name, file)
}
