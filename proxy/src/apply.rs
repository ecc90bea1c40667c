// SPDX-License-Identifier: Apache-2.0
//! Steps into the kernel: the nftables transaction, then the flows that must be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use cni::conntrack::{self, ConntrackError, Flow};
use cni::nft::{NftError, Socket};

use crate::service::{Backend, Frontend, Target};
use crate::state::{State, Step};

/// Why a step was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No socket.
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused the rules; nothing changed.
    #[error("applying the rules of Services")]
    Rules(#[source] NftError),
    /// The rules are in place, but old UDP flows may go on to endpoints that are gone.
    #[error("forgetting UDP flows")]
    Flows(#[source] ConntrackError),
}

/// The way into the kernel. It keeps its socket: closing one waits for the kernel to free what was
/// deleted over it, an RCU grace period of about 20 ms.
#[derive(Debug, Default)]
pub struct Kernel {
    socket: Option<Socket>,
}

impl Kernel {
    /// Apply a step, in the network namespace of the thread that does so first. Blocks, for
    /// microseconds when little changed.
    pub fn apply(&mut self, step: &Step, state: &State) -> Result<(), ApplyError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(Socket::open().map_err(ApplyError::Open)?),
        };
        let applied = socket.apply(&step.transaction).map_err(ApplyError::Rules);
        if applied.is_err() {
            self.socket = None; // whatever is wrong with it, a new one is not
        }
        applied?;
        forget(&step.udp, state)
    }
}

/// A UDP flow stays with its first endpoint for as long as packets come. So forget every flow of
/// these frontends that goes somewhere the frontend does not lead to (any more).
fn forget(frontends: &BTreeSet<Frontend>, state: &State) -> Result<(), ApplyError> {
    if frontends.is_empty() {
        return Ok(());
    }
    let backends = |frontend: &Frontend| match state.backends(frontend) {
        Some(Target::Backends(backends, _)) => backends.clone(),
        _ => Vec::new(),
    };
    let valid: BTreeMap<Frontend, Vec<Backend>> =
        frontends.iter().map(|f| (*f, backends(f))).collect();
    let astray = |flow: &Flow| {
        if flow.original.protocol != conntrack::UDP {
            return false;
        }
        let asked = Frontend {
            addr: flow.original.dst,
            protocol: crate::service::Protocol::Udp,
            port: flow.original.dport,
        };
        let answers = Backend {
            addr: flow.reply.src,
            port: flow.reply.sport,
        };
        valid
            .get(&asked)
            .is_some_and(|backends| !backends.contains(&answers))
    };
    conntrack::delete(astray)
        .map(drop)
        .map_err(ApplyError::Flows)
}
