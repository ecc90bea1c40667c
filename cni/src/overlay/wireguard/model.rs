// SPDX-License-Identifier: Apache-2.0
//! The words of the WireGuard back end: settings, keys, what the link has, and what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::key::PublicKey;
use crate::cidr::Cidr;

/// What the operator says about WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireGuard {
    /// Name of the link. At most 15 bytes.
    pub link: String,
    /// UDP port that this node listens on. Another node may have another one.
    pub port: u16,
    /// Folder for this node's private key, which nobody else may read.
    pub key_dir: PathBuf,
    /// Age at which a key is replaced; `None`: never.
    pub rotation: Option<Duration>,
}

impl WireGuard {
    /// The link's usual name.
    pub const LINK: &'static str = "pw-wg";
    /// The port of WireGuard's own examples, of flannel and of Calico.
    pub const PORT: u16 = 51820;
    /// A key's usual age at its end.
    pub const ROTATION: Duration = Duration::from_secs(24 * 60 * 60);

    /// What they are unless somebody says otherwise, with keys in this folder.
    pub fn usual(key_dir: impl Into<PathBuf>) -> WireGuard {
        WireGuard {
            link: WireGuard::LINK.into(),
            port: WireGuard::PORT,
            key_dir: key_dir.into(),
            rotation: Some(WireGuard::ROTATION),
        }
    }
}

/// This node's public keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKeys {
    /// The one in use.
    pub current: PublicKey,
    /// The one that will be, once the others have heard of it.
    pub next: Option<PublicKey>,
}

/// A WireGuard link as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenDevice {
    /// Its public key; `None` while it has none.
    pub key: Option<PublicKey>,
    /// UDP port that it listens on.
    pub port: u16,
    /// Mark of the packets that it sends; 0: none.
    pub mark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, SeenPeer>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenPeer {
    /// Where its packets go: what was set, or where it last sent from.
    pub endpoint: Option<SocketAddr>,
    /// What is sent to it and taken from it.
    pub allowed: BTreeSet<Cidr>,
    /// How long ago keys were last agreed on; `None`: never.
    pub handshake: Option<Duration>,
    /// Has somebody given it a preshared key or a keepalive?
    pub adorned: bool,
}

/// A peer to add or to change. What is not said stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Which.
    pub key: PublicKey,
    /// Where to send to from now on.
    pub endpoint: Option<SocketAddr>,
    /// All that is sent to it and taken from it from now on. It is taken from other peers.
    pub allowed: Option<BTreeSet<Cidr>>,
    /// Take preshared key and keepalive away.
    pub plain: bool,
}

impl fmt::Display for PeerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.key)?;
        if let Some(endpoint) = self.endpoint {
            write!(f, " is at {endpoint}")?;
        }
        if let Some(allowed) = &self.allowed {
            let list: Vec<String> = allowed.iter().map(Cidr::to_string).collect();
            let list = if list.is_empty() {
                "nothing yet".to_owned()
            } else {
                list.join(", ")
            };
            write!(f, " and has {list}")?;
        }
        if self.plain {
            f.write_str(" without preshared key and keepalive")?;
        }
        Ok(())
    }
}
