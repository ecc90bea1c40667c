// SPDX-License-Identifier: Apache-2.0
//! This node's keys on disk, and when one follows another.
//!
//! A new key takes two steps, so that no connection waits for longer than a handshake. First it is
//! made and announced as the next one; the others add a peer for it that has no ranges yet. Then,
//! when they have had time for that, the link gets it. The others know it by then: the first
//! handshake succeeds, and each moves the node's ranges to it as soon as it sees that.
//!
//! Files are written beside and renamed. After a crash there is the old key or the new one, and the
//! next one stays the next one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use zeroize::Zeroizing;

use super::key::{PrivateKey, PublicKey};
use super::model::{PublicKeys, WireGuard};
use crate::overlay::OverlayError;

const CURRENT: &str = "wireguard.key";
const NEXT: &str = "wireguard.next";
const SIDE: &str = "wireguard.tmp";
/// So long have the others time to hear of the next key, once the API has it. They watch, so it is
/// a matter of milliseconds; those that look at the API again after an error need seconds.
const NOTICE: Duration = Duration::from_secs(10);
/// More than a key's file has.
const LONGEST: usize = 100;

/// Says which public key belongs to a private one.
pub(super) type Derive = fn(&PrivateKey) -> Result<PublicKey, OverlayError>;

#[derive(Debug)]
struct Pair {
    private: PrivateKey,
    public: PublicKey,
}

/// This node's keys.
#[derive(Debug)]
pub(super) struct Keys {
    dir: PathBuf,
    rotation: Option<Duration>,
    derive: Derive,
    current: Pair,
    next: Option<Pair>,
    /// Since when the others can know of both.
    announced: Option<Instant>,
}

/// What is to be done about the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    MakeNext,
    Switch,
}

/// `age` of the current key is `None` if its file is from the future: then nobody knows.
fn turn(
    rotation: Option<Duration>,
    age: Option<Duration>,
    next: bool,
    announced: Option<Duration>,
) -> Turn {
    if next {
        let notice = rotation.map_or(NOTICE, |rotation| NOTICE.min(rotation / 2));
        let known = announced.is_some_and(|since| since >= notice);
        return if known { Turn::Switch } else { Turn::Nothing };
    }
    match rotation {
        Some(rotation) if age.is_none_or(|age| age >= rotation) => Turn::MakeNext,
        _ => Turn::Nothing,
    }
}

impl Keys {
    /// The keys in the folder; made if there are none.
    pub(super) fn open(settings: &WireGuard, derive: Derive) -> Result<Keys, OverlayError> {
        let dir = settings.key_dir.clone();
        let pair = |private: PrivateKey| {
            let public = derive(&private)?;
            Ok::<_, OverlayError>(Pair { private, public })
        };
        let current = match load(&dir, CURRENT)? {
            Some(key) => pair(key)?,
            None => {
                let made = pair(PrivateKey::generate().map_err(OverlayError::Random)?)?;
                store(&dir, CURRENT, &made.private)?;
                made
            }
        };
        let next = load(&dir, NEXT)?.map(pair).transpose()?;
        Ok(Keys {
            dir,
            rotation: settings.rotation,
            derive,
            current,
            next,
            announced: None,
        })
    }

    pub(super) fn public(&self) -> PublicKeys {
        PublicKeys {
            current: self.current.public,
            next: self.next.as_ref().map(|next| next.public),
        }
    }

    /// The private key in use, if that is the one that belongs to this public one.
    pub(super) fn private(&self, public: PublicKey) -> Option<&PrivateKey> {
        (self.current.public == public).then_some(&self.current.private)
    }

    /// Take the next step to another key, if it is time. `announced`: the others can know what
    /// [`Keys::public`] says. Returns what was done, in words.
    pub(super) fn rotate(&mut self, announced: bool) -> Result<Option<String>, OverlayError> {
        self.announced = match (announced, self.announced) {
            (true, None) => Some(Instant::now()),
            (true, since) => since,
            (false, _) => None,
        };
        let announced = self.announced.map(|since| since.elapsed());
        match turn(self.rotation, self.age(), self.next.is_some(), announced) {
            Turn::Nothing => Ok(None),
            Turn::MakeNext => self.make_next().map(Some),
            Turn::Switch => self.switch().map(Some),
        }
    }

    fn make_next(&mut self) -> Result<String, OverlayError> {
        let private = PrivateKey::generate().map_err(OverlayError::Random)?;
        let public = (self.derive)(&private)?;
        store(&self.dir, NEXT, &private)?;
        self.next = Some(Pair { private, public });
        self.announced = None;
        Ok(format!("the next WireGuard key of this node is {public}"))
    }

    fn switch(&mut self) -> Result<String, OverlayError> {
        // It is as old as its use, not as its making.
        let (from, to) = (self.dir.join(NEXT), self.dir.join(CURRENT));
        let renamed = File::options()
            .write(true)
            .open(&from)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .and_then(|()| fs::rename(&from, &to))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        renamed.map_err(at("replacing", &to))?;
        if let Some(next) = self.next.take() {
            self.current = next;
        }
        self.announced = None;
        let public = self.current.public;
        Ok(format!("the WireGuard key of this node is now {public}"))
    }

    fn age(&self) -> Option<Duration> {
        let written = fs::metadata(self.dir.join(CURRENT)).and_then(|m| m.modified());
        SystemTime::now().duration_since(written.ok()?).ok()
    }
}

/// Remove the keys, and their folder if nothing else is in it. Idempotent.
pub(crate) fn remove(dir: &Path) -> Result<(), OverlayError> {
    for name in [CURRENT, NEXT, SIDE] {
        let path = dir.join(name);
        gone(fs::remove_file(&path)).map_err(at("removing", &path))?;
    }
    // Not ours to empty.
    let _ = fs::remove_dir(dir);
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A key's file. One that others may have read, or that is none, is passed over with a warning: its
/// owner makes another.
fn load(dir: &Path, name: &str) -> Result<Option<PrivateKey>, OverlayError> {
    let path = dir.join(name);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at("opening", &path))?,
    };
    let mode = file.metadata().map_err(at("reading", &path))?.permissions();
    // As large as it gets, so that it never grows and leaves a copy behind.
    let mut bytes = Zeroizing::new([0; LONGEST]);
    let length = (&file).read(&mut *bytes).map_err(at("reading", &path))?;
    let text = std::str::from_utf8(&bytes[..length]).unwrap_or("");
    let why = match () {
        () if mode.mode() & 0o077 != 0 => "others than its owner may read it",
        () => match PrivateKey::parse(text) {
            Some(key) => return Ok(Some(key)),
            None => "it is not a key",
        },
    };
    tracing::warn!(path = %path.display(), "a WireGuard key is not used: {why}");
    fs::remove_file(&path).map_err(at("removing", &path))?;
    Ok(None)
}

fn store(dir: &Path, name: &str, key: &PrivateKey) -> Result<(), OverlayError> {
    let (side, path) = (dir.join(SIDE), dir.join(name));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(at("creating", dir))?;
    gone(fs::remove_file(&side)).map_err(at("removing", &side))?;
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&side)?;
        file.write_all(key.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&side, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(at("writing", &path))
}

fn at(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OverlayError {
    let path = path.to_owned();
    move |source| OverlayError::Key {
        attempt,
        path,
        source,
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
