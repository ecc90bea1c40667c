// SPDX-License-Identifier: Apache-2.0
//! Whom to ask for names that are not the cluster's: the servers of the node's resolv.conf, which is
//! read again when it has changed (resolv.conf(5)).

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As CoreDNS's forward plugin takes; the C library asks the first three.
const SERVERS_MAX: usize = 15;
/// The file is looked at no more often than this.
const LOOK: Duration = Duration::from_secs(1);
/// A file that is longer is no resolv.conf.
const FILE_MAX: u64 = 1 << 20;

/// The servers that a resolv.conf names.
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in named.filter_map(address) {
        if !servers.contains(&server) && servers.len() < SERVERS_MAX {
            servers.push(server);
        }
    }
    servers
}

/// An address, which may name the link that it is on: `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((ip, link)) = text.split_once('%') else {
        return Some((text.parse::<IpAddr>().ok()?, 53).into());
    };
    let index = link.parse().ok();
    let index = index.or_else(|| nix::net::if_::if_nametoindex(link).ok())?;
    Some(SocketAddrV6::new(ip.parse().ok()?, 53, 0, index).into())
}

/// What tells a file from what it was.
type Stamp = (u64, i64, i64, u64);

/// The servers as the file has them now.
#[derive(Debug)]
pub struct Upstreams {
    path: PathBuf,
    /// Addresses that we serve ourselves.
    own: Vec<IpAddr>,
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    servers: Arc<[SocketAddr]>,
}

impl Upstreams {
    /// Of a file; `own` are never asked.
    pub fn new(path: PathBuf, own: Vec<IpAddr>) -> Upstreams {
        Upstreams {
            path,
            own,
            looked: None,
            stamp: None,
            servers: Arc::default(),
        }
    }

    /// The servers, in their order.
    pub fn servers(&self) -> Arc<[SocketAddr]> {
        self.servers.clone()
    }

    /// Look at the file, if it is time to. Are there other servers than before?
    pub fn refresh(&mut self, now: Instant) -> bool {
        if self
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < LOOK)
        {
            return false;
        }
        let first = self.looked.replace(now).is_none();
        let stamp = fs::metadata(&self.path)
            .ok()
            .filter(|file| file.len() <= FILE_MAX)
            .map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.len()));
        if stamp == self.stamp && !first {
            return false;
        }
        self.stamp = stamp;
        let text = stamp.and_then(|_| fs::read_to_string(&self.path).ok());
        let mut found = servers(&text.unwrap_or_default());
        found.retain(|server| {
            let own = self.own.contains(&server.ip());
            if own {
                tracing::warn!(
                    file = %self.path.display(),
                    %server,
                    "this is the cluster's own DNS server, which is not asked for other names"
                );
            }
            !own
        });
        if found[..] == self.servers[..] && !first {
            return false;
        }
        if found.is_empty() {
            let file = self.path.display();
            tracing::warn!(%file, "no server for names outside the cluster; add a nameserver line");
        }
        self.servers = found.into();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 1.1.1.1\nnameserver 9.9.9.9 extra\n  nameserver\t2001:db8::1\n\
                    nameserver 9.9.9.9\nnameserver nonsense\nnameserver\nsearch a b\noptions x\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%nolink\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["9.9.9.9:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        let many: String = (0..99)
            .map(|n| format!("nameserver 10.0.0.{n}\n"))
            .collect();
        assert_eq!(servers(&many).len(), SERVERS_MAX);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        let own = IpAddr::from([10, 43, 0, 10]);
        let mut upstreams = Upstreams::new(path.clone(), vec![own]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(upstreams.refresh(at(0)));
        assert!(upstreams.servers().is_empty());
        fs::write(&path, "nameserver 10.43.0.10\nnameserver 192.0.2.1\n").expect("write");
        assert!(!upstreams.refresh(at(0)), "not yet");
        assert!(upstreams.refresh(at(2)));
        assert_eq!(
            upstreams.servers()[..],
            [SocketAddr::from(([192, 0, 2, 1], 53))]
        );
        assert!(!upstreams.refresh(at(4)));
        // The same servers said otherwise are no change.
        fs::write(&path, "nameserver 192.0.2.1\n").expect("write");
        assert!(!upstreams.refresh(at(6)));
        fs::remove_file(&path).expect("remove");
        assert!(upstreams.refresh(at(8)));
        assert!(upstreams.servers().is_empty());
    }
}
