// SPDX-License-Identifier: Apache-2.0
//! Leases on disk.
//!
//! A lease is the file `<dataDir>/<network>/<address>` with the container id and the interface name
//! in it (`id\r\nifname`), the layout of the reference plugin. All changes happen under a lock on the
//! file `lock`, as its do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::index::Index;
use crate::types::{PluginError, code};

/// Others hold the lock for milliseconds.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// The leases of a network.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// One address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: IpAddr,
    pub(super) id: String,
    /// Empty in a lease of an old reference plugin: of any interface.
    pub(super) ifname: String,
}

impl Lease {
    fn is_of(&self, id: &str, ifname: &str) -> bool {
        lease_of(&self.id, &self.ifname, id, ifname)
    }
}

/// Puts `text` into a small file that is written all the time. What is there is not cut off before:
/// ext4 would wait until it has reached the disk, and write the new text out at once.
pub(super) fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.write_all_at(text.as_bytes(), 0)?;
    let length = u64::try_from(text.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() != length {
        file.set_len(length)?;
    }
    Ok(())
}

pub(super) fn io_error(what: &str, path: &Path, error: &io::Error) -> PluginError {
    PluginError::new(code::IO, format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
thread_local! {
    static READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many leases this thread has read.
#[cfg(test)]
pub(super) fn leases_read() -> usize {
    READ.get()
}

impl Store {
    pub(super) fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    pub(super) fn make(&self) -> Result<(), PluginError> {
        fs::create_dir_all(&self.dir).map_err(|e| io_error("creating", &self.dir, &e))
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    /// The lease of an address; nothing when there is none (any more).
    fn read(&self, address: IpAddr) -> Result<Option<Lease>, PluginError> {
        #[cfg(test)]
        READ.set(READ.get() + 1);
        let path = self.path(address);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| io_error("reading", &path, &e))?,
        };
        let (id, ifname) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
        Ok(Some(Lease {
            address,
            id: id.to_owned(),
            ifname: ifname.to_owned(),
        }))
    }

    /// All leases. Other files in the directory are none. Without the lock, what comes and goes
    /// meanwhile may be in it or not.
    fn all(&self) -> Result<Vec<Lease>, PluginError> {
        let failed = |e: io::Error| io_error("reading", &self.dir, &e);
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let address = name.to_str().and_then(|name| name.parse().ok());
            if let Some(address) = address {
                found.extend(self.read(address)?);
            }
        }
        Ok(found)
    }

    /// The addresses leased to attachments that `wanted` picks.
    pub(crate) fn addresses(
        &self,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<Vec<IpAddr>, PluginError> {
        let leases = self.all()?.into_iter();
        let picked = leases.filter(|lease| wanted(&lease.id, &lease.ifname));
        Ok(picked.map(|lease| lease.address).collect())
    }

    /// The addresses leased to an attachment. Looks at these only, as long as nobody else writes
    /// leases here.
    pub(crate) fn of(&self, id: &str, ifname: &str) -> Result<Vec<IpAddr>, PluginError> {
        let index = Index::open(&self.dir);
        if !index.is_whole() {
            return self.addresses(|i, n| lease_of(i, n, id, ifname));
        }
        let mut own = Vec::new();
        for address in index.find(id, ifname) {
            let lease = self.read(address)?;
            own.extend(lease.filter(|l| l.is_of(id, ifname)).map(|l| l.address));
        }
        Ok(own)
    }

    /// Those of `addresses` that nobody but this attachment has a lease of.
    pub(crate) fn without_others(
        &self,
        addresses: Vec<IpAddr>,
        id: &str,
        ifname: &str,
    ) -> Result<Vec<IpAddr>, PluginError> {
        let mut own = Vec::new();
        for address in addresses {
            let lease = self.read(address)?;
            if lease.is_none_or(|lease| lease.is_of(id, ifname)) {
                own.push(address);
            }
        }
        Ok(own)
    }

    /// Lock the leases, to change them. Makes the directory.
    pub(super) fn lock(&self) -> Result<Locked<'_>, PluginError> {
        let path = self.dir.join("lock");
        let failed = |e: io::Error| io_error("locking", &path, &e);
        self.make()?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    return Ok(Locked {
                        store: self,
                        index: Index::open(&self.dir),
                        _lock: lock,
                    });
                }
                Err((again, nix::Error::EAGAIN)) if Instant::now() < deadline => file = again,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.dir.exists()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn lease_of(lease_id: &str, lease_ifname: &str, id: &str, ifname: &str) -> bool {
    lease_id == id && (lease_ifname == ifname || lease_ifname.is_empty())
}

/// The leases of a network, which nobody else changes meanwhile.
pub(super) struct Locked<'a> {
    store: &'a Store,
    index: Index,
    _lock: Flock<File>,
}

impl Locked<'_> {
    /// The addresses that an attachment has. When somebody else has written leases here, all of them
    /// are read once more.
    pub(super) fn of(&mut self, id: &str, ifname: &str) -> Result<Vec<IpAddr>, PluginError> {
        if !self.index.is_whole() {
            self.index.rebuild(&self.store.all()?);
        }
        self.store.of(id, ifname)
    }

    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.store.path(address).exists()
    }

    /// The address that was handed out last from a set.
    pub(super) fn last(&self, set: usize) -> Option<IpAddr> {
        let text = fs::read_to_string(self.last_path(set)).ok()?;
        text.trim().parse().ok()
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.store.dir.join(format!("last_reserved_ip.{set}"))
    }

    /// Give an address out.
    pub(super) fn lease(&mut self, lease: &Lease, set: usize) -> Result<(), PluginError> {
        let path = self.store.path(lease.address);
        let failed = |e: io::Error| io_error("writing", &path, &e);
        // Whole or not at all: GC would take a lease that names nobody for one that leaked. The lock
        // keeps the name from being taken meanwhile.
        let unfinished = self.store.dir.join("unfinished");
        fs::write(&unfinished, format!("{}\r\n{}", lease.id, lease.ifname)).map_err(failed)?;
        fs::rename(&unfinished, &path).map_err(failed)?;
        // A hint only: when it is lost, the search begins at the start of the range.
        let _ = overwrite(&self.last_path(set), &lease.address.to_string());
        self.index.add(lease);
        Ok(())
    }

    /// Take addresses back that an attachment has; those of others are left alone.
    pub(super) fn release(
        &mut self,
        addresses: &[IpAddr],
        id: &str,
        ifname: &str,
    ) -> Result<(), PluginError> {
        for address in addresses {
            let lease = self.store.read(*address)?;
            if let Some(lease) = lease.filter(|lease| lease.is_of(id, ifname)) {
                self.remove(&lease)?;
            }
        }
        Ok(())
    }

    /// Take every lease back that `wanted` picks.
    pub(super) fn release_all(
        &mut self,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<(), PluginError> {
        let (stale, kept): (Vec<_>, Vec<_>) = self
            .store
            .all()?
            .into_iter()
            .partition(|lease| wanted(&lease.id, &lease.ifname));
        for lease in &stale {
            self.remove(lease)?;
        }
        self.index.rebuild(&kept);
        Ok(())
    }

    fn remove(&mut self, lease: &Lease) -> Result<(), PluginError> {
        let path = self.store.path(lease.address);
        fs::remove_file(&path).map_err(|e| io_error("removing", &path, &e))?;
        self.index.remove(&lease.id, &lease.ifname);
        Ok(())
    }
}

impl Drop for Locked<'_> {
    /// The index is whole again, as far as it was before; and after an error, too.
    fn drop(&mut self) {
        self.index.seal();
    }
}
