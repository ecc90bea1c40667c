// SPDX-License-Identifier: Apache-2.0
//! Makes an image of one layer out of a root filesystem.
//!
//! The same input gives the same digest: entries are sorted by name, times are zero, the layer is
//! not compressed (so no compressor's version matters), nothing records the machine or the date.
//! Kept from the source: owners, modes, hard links, links, devices, pipes, `security.*` and `user.*`
//! attributes. Sockets are left out, as every archiver does.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use super::content;
use super::digest::{Digest, Hashing};
use super::disk::{self, Disk, Session};
use super::error::ImageError;
use super::import::render;
use super::layer::decompressed;
use super::manifest::{Descriptor, Manifest};
use super::platform::Platform;
use super::pull::SESSION_WAIT;
use super::records::{ImageRecord, LayerOf};
use super::reference::Reference;
use super::types::{BuildOptions, Image, RootfsSource};

pub(crate) async fn build(disk: &Disk, options: BuildOptions) -> Result<Image, ImageError> {
    let name: Reference = options.name.parse()?;
    if name.digest().is_some() {
        return Err(ImageError::malformed(format!(
            "cannot name the result {:?}: the digest is not known yet",
            options.name
        )));
    }
    // Checked before any work is done.
    let ports = ports(&options.ports)?;
    check(&options)?;
    let session = Arc::new(Session::begin(disk, SESSION_WAIT).await?);
    let source = options.rootfs.clone();
    let (path, blob, diff_id) = {
        let session = session.clone();
        disk::blocking(move || layer_blob(&session, &source)).await?
    };
    let layers = vec![LayerOf {
        blob: blob.digest.clone(),
        size: Some(blob.size),
        diff_id: diff_id.clone(),
    }];
    let config = config(&options, ports, &diff_id).to_string().into_bytes();
    let id = Digest::of(&config);
    let manifest = Manifest {
        config: Descriptor::of(id.clone(), config.len() as u64),
        layers: vec![blob.clone()],
    };
    let manifest_bytes = render(&manifest);
    let manifest_digest = Digest::of(&manifest_bytes);
    let size = (config.len() + manifest_bytes.len()) as u64 + blob.size;
    let claims = content::claims([&id, &manifest_digest], &layers);
    session.claim(claims).await?;
    {
        let (disk, session) = (disk.clone(), session.clone());
        let (blob, id, manifest) = (blob.digest.clone(), id.clone(), manifest_digest.clone());
        disk::blocking(move || {
            disk::rename(&path, &disk.blob(&blob))?;
            content::put_bytes(&disk, &session, &config, &id)?;
            content::put_bytes(&disk, &session, &manifest_bytes, &manifest)
        })
        .await?;
    }
    {
        let lock = content::lock_layer(disk, &diff_id).await?;
        content::ensure_unpacked(disk, &session, &lock, &blob.digest, &diff_id).await?;
    }
    let names = vec![
        name.with_digest(manifest_digest.clone()).to_string(),
        name.to_string(),
    ];
    let record = ImageRecord::new(id, manifest_digest, layers, size);
    content::commit(disk, record, names).await
}

fn check(options: &BuildOptions) -> Result<(), ImageError> {
    for pair in &options.env {
        if pair.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
            return Err(ImageError::malformed(format!(
                "environment {pair:?} is not of the form KEY=value"
            )));
        }
    }
    match &options.workdir {
        Some(path) if !path.starts_with('/') => Err(ImageError::malformed(format!(
            "working directory {path:?} is not an absolute path"
        ))),
        _ => Ok(()),
    }
}

/// `80` and `80/tcp` are the same port.
fn ports(ports: &[String]) -> Result<BTreeMap<String, Value>, ImageError> {
    let mut exposed = BTreeMap::new();
    for text in ports {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let valid = number.parse::<u16>().is_ok_and(|number| number > 0)
            && matches!(protocol, "tcp" | "udp" | "sctp");
        if !valid {
            return Err(ImageError::malformed(format!(
                "port {text:?} is not of the form 80, 80/tcp, 80/udp or 80/sctp"
            )));
        }
        exposed.insert(format!("{number}/{protocol}"), json!({}));
    }
    Ok(exposed)
}

fn config(options: &BuildOptions, ports: BTreeMap<String, Value>, diff_id: &Digest) -> Value {
    let mut run = serde_json::Map::new();
    let mut set = |key: &str, value: Value, wanted: bool| {
        if wanted {
            run.insert(key.to_owned(), value);
        }
    };
    set("User", json!(options.user), options.user.is_some());
    set("ExposedPorts", json!(ports), !ports.is_empty());
    set("Env", json!(options.env), !options.env.is_empty());
    set(
        "Entrypoint",
        json!(options.entrypoint),
        !options.entrypoint.is_empty(),
    );
    set("Cmd", json!(options.cmd), !options.cmd.is_empty());
    set(
        "WorkingDir",
        json!(options.workdir),
        options.workdir.is_some(),
    );
    set("Labels", json!(options.labels), !options.labels.is_empty());
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": Platform::host().architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "podwright image build"}],
    })
}

/// Writes the layer to a file of the session; that, the blob that it is, and its diff id.
fn layer_blob(
    session: &Session,
    source: &RootfsSource,
) -> Result<(PathBuf, Descriptor, Digest), ImageError> {
    let path = session.fresh();
    let storage = |source| ImageError::storage("writing", &path, source);
    let file = File::create_new(&path).map_err(storage)?;
    let mut out = Hashing::new(BufWriter::new(file));
    match source {
        RootfsSource::Dir(dir) => write_tar(dir, &mut out)?,
        RootfsSource::Tar(tar) => {
            let fail = |source| ImageError::storage("reading", tar, source);
            io::copy(&mut File::open(tar).map_err(fail)?, &mut out).map_err(storage)?;
        }
    }
    let (digest, size, writer) = out.finish();
    writer
        .into_inner()
        .map_err(|error| storage(error.into_error()))?;
    let diff_id = match source {
        RootfsSource::Dir(_) => digest.clone(),
        RootfsSource::Tar(tar) => {
            let hash = || {
                decompressed(BufReader::new(File::open(&path)?), |content| {
                    let mut hashing = Hashing::new(content);
                    io::copy(&mut hashing, &mut io::sink())?;
                    Ok(hashing.finish().0)
                })?
            };
            hash().map_err(|source| ImageError::storage("decompressing", tar, source))?
        }
    };
    Ok((path, Descriptor::of(digest, size), diff_id))
}

fn write_tar(root: &Path, out: &mut impl Write) -> Result<(), ImageError> {
    let fail = |path: &Path, source| ImageError::storage("reading", path, source);
    let metadata = fs::metadata(root).map_err(|source| fail(root, source))?;
    if !metadata.is_dir() {
        let source = io::ErrorKind::NotADirectory.into();
        return Err(ImageError::storage("reading directory", root, source));
    }
    let mut writer = TarWriter {
        tar: tar::Builder::new(out),
        links: HashMap::new(),
    };
    // A stack of paths relative to the root, the next one on top: depth first, sorted.
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = root.join(&relative);
        let entry = || -> io::Result<Vec<OsString>> {
            let metadata = if relative.as_os_str().is_empty() {
                fs::metadata(&path)?
            } else {
                fs::symlink_metadata(&path)?
            };
            writer.add(&path, &relative, &metadata)?;
            if !metadata.is_dir() {
                return Ok(Vec::new());
            }
            let mut names = fs::read_dir(&path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        let mut entry = entry;
        let names = entry().map_err(|source| fail(&path, source))?;
        todo.extend(names.into_iter().rev().map(|name| relative.join(name)));
    }
    writer.tar.finish().map_err(|source| fail(root, source))
}

struct TarWriter<W: Write> {
    tar: tar::Builder<W>,
    /// First name of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> TarWriter<W> {
    fn add(&mut self, path: &Path, relative: &Path, metadata: &Metadata) -> io::Result<()> {
        let whiteout = relative
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b".wh."));
        if whiteout {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a file of this name means a deletion in an image layer",
            ));
        }
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        // The root is "./"; other names stand without the dot.
        let name = if relative.as_os_str().is_empty() {
            Path::new("./")
        } else {
            relative
        };
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(0);
        header.set_size(0);
        if !kind.is_dir() && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                header.set_entry_type(tar::EntryType::Link);
                return self.tar.append_link(&mut header, name, first);
            }
            self.links.insert(inode, relative.to_owned());
        }
        if !kind.is_symlink() {
            self.xattrs(path)?;
        }
        let mut special = |entry_type, device: u64| {
            header.set_entry_type(entry_type);
            header.set_device_major(u32::try_from(major(device)).unwrap_or(u32::MAX))?;
            header.set_device_minor(u32::try_from(minor(device)).unwrap_or(u32::MAX))?;
            self.tar.append_data(&mut header, name, io::empty())
        };
        if kind.is_dir() {
            special(tar::EntryType::Directory, 0)
        } else if kind.is_fifo() {
            special(tar::EntryType::Fifo, 0)
        } else if kind.is_char_device() {
            special(tar::EntryType::Char, metadata.rdev())
        } else if kind.is_block_device() {
            special(tar::EntryType::Block, metadata.rdev())
        } else if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            self.tar
                .append_link(&mut header, name, fs::read_link(path)?)
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(metadata.len());
            let file = File::open(path)?;
            // A file that grows or shrinks meanwhile must not shift what follows it.
            let content = io::Read::take(file, metadata.len());
            let mut content = Hashing::new(content);
            self.tar.append_data(&mut header, name, &mut content)?;
            if content.count() != metadata.len() {
                return Err(io::Error::other("the file changed while it was read"));
            }
            Ok(())
        }
    }

    fn xattrs(&mut self, path: &Path) -> io::Result<()> {
        let kept = |name: &OsStr| {
            let name = name.as_bytes();
            (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
                || name == b"security.capability"
        };
        let names = match xattr::list(path) {
            Ok(names) => names,
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut all = BTreeMap::new();
        for name in names.filter(|name| kept(name)) {
            if let (Some(text), Some(value)) = (name.to_str(), xattr::get(path, &name)?) {
                all.insert(format!("SCHILY.xattr.{text}"), value);
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        self.tar
            .append_pax_extensions(all.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_normalised_and_bad_ones_named() {
        let given = ["80".to_owned(), "80/tcp".to_owned(), "53/udp".to_owned()];
        let keys: Vec<_> = ports(&given).unwrap().into_keys().collect();
        assert_eq!(keys, ["53/udp", "80/tcp"]);
        for bad in ["", "0", "70000", "80/icmp", "80/", "a"] {
            let error = ports(&[bad.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{bad}");
        }
    }
}
