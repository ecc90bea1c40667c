// SPDX-License-Identifier: Apache-2.0
//! Reads a log file into a channel, and stays with it: through growth, through rotation, until
//! the container is gone and everything is read, or the reader is.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::line::{Formatter, Splitter};
use super::options::LogOptions;
use super::tail;

const CHUNK: usize = 64 << 10;
/// Without news from the file, this often the container's state is asked for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one disk access may take.
const DISK_DEADLINE: Duration = Duration::from_secs(60);

/// Asks whether the container still runs.
pub(in crate::server) type Alive = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Sends the log to `out`, in pieces of up to some 64 KiB. Ends when all is read (without
/// `follow`), when the container ended and all is read (with it), or when `out` is closed.
/// The channel's bound holds a fast log back to what the reader takes.
///
/// # Errors
/// The file can't be opened or read; what was sent so far stays valid.
pub(in crate::server) async fn read(
    path: PathBuf,
    options: LogOptions,
    alive: Alive,
    out: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut news = if options.follow {
        Some(News::of(&path)?)
    } else {
        None
    };
    let mut source = open(&path, options.tail_lines).await?;
    let mut splitter = Splitter::default();
    let mut formatter = Formatter::new(&options);
    let mut running = true;
    loop {
        let (next, chunk) = source.chunk().await?;
        source = next;
        let mut text = Vec::new();
        let mut go_on = splitter.push(&chunk, |line| formatter.push(line, &mut text));
        let end_of_file = chunk.is_empty();
        let end = end_of_file && (news.is_none() || !running);
        if end {
            splitter.finish(|line| formatter.push(line, &mut text));
            go_on = false;
        }
        if !text.is_empty() && out.send(Bytes::from(text)).await.is_err() {
            return Ok(());
        }
        if !go_on {
            return Ok(());
        }
        if !end_of_file {
            continue;
        }
        let Some(news) = &mut news else {
            continue;
        };
        if let Some(next) = source.successor(&path).await? {
            // The runtime finishes a line before it rotates; anything else is not one.
            splitter = Splitter::default();
            news.watch_file(&path);
            source = next;
            continue;
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            changed = tokio::time::timeout(PATIENCE, news.wait()) => {
                // Once it ended, everything that it wrote is in the file: read that, then stop.
                if changed.is_err() {
                    running = alive().await;
                }
            }
        }
    }
}

/// An open log file and how far it was read.
struct Source {
    file: File,
    offset: u64,
}

async fn open(path: &Path, tail_lines: Option<u64>) -> io::Result<Source> {
    let path = path.to_owned();
    on_disk(move || {
        let mut file = File::open(&path)?;
        let offset = match tail_lines {
            Some(lines) => tail::start(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(Source { file, offset })
    })
    .await
}

impl Source {
    /// The next bytes; empty at the end.
    async fn chunk(mut self) -> io::Result<(Self, Vec<u8>)> {
        on_disk(move || {
            let mut chunk = vec![0; CHUNK];
            let size = loop {
                match self.file.read(&mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            chunk.truncate(size);
            self.offset += size as u64;
            Ok((self, chunk))
        })
        .await
    }

    /// After the end was read: the file that took this one's place, if there is one. A file that
    /// was cut short is read again from its beginning.
    async fn successor(&self, path: &Path) -> io::Result<Option<Source>> {
        let (old, offset) = (self.file.try_clone()?, self.offset);
        let path = path.to_owned();
        on_disk(move || {
            let theirs = match File::open(&path) {
                Ok(file) => file,
                // Between the two steps of a rotation.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            // In this order: once the new file is there, nothing is added to the old one.
            let (meta, mine) = (theirs.metadata()?, old.metadata()?);
            let same = (meta.dev(), meta.ino()) == (mine.dev(), mine.ino());
            // What came after the end was read is for the next round; then this one is asked again.
            let unread = !same && mine.len() > offset;
            let replaced = !same || meta.len() < offset;
            Ok((replaced && !unread).then_some(Source {
                file: theirs,
                offset: 0,
            }))
        })
        .await
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let work = tokio::task::spawn_blocking(work);
    match tokio::time::timeout(DISK_DEADLINE, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(io::Error::other(panicked)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// inotify(7) on the file (it grew) and on its directory (it was replaced).
struct News {
    inotify: Inotify,
    /// The same inotify instance, as something that can be waited for. Tokio's own type for
    /// foreign descriptors needs unsafe code; its pipe end does nothing but poll and read.
    events: pipe::Receiver,
}

impl News {
    fn of(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let parent = path.parent().filter(|p| p.as_os_str() != OsStr::new(""));
        let replaced = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(parent.unwrap_or(Path::new(".")), replaced)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        let events = pipe::Receiver::from_owned_fd_unchecked(descriptor)?;
        let news = Self { inotify, events };
        news.watch_file(path);
        Ok(news)
    }

    /// Best effort: without it the file is looked at every second.
    fn watch_file(&self, path: &Path) {
        if let Err(error) = self.inotify.add_watch(path, AddWatchFlags::IN_MODIFY) {
            tracing::debug!(path = %path.display(), %error, "a log file is not watched");
        }
    }

    /// Returns when something happened. Cancel-safe.
    async fn wait(&mut self) {
        // What happened doesn't matter: it means "look again".
        let mut buffer = [0; 4096];
        if self.events.readable().await.is_err() {
            return;
        }
        while self.events.try_read(&mut buffer).is_ok_and(|size| size > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn append(path: &Path, lines: &[&str]) {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .expect("opens");
        for line in lines {
            writeln!(file, "2026-01-01T00:00:01Z stdout F {line}").expect("writes");
        }
    }

    struct Follower {
        out: mpsc::Receiver<Bytes>,
        running: Arc<AtomicBool>,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    fn start(path: &Path, options: LogOptions) -> Follower {
        let (sender, out) = mpsc::channel(4);
        let running = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&running);
        let alive: Alive = Box::new(move || {
            let running = flag.load(Ordering::SeqCst);
            Box::pin(async move { running })
        });
        let task = tokio::spawn(read(path.to_owned(), options, alive, sender));
        Follower { out, running, task }
    }

    impl Follower {
        async fn expect(&mut self, want: &str) {
            let mut got = Vec::new();
            while got.len() < want.len() {
                let piece = tokio::time::timeout(Duration::from_secs(10), self.out.recv()).await;
                let piece = piece.expect("no news in time").expect("the log ended");
                got.extend_from_slice(&piece);
            }
            assert_eq!(String::from_utf8_lossy(&got), want);
        }

        async fn end(mut self) -> String {
            let mut rest = Vec::new();
            while let Some(piece) = self.out.recv().await {
                rest.extend_from_slice(&piece);
            }
            self.task.await.expect("no panic").expect("no error");
            String::from_utf8(rest).expect("text")
        }
    }

    fn following() -> LogOptions {
        LogOptions {
            follow: true,
            ..LogOptions::default()
        }
    }

    #[tokio::test]
    async fn a_log_is_read_to_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        append(&path, &["a", "b", "c"]);
        assert_eq!(start(&path, LogOptions::default()).end().await, "a\nb\nc\n");
        let options = LogOptions {
            tail_lines: Some(1),
            ..LogOptions::default()
        };
        assert_eq!(start(&path, options).end().await, "c\n");
    }

    #[tokio::test]
    async fn following_sees_growth_rotation_and_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        append(&path, &["old", "a"]);
        let mut log = start(
            &path,
            LogOptions {
                tail_lines: Some(1),
                ..following()
            },
        );
        log.expect("a\n").await;
        append(&path, &["b"]);
        log.expect("b\n").await;
        for round in 0..3 {
            let rotated = dir.path().join(format!("0.log.{round}"));
            append(&path, &["last words"]);
            std::fs::rename(&path, &rotated).expect("renames");
            append(&rotated, &["written after the rename"]);
            append(&path, &["new file"]);
            log.expect("last words\nwritten after the rename\nnew file\n")
                .await;
        }
        append(&path, &["bye"]);
        log.running.store(false, Ordering::SeqCst);
        assert_eq!(log.end().await, "bye\n");
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_follower() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        append(&path, &["a"]);
        let mut log = start(&path, following());
        log.expect("a\n").await;
        drop(log.out);
        let ended = tokio::time::timeout(Duration::from_secs(10), log.task).await;
        ended
            .expect("it ends")
            .expect("no panic")
            .expect("no error");
    }

    #[tokio::test]
    async fn a_missing_file_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = start(&dir.path().join("gone.log"), LogOptions::default());
        let error = log
            .task
            .await
            .expect("no panic")
            .expect_err("there is no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
