// SPDX-License-Identifier: Apache-2.0
//! A layer on its way in: its blob is hashed and stored by one thread while others decompress and
//! unpack it, so that the network, the processor and the disk do not wait for one another.
//!
//! What is unpacked before it is verified is hostile at worst, which unpacking takes into account;
//! it gets its name only after both digests fit.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::content::{self, LayerLock, layer_error};
use super::digest::{Digest, Hasher};
use super::disk::{self, Disk, Session};
use super::error::{ContentError, ErrorKind, ImageError};
use super::layer::{self, Unpacked};
use super::manifest::Descriptor;
use super::pipe::{ChunkReader, ChunkSender, pipe};
use super::rooted;
use super::tar_stream::Limits;

/// Chunks that wait between two stages. Chunks have some ten to some hundred KiB.
const WAITING: usize = 4;
const READ: usize = 128 << 10;

/// What a layer must turn out to be, and where it goes.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) disk: Disk,
    pub(crate) session: Arc<Session>,
    /// Held until the work is over, even if nobody waits for it any more.
    #[expect(dead_code, reason = "held for its lock")]
    pub(crate) lock: LayerLock,
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: Digest,
    /// False when the layer is there and only its blob is not.
    pub(crate) unpack: bool,
}

enum Piece {
    Chunk(Bytes),
    /// The sender said that this was all, which is not the same as a sender that went away.
    End,
}

/// The taking in of one layer. Dropped before [`Intake::finish`], it keeps the blob's beginning for
/// the next attempt, and nothing else.
pub(crate) struct Intake {
    pieces: mpsc::Sender<Piece>,
    work: JoinHandle<Result<(), ImageError>>,
    /// Bytes that were there already.
    pub(crate) begun: u64,
}

impl Intake {
    /// Goes on with what an earlier attempt left, unless `anew`.
    pub(crate) async fn begin(wanted: Wanted, anew: bool) -> Result<Intake, ImageError> {
        let store = {
            let wanted = wanted.clone();
            disk::blocking(move || Store::open(&wanted, anew)).await?
        };
        let begun = store.begun;
        let (pieces, incoming) = mpsc::channel(WAITING);
        let work = tokio::task::spawn_blocking(move || Work { wanted, store }.run(incoming));
        Ok(Intake {
            pieces,
            work,
            begun,
        })
    }

    /// Takes a chunk, when there is room. False when the work has failed: [`Intake::finish`] says why.
    pub(crate) async fn chunk(&self, chunk: Bytes) -> bool {
        self.pieces.send(Piece::Chunk(chunk)).await.is_ok()
    }

    /// That was all: the blob and the layer are in their places now, or are refused.
    pub(crate) async fn finish(self) -> Result<(), ImageError> {
        drop(self.pieces.send(Piece::End).await);
        joined(self.work).await
    }

    /// There is no more to come for now. Returns when what came is on the disk for another attempt.
    pub(crate) async fn stop(self) {
        drop(self.pieces);
        if let Err(error) = joined(self.work).await {
            tracing::debug!(error = %error.message(), "a layer's transfer was given up");
        }
    }
}

async fn joined(work: JoinHandle<Result<(), ImageError>>) -> Result<(), ImageError> {
    match work.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ImageError::malformed("the pull was cancelled")),
        },
    }
}

/// The blob's file while it grows.
struct Store {
    file: File,
    path: PathBuf,
    begun: u64,
}

impl Store {
    fn open(wanted: &Wanted, anew: bool) -> Result<Store, ImageError> {
        let path = wanted.disk.partial(&wanted.blob.digest);
        let fail = |source| ImageError::storage("opening", &path, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(fail(error)),
            // Another layer of the same blob is being taken in: this one works on its own.
            Err(TryLockError::WouldBlock) => {
                let path = wanted.session.fresh();
                let own = options.open(&path);
                let file = own.map_err(|e| ImageError::storage("creating", &path, e))?;
                return Ok(Store {
                    file,
                    path,
                    begun: 0,
                });
            }
        }
        let mut begun = file.metadata().map_err(fail)?.len();
        if anew || begun > wanted.blob.size {
            file.set_len(0).map_err(fail)?;
            begun = 0;
        }
        Ok(Store { file, path, begun })
    }
}

struct Work {
    wanted: Wanted,
    store: Store,
}

impl Work {
    fn run(mut self, incoming: mpsc::Receiver<Piece>) -> Result<(), ImageError> {
        let result = self.attempt(incoming);
        // The beginning is worth keeping unless it is wrong, or the disk is full of it, or nothing.
        let empty = || self.store.file.metadata().is_ok_and(|m| m.len() == 0);
        if let Err(error) = &result
            && (error.kind() != ErrorKind::RegistryUnavailable || empty())
        {
            drop(fs::remove_file(&self.store.path));
        }
        match result {
            Err(error) if error.kind() == ErrorKind::RegistryUnavailable => Ok(()),
            result => result,
        }
    }

    fn attempt(&mut self, incoming: mpsc::Receiver<Piece>) -> Result<(), ImageError> {
        if !self.wanted.unpack {
            return self.blob(incoming, None, &AtomicBool::new(false));
        }
        let temporary = self.wanted.session.fresh();
        let result = self.with_unpacking(incoming, &temporary);
        if result.is_err() {
            // The first error is the one to tell; the session removes what this leaves.
            drop(rooted::remove_path(&temporary));
        }
        result
    }

    fn with_unpacking(
        &mut self,
        incoming: mpsc::Receiver<Piece>,
        temporary: &Path,
    ) -> Result<(), ImageError> {
        fs::create_dir(temporary).map_err(|e| ImageError::storage("creating", temporary, e))?;
        let wanted = self.wanted.clone();
        let (sender, reader) = pipe(WAITING);
        let hopeless = AtomicBool::new(false);
        let unpacked = std::thread::scope(|scope| {
            let unpacking = std::thread::Builder::new()
                .name("unpack".to_owned())
                .spawn_scoped(scope, || {
                    let result = unpack(reader, temporary, &wanted.diff_id);
                    if matches!(result, Err(ContentError::Write { .. })) {
                        hopeless.store(true, Ordering::Relaxed);
                    }
                    result
                })
                .map_err(|e| ImageError::storage("starting a thread for", temporary, e))?;
            let stored = self.blob(incoming, Some(sender), &hopeless);
            let unpacked = match unpacking.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            // What is wrong with the bytes explains what is wrong with the layer in them. But when
            // the disk is full, both fail.
            match (stored, unpacked) {
                (Ok(()), unpacked) => unpacked.map_err(|e| layer_error(&wanted.blob.digest, e)),
                (Err(stored), Err(error @ ContentError::Write { .. }))
                    if stored.kind() == ErrorKind::RegistryUnavailable =>
                {
                    Err(layer_error(&wanted.blob.digest, error))
                }
                (Err(stored), _) => Err(stored),
            }
        })?;
        content::place_layer(&self.wanted.disk, &self.wanted.diff_id, temporary, unpacked)
    }

    /// Takes the blob in, and hands what comes on to be unpacked.
    fn blob(
        &mut self,
        mut incoming: mpsc::Receiver<Piece>,
        mut unpacking: Option<ChunkSender>,
        hopeless: &AtomicBool,
    ) -> Result<(), ImageError> {
        let wanted = &self.wanted.blob;
        let mut hasher = Hasher::new(wanted.digest.algorithm());
        let store = &mut self.store;
        let fail = |source| ImageError::storage("writing", &store.path, source);
        let mut pass = |hasher: &mut Hasher, chunk: Bytes| {
            hasher.update(&chunk);
            if unpacking.as_ref().is_some_and(|to| !to.send(chunk)) {
                // It has failed. The rest is taken in all the same, because its digest may tell why.
                unpacking = None;
            }
        };
        let mut left = store.begun;
        while left > 0 {
            let mut chunk = vec![0; READ];
            let n = store.file.read(&mut chunk).map_err(fail)?;
            if n == 0 {
                return Err(fail(io::ErrorKind::UnexpectedEof.into()));
            }
            chunk.truncate(n);
            left = left.saturating_sub(n as u64);
            pass(&mut hasher, chunk.into());
        }
        let mut size = store.begun;
        loop {
            // This disk takes no more: the rest of the blob would not help.
            if hopeless.load(Ordering::Relaxed) {
                return Err(broken_off());
            }
            match incoming.blocking_recv() {
                Some(Piece::Chunk(chunk)) => {
                    size = size.saturating_add(chunk.len() as u64);
                    if size > wanted.size {
                        break;
                    }
                    store.file.write_all(&chunk).map_err(fail)?;
                    pass(&mut hasher, chunk);
                }
                Some(Piece::End) => break,
                None => return Err(broken_off()),
            }
        }
        content::check(wanted, &hasher.digest(), size)?;
        disk::rename(&store.path, &self.wanted.disk.blob(&wanted.digest))?;
        if let Some(unpacking) = unpacking {
            unpacking.end();
        }
        Ok(())
    }
}

/// Not shown to anybody: whoever stopped sending knows why.
fn broken_off() -> ImageError {
    ImageError::Registry {
        registry: String::new(),
        url: String::new(),
        kind: ErrorKind::RegistryUnavailable,
        reason: "the transfer broke off".to_owned(),
        retry_after: None,
        source: None,
    }
}

fn unpack(
    reader: ChunkReader,
    temporary: &Path,
    diff_id: &Digest,
) -> Result<Unpacked, ContentError> {
    let unpacked = layer::unpack(reader, temporary, Limits::default(), diff_id.algorithm())?;
    match unpacked.diff_id == *diff_id {
        true => Ok(unpacked),
        false => Err(ContentError::DiffId {
            expected: diff_id.clone(),
            actual: unpacked.diff_id,
        }),
    }
}
