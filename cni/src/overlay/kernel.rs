// SPDX-License-Identifier: Apache-2.0
//! Looks at the kernel and carries out steps, over rtnetlink, nftables and WireGuard's generic netlink.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::act::{delete_route, is_done, perform, quiet, words};
use super::look::{look, named, own_routes, uplink};
use super::model::{Backend, Own, Peer, Problem, Seen, SeenLink, Settings, Step};
use super::wireguard::{self, Tunnel};
use super::{Announcement, decide, mtu, untracked};
use crate::chain;
use crate::link::{LinkError, Route};
use crate::nft::{self, NftError};

/// How often steps are decided anew within one call: make the link, fill it, see that it is done.
const ROUNDS: usize = 4;

/// Why the overlay could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel did not say what it has, or did not let go of it.
    #[error("the network between nodes")]
    Link(#[from] LinkError),
    /// The same of the rules for encapsulated packets.
    #[error("the rules for packets between nodes")]
    Rules(#[from] NftError),
    /// The kernel makes no WireGuard link.
    #[error(
        "the kernel has no WireGuard: modprobe wireguard, or use a kernel with CONFIG_WIREGUARD, or another --network-backend"
    )]
    NoWireGuard,
    /// No namespace to try something in.
    #[error("making a network namespace")]
    Namespace(#[source] io::Error),
    /// No key can be made.
    #[error("reading the system's randomness for a WireGuard key")]
    Random(#[source] io::Error),
    /// This node's WireGuard key could not be read or kept.
    #[error("{attempt} {}", path.display())]
    Key {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What one call of [`Kernel::sync`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The steps that were carried out, in words.
    pub done: Vec<String>,
    /// What keeps pods from reaching each other.
    pub problems: Vec<Problem>,
}

/// The overlay of one network namespace: that of the thread which opened it.
#[derive(Debug)]
pub struct Kernel {
    settings: Settings,
    route: Route,
    rules: nft::Socket,
    /// With WireGuard.
    tunnel: Option<Tunnel>,
}

impl Kernel {
    /// Open its sockets. Changes nothing yet in the kernel. With WireGuard this node's key is read, or
    /// made if there is none; without it, keys that were left behind are removed.
    pub fn open(settings: Settings) -> Result<Kernel, OverlayError> {
        let route = Route::open_filtering().map_err(OverlayError::Socket)?;
        let rules = nft::Socket::open().map_err(OverlayError::Socket)?;
        let tunnel = if settings.backend == Backend::WireGuard {
            Some(Tunnel::open(&settings.wireguard)?)
        } else {
            wireguard::remove_keys(&settings.wireguard.key_dir)?;
            None
        };
        Ok(Kernel {
            settings,
            route,
            rules,
            tunnel,
        })
    }

    /// What this node has to say about itself; `None` when it takes no part.
    pub fn announcement(&self, own: &Own) -> Option<Announcement> {
        Announcement::of(&self.settings, &self.with_keys(own))
    }

    /// Go on towards another WireGuard key, if it is time for that. `announced`: the others can know
    /// what [`Kernel::announcement`] says now. Call it before each [`Kernel::sync`]. Returns what was
    /// done, in words. Blocks for microseconds as a rule, and for some milliseconds to make a key.
    ///
    /// # Errors
    /// When a key cannot be made or kept. The old one stays in use.
    pub fn rotate(&mut self, announced: bool) -> Result<Option<String>, OverlayError> {
        match &mut self.tunnel {
            Some(tunnel) => tunnel.rotate(announced),
            None => Ok(None),
        }
    }

    fn with_keys(&self, own: &Own) -> Own {
        Own {
            keys: self.tunnel.as_ref().map(Tunnel::public_keys),
            ..own.clone()
        }
    }

    /// Make it so: look, decide, act, until nothing is left to do. Blocks for less than a
    /// millisecond when there is nothing to do, and some 20 µs for each step. A step that fails is a
    /// problem and not an error; the next call tries it again.
    ///
    /// # Errors
    /// When the kernel does not say what it has.
    pub fn sync(&mut self, own: &Own, peers: &[Peer]) -> Result<Report, OverlayError> {
        let mut report = Report::default();
        let mut failed = Vec::new();
        let own = &self.with_keys(own);
        for _ in 0..ROUNDS {
            let seen = self.look(own)?;
            let decision = decide(&self.settings, own, peers, &seen);
            if let Some(tunnel) = &mut self.tunnel {
                tunnel.told = decision.told;
            }
            report.problems = decision.problems;
            let steps = decision.steps.into_iter();
            let steps: Vec<Step> = steps.filter(|step| !tried(&failed, step)).collect();
            if steps.is_empty() {
                break;
            }
            let mut rest = &steps[..];
            while !rest.is_empty() {
                rest = self.act(rest, &mut report.done, &mut failed);
            }
        }
        let failures = failed
            .into_iter()
            .map(|(_, text)| Problem { peer: None, text });
        report.problems.extend(failures);
        Ok(report)
    }
}

impl Kernel {
    fn look(&mut self, own: &Own) -> Result<Seen, OverlayError> {
        let mut seen = look(&mut self.route, &self.settings, own)?;
        seen.untracked = untracked::look(&mut self.rules, &self.settings)?;
        if let Some(tunnel) = &mut self.tunnel {
            seen.told.clone_from(&tunnel.told);
            let is_one = |link: &&SeenLink| link.kind == super::decide::WIREGUARD;
            if let Some(link) = seen.wireguard.as_ref().filter(is_one) {
                seen.device = tunnel.look(link.index)?;
            }
        }
        Ok(seen)
    }

    /// Carry out the first step, or as many as go in one request, and return the others. What is
    /// refused together is tried one by one, to know which it is.
    fn act<'a>(
        &mut self,
        steps: &'a [Step],
        done: &mut Vec<String>,
        failed: &mut Vec<(Step, String)>,
    ) -> &'a [Step] {
        let together = match &self.tunnel {
            Some(_) => Tunnel::takes(steps),
            None => 0,
        };
        let (now, rest) = steps.split_at(together.max(1));
        if together > 1 && self.perform(now).is_ok() {
            done.extend(now.iter().map(Step::to_string));
            return rest;
        }
        for step in now {
            match self.perform(std::slice::from_ref(step)) {
                Ok(()) => done.push(step.to_string()),
                Err(text) => {
                    if let (Step::SetPeer(_, spec), Some(tunnel)) = (step, &mut self.tunnel) {
                        tunnel.told.remove(&spec.key);
                    }
                    failed.push((step.clone(), text));
                }
            }
        }
        rest
    }

    fn perform(&mut self, steps: &[Step]) -> Result<(), String> {
        let step = &steps[0];
        if let Step::SetUntracked(port) = step {
            return untracked::set(&mut self.rules, &self.settings, *port)
                .map_err(|error| chain(&error));
        }
        let acted = match &mut self.tunnel {
            Some(tunnel) if Tunnel::takes(steps) > 0 => tunnel.act(steps),
            _ => perform(&mut self.route, step),
        };
        match acted {
            Err(error) if is_done(step, error.errno()) => {}
            Err(error) => return Err(words(&self.settings, step, &error)),
            Ok(()) => {}
        }
        match step {
            Step::AddVxlan(spec) => quiet(&spec.name),
            Step::AddWireGuard(name, _) => quiet(name),
            _ => Ok(()),
        }
    }
}

fn tried(failed: &[(Step, String)], step: &Step) -> bool {
    failed.iter().any(|(other, _)| other == step)
}

/// The largest packet of this node's pods, by what the link with this node's address takes. `None`
/// without a back end, or when no link has the address.
pub fn pod_mtu(backend: Backend, outer: IpAddr) -> Result<Option<u32>, OverlayError> {
    if backend == Backend::None {
        return Ok(None);
    }
    let mut route = Route::open_filtering().map_err(OverlayError::Socket)?;
    let addresses = route.addresses()?;
    let uplink = uplink(&mut route, &addresses, outer)?;
    Ok(uplink.map(|link| mtu::inner(backend, link.mtu, outer.is_ipv4())))
}

/// Can this kernel do what a back end needs? Blocks for some milliseconds; leaves nothing.
///
/// # Errors
/// What it lacks, and what to do.
pub fn supported(backend: Backend) -> Result<(), OverlayError> {
    match backend {
        Backend::WireGuard => wireguard::try_out(),
        // What VXLAN lacks is said when its link is made.
        Backend::Vxlan | Backend::HostGw | Backend::None => Ok(()),
    }
}

/// Remove the links, the rules and every route of ours from the network namespace of the calling thread, and this
/// node's keys. Idempotent. Blocks for some milliseconds.
pub fn cleanup(settings: &Settings) -> Result<(), OverlayError> {
    let mut route = Route::open_filtering().map_err(OverlayError::Socket)?;
    for path in own_routes(&mut route)? {
        delete_route(&mut route, &path)?;
    }
    for (name, kind) in [
        (&settings.link, super::decide::VXLAN),
        (&settings.wireguard.link, super::decide::WIREGUARD),
    ] {
        if let Some(link) = named(&mut route, name)?.filter(|link| link.kind == kind) {
            route.delete(link.index)?;
        }
    }
    let mut rules = nft::Socket::open().map_err(OverlayError::Socket)?;
    untracked::set(&mut rules, settings, None)?;
    wireguard::remove_keys(&settings.wireguard.key_dir)
}
