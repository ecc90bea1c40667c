// SPDX-License-Identifier: Apache-2.0
//! The cluster DNS address on this node: a /32 (or /128) on `lo`, so that what is sent to it goes no
//! further. Which ones are ours is in a file that is written first, so that they are found and
//! removed whatever happened in between.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::cidr::Cidr;
use cni::link::{LinkError, Route};
use nix::errno::Errno;

const LINK: &str = "lo";

/// Why an address could not be had, or removed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The list of our addresses.
    #[error("the list of DNS addresses {path}")]
    List {
        /// Which file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// There is no such link.
    #[error("this network namespace has no link {LINK}")]
    NoLink,
    /// The kernel refused.
    #[error("the address of cluster DNS on {LINK}")]
    Kernel(#[source] LinkError),
}

fn listed(path: &Path) -> Result<Vec<IpAddr>, AddressError> {
    match fs::read_to_string(path) {
        // A line that is no address was not written by us to the end: it was never used.
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(AddressError::List {
            path: path.to_owned(),
            source,
        }),
    }
}

fn list(path: &Path, addresses: &[IpAddr]) -> Result<(), AddressError> {
    let failed = |source| AddressError::List {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let text: String = addresses.iter().map(|ip| format!("{ip}\n")).collect();
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

fn open() -> Result<(Route, u32), AddressError> {
    let mut route = Route::open().map_err(AddressError::Socket)?;
    let link = route.link(LINK).map_err(AddressError::Kernel)?;
    let index = link.ok_or(AddressError::NoLink)?.index;
    Ok((route, index))
}

/// One that is not there is removed already.
fn remove(route: &mut Route, index: u32, ip: IpAddr) -> Result<(), AddressError> {
    match route.delete_address(index, Cidr::host(ip)) {
        Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(()),
        done => done.map_err(AddressError::Kernel),
    }
}

/// Have these addresses, and none that an earlier run had. Idempotent. Blocks for a millisecond.
pub fn take(path: &Path, addresses: &[IpAddr]) -> Result<(), AddressError> {
    let before = listed(path)?;
    let (mut route, index) = open()?;
    let mut known = before.clone();
    known.extend(addresses.iter().filter(|ip| !before.contains(ip)));
    if known != before {
        list(path, &known)?;
    }
    for stale in before.iter().filter(|ip| !addresses.contains(ip)) {
        remove(&mut route, index, *stale)?;
    }
    repair(addresses)?;
    if known[..] != *addresses {
        list(path, addresses)?;
    }
    Ok(())
}

/// Put back what is missing. Says whether something was, and which addresses the node has.
pub fn repair(addresses: &[IpAddr]) -> Result<(bool, Vec<IpAddr>), AddressError> {
    let (mut route, index) = open()?;
    let there = route.addresses().map_err(AddressError::Kernel)?;
    let mut missing = false;
    for ip in addresses {
        if !there.contains(&(index, Cidr::host(*ip))) {
            missing = true;
            let added = route.add_host_address(index, *ip);
            added.map_err(AddressError::Kernel)?;
        }
    }
    Ok((
        missing,
        there.into_iter().map(|(_, cidr)| cidr.addr).collect(),
    ))
}

/// Remove every address that a run had. Idempotent.
pub fn release(path: &Path) -> Result<(), AddressError> {
    let addresses = listed(path)?;
    if !addresses.is_empty() {
        let (mut route, index) = open()?;
        for ip in addresses {
            remove(&mut route, index, ip)?;
        }
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AddressError::List {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
