// SPDX-License-Identifier: Apache-2.0
//! Which addresses an attachment has, without reading every lease.
//!
//! The reference layout has a file for each address only, so the question "has this container a
//! lease?" costs as much as there are leases. Beside it, `.containers/<id>-<ifname>` has the
//! addresses of one attachment. It is a hint: what it says is looked up in the lease. It is whole as
//! long as nobody else has changed the directory of leases; that is told by the directory's time of
//! change, which `.containers/.whole` has. The reference plugin reads these files too when it looks
//! for a container, and finds that they are no leases.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::store::{Lease, overwrite};

/// Below the directory of leases, so that writing here does not change that one's time.
const DIR: &str = ".containers";
const STAMP: &str = ".whole";

#[derive(Debug)]
pub(super) struct Index {
    leases: PathBuf,
    dir: PathBuf,
    whole: bool,
}

impl Index {
    pub(super) fn open(leases: &Path) -> Index {
        let dir = leases.join(DIR);
        let stamp = fs::read_to_string(dir.join(STAMP)).ok();
        Index {
            whole: stamp.is_some() && stamp == time_of(leases),
            leases: leases.to_owned(),
            dir,
        }
    }

    /// Does it know all leases?
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    fn path(&self, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{id}-{ifname}"))
    }

    /// Addresses that the attachment may have.
    pub(super) fn find(&self, id: &str, ifname: &str) -> Vec<IpAddr> {
        let mut found = Vec::new();
        // The second is of a lease that names no interface.
        for path in [self.path(id, ifname), self.path(id, "")] {
            let text = fs::read_to_string(path).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<IpAddr>().ok()));
        }
        found
    }

    pub(super) fn add(&mut self, lease: &Lease) {
        if self.whole {
            self.whole = self.append(lease).is_ok();
        }
    }

    fn append(&self, lease: &Lease) -> std::io::Result<()> {
        let path = self.path(&lease.id, &lease.ifname);
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&format!("{}\n", lease.address));
        fs::write(path, text)
    }

    /// One lease of the attachment is gone; the others, if any, are looked for in vain at worst, so
    /// its file goes with the last.
    pub(super) fn remove(&mut self, id: &str, ifname: &str) {
        let others = self.find(id, ifname);
        if !others
            .iter()
            .any(|a| self.leases.join(a.to_string()).exists())
        {
            // What stays names addresses that have no lease, or another one.
            let _ = fs::remove_file(self.path(id, ifname));
        }
    }

    /// Begin anew with these leases.
    pub(super) fn rebuild(&mut self, leases: &[Lease]) {
        let _ = fs::remove_dir_all(&self.dir);
        let made = fs::create_dir_all(&self.dir);
        self.whole = made
            .and_then(|()| leases.iter().try_for_each(|lease| self.append(lease)))
            .is_ok();
        self.seal();
    }

    /// Note that the leases are known as they are now.
    pub(super) fn seal(&mut self) {
        let stamp = self.dir.join(STAMP);
        let sealed = match time_of(&self.leases).filter(|_| self.whole) {
            Some(time) => overwrite(&stamp, &time),
            None => Err(std::io::Error::other("not whole")),
        };
        if sealed.is_err() {
            // An old stamp does not fit the directory's time, unless nothing was changed.
            let _ = fs::remove_file(stamp);
        }
    }
}

fn time_of(dir: &Path) -> Option<String> {
    let found = fs::metadata(dir).ok()?;
    Some(format!("{}.{:09}", found.mtime(), found.mtime_nsec()))
}
