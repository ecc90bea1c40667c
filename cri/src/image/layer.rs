// SPDX-License-Identifier: Apache-2.0
//! Unpacks one layer into a directory of its own, in overlay's own form.
//!
//! OCI image specification, `layer.md`: `.wh.NAME` becomes a character device 0:0, and
//! `.wh..wh..opq` the attribute `trusted.overlay.opaque=y` of its directory (kernel documentation,
//! `filesystems/overlayfs`). So a layer is unpacked once, whatever lies below it. A directory that the
//! archive implies without listing it gets 0755 root here, and what lies below decides later ([`implied`](super::implied)).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use xattr::FileExt;

use super::digest::{Algorithm, Digest, Hashing};
use super::error::ContentError;
use super::implied::MOST;
use super::pipe::{ChunkSender, pipe};
use super::rooted::{RelativePath, Root, is_directory, is_whiteout, look, remove_tree};
use super::tar_stream::{Entry, Kind, Limits, TarStream, bad};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of this form are aufs's own bookkeeping.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Uncompressed bytes that are handed on at a time, and how many such chunks may wait.
const CHUNK: usize = 128 << 10;
const CHUNKS: usize = 8;
/// Filesystem blocks are taken as 4 KiB when use is counted.
const DISK_BLOCK: u64 = 4096;

/// What unpacking found and made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed stream.
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that no entry lists, those above first.
    pub(crate) implied: Vec<String>,
}

/// Hands the uncompressed content of a blob to `work`. The form is told by the first bytes, as
/// containerd does: media types lie. Decompression is done by a thread of its own, which is gone when
/// this returns.
pub(crate) fn decompressed<T>(
    mut blob: impl BufRead + Send,
    work: impl FnOnce(&mut dyn BufRead) -> T,
) -> io::Result<T> {
    let mut magic = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let form = Form::of(&magic);
    let mut blob = io::Cursor::new(magic).chain(blob);
    if form == Form::Plain {
        return Ok(work(&mut blob));
    }
    std::thread::scope(|scope| {
        let (sender, mut reader) = pipe(CHUNKS);
        std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn_scoped(scope, move || match form {
                Form::Gzip => pump(flate2::bufread::MultiGzDecoder::new(blob), sender),
                _ => match zstd::stream::read::Decoder::with_buffer(blob) {
                    Ok(decoder) => pump(decoder, sender),
                    Err(error) => sender.fail(error),
                },
            })?;
        Ok(work(&mut reader))
        // The reader goes here, which ends a thread that still has something to say.
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
}

impl Form {
    fn of(magic: &[u8]) -> Form {
        match magic {
            [0x1f, 0x8b, ..] => Form::Gzip,
            // A frame, or a skippable frame (RFC 8878).
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Form::Zstd,
            _ => Form::Plain,
        }
    }
}

fn pump(mut from: impl Read, to: ChunkSender) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return to.fail(error),
            }
        }
        chunk.truncate(filled);
        if !to.send(chunk.into()) {
            return;
        }
        if filled < CHUNK {
            return to.end();
        }
    }
}

/// Unpacks `blob` into the empty directory `dest`. Nothing is synced. The caller compares the
/// digest, which is made with `algorithm`, and removes `dest` on error.
pub(crate) fn unpack(
    blob: impl BufRead + Send,
    dest: &Path,
    limits: Limits,
    algorithm: Algorithm,
) -> Result<Unpacked, ContentError> {
    decompressed(blob, |content| {
        content_into(content, dest, limits, algorithm)
    })
    .map_err(ContentError::Read)?
}

fn content_into(
    content: &mut dyn BufRead,
    dest: &Path,
    limits: Limits,
    algorithm: Algorithm,
) -> Result<Unpacked, ContentError> {
    let mut stream = TarStream::new(Hashing::with(algorithm, content), limits);
    let root = Root::open(dest).map_err(|source| write_error("/", source))?;
    let mut writer = Writer {
        root,
        directories: HashMap::new(),
        bytes: 0,
        inodes: 1,
        limits,
    };
    writer.root_defaults()?;
    while let Some(entry) = stream.next()? {
        writer.entry(&entry, &mut stream)?;
    }
    stream.drain()?;
    writer.finish()?;
    let implied = writer.implied();
    let (diff_id, _, _) = stream.into_inner().finish();
    Ok(Unpacked {
        diff_id,
        bytes: writer.bytes,
        inodes: writer.inodes,
        implied,
    })
}

struct Writer {
    root: Root,
    /// Times of directories are set last, because filling a directory changes them.
    directories: HashMap<PathBuf, Option<(i64, i64)>>,
    bytes: u64,
    inodes: u64,
    limits: Limits,
}

impl Writer {
    fn root_defaults(&mut self) -> Result<(), ContentError> {
        self.directories.insert(PathBuf::new(), None);
        self.root
            .directory_file(Path::new(""))
            .and_then(|dir| dir.set_permissions(Permissions::from_mode(0o755)))
            .map_err(|source| write_error("/", source))
    }

    fn entry(
        &mut self,
        entry: &Entry,
        body: &mut TarStream<impl BufRead>,
    ) -> Result<(), ContentError> {
        let path = RelativePath::clean(&entry.path)
            .ok_or_else(|| bad(&entry.name(), "the path leaves the layer"))?;
        let result = match path.split() {
            None if entry.kind == Kind::Directory => {
                self.directories.insert(PathBuf::new(), Some(entry.mtime));
                self.root
                    .directory_file(Path::new(""))
                    .and_then(|dir| own(&dir, entry))
            }
            None => return Err(bad(&entry.name(), "the root must be a directory")),
            Some((parent, name)) => self.below(entry, &path, parent, name, body),
        };
        result.map_err(|source| unwrap_content(&entry.name(), source))
    }

    fn below(
        &mut self,
        entry: &Entry,
        path: &RelativePath,
        parent: &Path,
        name: &OsStr,
        body: &mut TarStream<impl BufRead>,
    ) -> io::Result<()> {
        let directory = self.make_parent(parent)?;
        let at = directory.as_fd();
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(at, parent, name, hidden, entry);
        }
        let existing = look(at, name)?;
        let existed_as_directory = existing.as_ref().is_some_and(is_directory);
        if existing.is_some() && !(existed_as_directory && entry.kind == Kind::Directory) {
            remove_tree(at, name)?;
        }
        match entry.kind {
            Kind::Directory => {
                if !existed_as_directory {
                    mkdirat(at, name, Mode::S_IRWXU)?;
                    self.inode()?;
                }
                let made = self.root.directory_file(path.as_path())?;
                own(&made, entry)?;
                // Replacing a whiteout by a directory hides what lies below, as the whiteout did.
                if existing.as_ref().is_some_and(is_whiteout) {
                    opaque(&made)?;
                }
                self.directories
                    .insert(path.as_path().to_owned(), Some(entry.mtime));
            }
            Kind::File => self.file(at, name, entry, body)?,
            Kind::HardLink => self.hard_link(at, name, entry)?,
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), at, name)?;
                self.inode()?;
                own_at(at, name, entry)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => self.node(at, name, entry)?,
        }
        Ok(())
    }

    fn make_parent(&mut self, parent: &Path) -> io::Result<OwnedFd> {
        let (directory, made) = self.root.make_directory(parent)?;
        if made > 0 {
            for (_, implied) in (0..made).zip(parent.ancestors()) {
                self.directories.insert(implied.to_owned(), None);
                self.inode()?;
            }
        }
        Ok(directory)
    }

    /// Counts an inode. Directories that entries imply count as well, so the limit holds for them.
    fn inode(&mut self) -> io::Result<()> {
        self.inodes += 1;
        if self.inodes > self.limits.entries {
            return Err(io::Error::other(ContentError::TooLarge {
                limit: self.limits.entries,
                unit: "entries",
            }));
        }
        Ok(())
    }

    /// Whiteouts hide what is in lower layers only: something of this layer stays.
    fn whiteout(
        &mut self,
        at: BorrowedFd<'_>,
        parent: &Path,
        name: &OsStr,
        hidden: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        if name.as_bytes() == OPAQUE {
            return opaque(&self.root.directory_file(parent)?);
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::Error::other(bad(
                &entry.name(),
                "the whiteout names no file",
            )));
        }
        let hidden = OsStr::from_bytes(hidden);
        match look(at, hidden)? {
            Some(stat) if is_directory(&stat) => {
                let mut path = parent.to_owned();
                path.push(hidden);
                opaque(&self.root.directory_file(&path)?)
            }
            Some(_) => Ok(()),
            None => {
                mknodat(at, hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?;
                self.inode()
            }
        }
    }

    fn file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        body: &mut TarStream<impl BufRead>,
    ) -> io::Result<()> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(at, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        self.inode()?;
        match &entry.sparse {
            None => body.copy_body(entry.size, &mut file)?,
            Some(sparse) => {
                for (offset, length) in &sparse.segments {
                    file.seek(SeekFrom::Start(*offset))?;
                    body.copy_body(*length, &mut file)?;
                }
                file.set_len(sparse.size)?;
            }
        }
        own(&file, entry)?;
        set_time(at, name, entry.mtime)?;
        self.bytes += entry.size.next_multiple_of(DISK_BLOCK);
        Ok(())
    }

    fn hard_link(&self, at: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let target = RelativePath::clean(&entry.link).ok_or_else(|| {
            io::Error::other(bad(&entry.name(), "the link target leaves the layer"))
        })?;
        let Some((parent, target_name)) = target.split() else {
            return Err(io::Error::other(bad(
                &entry.name(),
                "the link target is the root",
            )));
        };
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(bad(
                &entry.name(),
                format!(
                    "the link target {:?} is not in this layer",
                    String::from_utf8_lossy(&entry.link)
                ),
            )),
            _ => error,
        };
        let from = self.root.directory(parent).map_err(missing)?;
        linkat(from.as_fd(), target_name, at, name, AtFlags::empty())
            .map_err(|error| missing(error.into()))
    }

    fn node(&mut self, at: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let (kind, device) = match entry.kind {
            Kind::Block => (SFlag::S_IFBLK, entry.device),
            Kind::Char => (SFlag::S_IFCHR, entry.device),
            _ => (SFlag::S_IFIFO, (0, 0)),
        };
        let device = makedev(device.0.into(), device.1.into());
        mknodat(at, name, kind, Mode::empty(), device)?;
        self.inode()?;
        own_at(at, name, entry)
    }

    /// A name that is no text is none that a build tool leaves out.
    fn implied(&self) -> Vec<String> {
        let unlisted = self.directories.iter().filter(|(_, time)| time.is_none());
        let there = unlisted.filter(|(path, _)| self.has_directory(path).unwrap_or(false));
        let names = there.filter_map(|(path, _)| path.to_str());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names.truncate(MOST);
        names
    }

    /// Whether it is below the root and still a directory, not a link to one.
    fn has_directory(&self, path: &Path) -> io::Result<bool> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(false);
        };
        let parent = self.root.directory(parent)?;
        Ok(look(parent.as_fd(), name)?
            .as_ref()
            .is_some_and(is_directory))
    }

    /// Times of directories.
    fn finish(&self) -> Result<(), ContentError> {
        for (path, mtime) in &self.directories {
            let Ok(directory) = self.root.directory_file(path) else {
                // Replaced by something else later in the archive.
                continue;
            };
            if let Some(mtime) = mtime {
                set_time(directory.as_fd(), OsStr::new("."), *mtime)
                    .map_err(|source| write_error(&path.to_string_lossy(), source))?;
            }
        }
        Ok(())
    }
}

/// Owner first, because changing it clears set-id bits and capabilities.
fn own(file: &File, entry: &Entry) -> io::Result<()> {
    std::os::unix::fs::fchown(file, Some(entry.uid), Some(entry.gid))?;
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    set_xattrs(entry, |name, value| file.set_xattr(name, value))
}

/// The same for what can't be opened: links, devices, pipes.
fn own_at(at: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(at, name, Some(owner.0), Some(owner.1), nofollow)?;
    if entry.kind != Kind::Symlink {
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(at, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let path = Path::new("/proc/self/fd")
        .join(at.as_raw_fd().to_string())
        .join(name);
    set_xattrs(entry, |name, value| xattr::set(&path, name, value))?;
    set_time(at, name, entry.mtime)
}

fn set_xattrs(entry: &Entry, set: impl Fn(&OsStr, &[u8]) -> io::Result<()>) -> io::Result<()> {
    for (name, value) in &entry.xattrs {
        // Overlay takes orders from these: a layer must not redirect a directory elsewhere.
        if is_overlays(name) {
            return Err(io::Error::other(bad(
                &entry.name(),
                format!("the attribute {name:?} is not for layers to set"),
            )));
        }
        match set(name, value) {
            // As containerd: a filesystem that can't keep an attribute does not fail the image.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {
                tracing::debug!(entry = entry.name(), ?name, "attribute not supported here");
            }
            result => result?,
        }
    }
    Ok(())
}

/// An attribute by which overlay keeps its books.
pub(crate) fn is_overlays(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn set_time(at: BorrowedFd<'_>, name: &OsStr, mtime: (i64, i64)) -> io::Result<()> {
    let time = TimeSpec::new(mtime.0, mtime.1);
    Ok(utimensat(
        at,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn opaque(directory: &File) -> io::Result<()> {
    directory.set_xattr("trusted.overlay.opaque", b"y")
}

fn write_error(entry: &str, source: io::Error) -> ContentError {
    ContentError::Write {
        entry: entry.to_owned(),
        source,
    }
}

/// Refusals travel through functions that otherwise fail with I/O errors; here they come out again.
fn unwrap_content(entry: &str, error: io::Error) -> ContentError {
    match error.downcast::<ContentError>() {
        Ok(content) => content,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            bad(entry, "too many symbolic links on the path")
        }
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
            bad(entry, "the name is too long")
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {
            bad(entry, "a part of the path is not a directory")
        }
        Err(source) => write_error(entry, source),
    }
}

#[cfg(test)]
mod tests;
