// SPDX-License-Identifier: Apache-2.0
//! Sockets that are kept for the next transaction.
//!
//! What a transaction deletes, the kernel frees after an RCU grace period, and closing a socket
//! waits for that: 5 to 20 ms after each pod that goes. A socket that stays open waits for nothing.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use super::Socket;

/// Sockets that are kept at most: as many as plugins that run side by side for long.
const KEPT: usize = 4;

/// Device and inode of a network namespace. Its sockets keep it alive, so nothing else gets them.
type Namespace = (u64, u64);

static IDLE: Mutex<Vec<(Namespace, Socket)>> = Mutex::new(Vec::new());

/// Addresses of the sockets that there are, and of those that were closed last.
static OWN: Mutex<Own> = Mutex::new(Own {
    open: BTreeSet::new(),
    closed: VecDeque::new(),
});

/// How many of the latter. Who hears of a change may hear of it after its socket is gone.
const REMEMBERED: usize = 64;

#[derive(Debug)]
struct Own {
    open: BTreeSet<u32>,
    closed: VecDeque<u32>,
}

impl Own {
    fn close(&mut self, port: u32) {
        if self.open.remove(&port) {
            self.closed.push_back(port);
            let many = self.closed.len().saturating_sub(REMEMBERED);
            self.closed.drain(..many);
        }
    }

    fn has(&self, port: u32) -> bool {
        self.open.contains(&port) || self.closed.contains(&port)
    }
}

/// Is this the address of one of these sockets, or was it until just now?
pub(crate) fn is_own(port: u32) -> bool {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).has(port)
}

/// A socket in the network namespace of this thread; kept when it is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    namespace: Namespace,
    /// Nothing only while it is dropped.
    socket: Option<Socket>,
}

impl Kept {
    /// One that is kept already, or a new one.
    pub(crate) fn take() -> io::Result<Kept> {
        let here = std::fs::metadata("/proc/thread-self/ns/net")?;
        let namespace = (here.dev(), here.ino());
        let kept = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            let found = idle.iter().position(|(of, _)| *of == namespace);
            found.map(|at| idle.swap_remove(at).1)
        };
        let socket = match kept {
            Some(socket) => socket,
            None => {
                let socket = Socket::open()?;
                let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
                own.open.insert(socket.port()?);
                socket
            }
        };
        Ok(Kept {
            namespace,
            socket: Some(socket),
        })
    }
}

impl Deref for Kept {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.socket.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut Socket {
        self.socket.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest goes, so that no namespace is kept by the one process that used it once.
        let oldest = (idle.len() >= KEPT).then(|| idle.remove(0));
        idle.push((self.namespace, socket));
        drop(idle);
        if let Some(port) = oldest.as_ref().and_then(|(_, socket)| socket.port().ok()) {
            OWN.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .close(port);
        }
        drop(oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_closed_socket_did_is_still_known() {
        let mut own = Own {
            open: (1..=100).collect(),
            closed: VecDeque::new(),
        };
        own.close(1);
        own.close(1);
        assert!(own.has(1) && own.has(2) && !own.has(101));
        (2..=100).for_each(|port| own.close(port));
        assert_eq!(own.closed.len(), REMEMBERED);
        assert!(own.has(100) && !own.has(1), "others may have old numbers");
    }

    #[test]
    fn a_socket_serves_again_in_its_namespace_only() {
        let take = || Kept::take().expect("a socket");
        let first = take();
        let namespace = first.namespace;
        drop(first);
        let kept = |of: Namespace| {
            let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().filter(|(n, _)| *n == of).count()
        };
        assert_eq!(kept(namespace), 1);
        let (a, b) = (take(), take());
        assert_eq!(kept(namespace), 0, "taken, not shared");
        drop((a, b));
        assert_eq!(kept(namespace), 2);
        drop((0..2 * KEPT).map(|_| take()).collect::<Vec<_>>());
        assert_eq!(kept(namespace), KEPT, "and no more than that");
    }
}
