// SPDX-License-Identifier: Apache-2.0
//! WireGuard links over generic netlink (`linux/wireguard.h`).
//!
//! Attributes are written and read by the crate netlink-bindings, as those of nf_tables are. The
//! kernel tells a link's private key with the rest, so what is received is overwritten.

use std::io;
use std::time::{Duration, SystemTime};

use netlink_bindings::{nlctrl, wireguard};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use nix::sys::socket::SockProtocol;
use zeroize::Zeroizing;

use super::key::{LENGTH, PrivateKey, PublicKey};
use super::model::{PeerSpec, SeenDevice, SeenPeer};
use crate::cidr::Cidr;
use crate::link::LinkError;
use crate::netlink::{NetlinkError, Socket};

const FAMILY: &str = "wireguard";
/// `GENL_ID_CTRL`, the family that knows the others.
const CONTROLLER: u16 = 0x10;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
/// Room for a request without peers, so that it never grows and leaves a copy behind.
const SHORT: usize = 4096;
/// Peers of one message. Their list is an attribute, whose length has 16 bits; a peer with four
/// ranges takes 300 bytes.
pub(super) const PEERS_PER_MESSAGE: usize = 100;

/// A generic netlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Control {
    socket: Socket,
    family: u16,
}

/// A change of one peer.
pub(super) enum PeerChange<'a> {
    Set(&'a PeerSpec),
    Delete(PublicKey),
}

impl Control {
    /// Open a socket. The kernel knows the family once the module is there, which the first link of
    /// that kind loads.
    pub(super) fn open() -> Result<Control, LinkError> {
        let attempt = || "opening a socket to WireGuard".to_owned();
        let failed = |source| LinkError::new(attempt(), NetlinkError::Socket(source));
        let mut socket = Socket::open(SockProtocol::NetlinkGeneric).map_err(failed)?;
        socket.overwrite_received();
        let mut control = Control {
            socket,
            family: CONTROLLER,
        };
        let answers = control.request(attempt, 0, |message| {
            nlctrl::OpGetfamilyDo::encode_request(message)
                .push_family_name_bytes(FAMILY.as_bytes());
        })?;
        let found = answers.iter().find_map(|payload| {
            let attributes = nlctrl::OpGetfamilyDo::decode_request(payload);
            attributes.get_family_id().ok()
        });
        control.family = found.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok(control)
    }

    /// All about a link; `None` if there is none of this index any more, or it is another kind.
    pub(super) fn device(&mut self, link: u32) -> Result<Option<SeenDevice>, LinkError> {
        let attempt = || format!("looking at WireGuard link {link}");
        let asked = self.request(attempt, NLM_F_DUMP, |message| {
            wireguard::OpGetDeviceDump::encode_request(message).push_ifindex(link);
        });
        match asked {
            Ok(answers) => {
                let mut seen = SeenDevice::default();
                answers.iter().for_each(|payload| read(payload, &mut seen));
                Ok(Some(seen))
            }
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Give a link its key. Peers stay, and agree on new session keys with their next packet.
    pub(super) fn set_key(&mut self, link: u32, key: &PrivateKey) -> Result<(), LinkError> {
        let attempt = || format!("setting the key of WireGuard link {link}");
        self.set(attempt, |message| {
            wireguard::OpSetDeviceDo::encode_request(message)
                .push_ifindex(link)
                .push_private_key(key.bytes());
        })
    }

    /// Listen on this port, and send without a mark.
    pub(super) fn set_socket(&mut self, link: u32, port: u16) -> Result<(), LinkError> {
        let attempt = || format!("setting the port of WireGuard link {link} to {port}");
        self.set(attempt, |message| {
            wireguard::OpSetDeviceDo::encode_request(message)
                .push_ifindex(link)
                .push_listen_port(port)
                .push_fwmark(0);
        })
    }

    /// Change peers, at most [`PEERS_PER_MESSAGE`] of them, in this order and in one request.
    pub(super) fn change(
        &mut self,
        link: u32,
        changes: &[PeerChange<'_>],
    ) -> Result<(), LinkError> {
        let attempt = || format!("changing peers of WireGuard link {link}");
        self.set(attempt, |message| {
            let device = wireguard::OpSetDeviceDo::encode_request(message).push_ifindex(link);
            let mut list = device.array_peers();
            for change in changes {
                let peer = list.entry_nested();
                list = match change {
                    PeerChange::Set(spec) => push(peer, spec).end_nested(),
                    PeerChange::Delete(key) => peer
                        .push_public_key(&key.0)
                        .push_flags(WGPEER_F_REMOVE_ME)
                        .end_nested(),
                };
            }
        })
    }

    fn set(
        &mut self,
        attempt: impl Fn() -> String,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), LinkError> {
        self.request(attempt, 0, payload).map(drop)
    }

    /// One request, and the payloads of its answers.
    fn request(
        &mut self,
        attempt: impl Fn() -> String,
        flags: u16,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<Zeroizing<Vec<u8>>>, LinkError> {
        let ack = if flags == 0 { NLM_F_ACK } else { 0 };
        let seq = self.socket.take_seqs(1);
        let mut message = Zeroizing::new(Vec::with_capacity(SHORT));
        message.extend([0; 4]);
        message.extend(self.family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags | ack).to_ne_bytes());
        message.extend(seq.to_ne_bytes());
        message.extend([0; 4]);
        payload(&mut message);
        let length = u32::try_from(message.len()).expect("peers are counted");
        message[..4].copy_from_slice(&length.to_ne_bytes());
        let answers = self.socket.exchange(&message, seq, seq);
        let answers = answers.map_err(|source| LinkError::new(attempt(), source))?;
        Ok(answers
            .into_iter()
            .map(|(_, payload)| Zeroizing::new(payload))
            .collect())
    }
}

fn push<Prev: netlink_bindings::utils::Pusher>(
    peer: wireguard::PushWgpeer<Prev>,
    spec: &PeerSpec,
) -> wireguard::PushWgpeer<Prev> {
    let replace = spec.allowed.is_some();
    let flags = if replace {
        WGPEER_F_REPLACE_ALLOWEDIPS
    } else {
        0
    };
    let mut peer = peer.push_public_key(&spec.key.0).push_flags(flags);
    if let Some(endpoint) = spec.endpoint {
        peer = peer.push_endpoint(endpoint);
    }
    if spec.plain {
        peer = peer
            .push_preshared_key(&[0; LENGTH])
            .push_persistent_keepalive_interval(0);
    }
    let Some(allowed) = &spec.allowed else {
        return peer;
    };
    let mut list = peer.array_allowedips();
    for cidr in allowed {
        let family = if cidr.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        list = list
            .entry_nested()
            .push_family(u16::try_from(family).expect("a small number"))
            .push_ipaddr(cidr.addr)
            .push_cidr_mask(cidr.prefix)
            .end_nested();
    }
    list.end_array()
}

/// A part of a link's description: what does not fit into one message is continued in the next.
fn read(payload: &[u8], seen: &mut SeenDevice) {
    use wireguard::Wgdevice::{Fwmark, ListenPort, Peers, PublicKey as Key};
    for attribute in wireguard::OpGetDeviceDump::decode_request(payload).flatten() {
        match attribute {
            Key(bytes) => seen.key = public(bytes),
            ListenPort(port) => seen.port = port,
            Fwmark(mark) => seen.mark = mark,
            Peers(peers) => {
                for peer in peers.flatten() {
                    read_peer(peer, seen);
                }
            }
            _ => {}
        }
    }
}

fn read_peer(peer: wireguard::IterableWgpeer<'_>, seen: &mut SeenDevice) {
    use wireguard::Wgpeer::{
        Allowedips, Endpoint, LastHandshakeTime, PersistentKeepaliveInterval, PresharedKey,
    };
    let Some(key) = peer.get_public_key().ok().and_then(public) else {
        return;
    };
    let into: &mut SeenPeer = seen.peers.entry(key).or_default();
    for attribute in peer.flatten() {
        match attribute {
            Endpoint(endpoint) => into.endpoint = Some(endpoint),
            PresharedKey(bytes) => into.adorned |= bytes.iter().any(|byte| *byte != 0),
            PersistentKeepaliveInterval(seconds) => into.adorned |= seconds != 0,
            LastHandshakeTime(time) => into.handshake = ago(time.sec),
            Allowedips(list) => into.allowed.extend(list.flatten().filter_map(|entry| {
                let (address, prefix) = (entry.get_ipaddr().ok()?, entry.get_cidr_mask().ok()?);
                Cidr::new(address, prefix)
            })),
            _ => {}
        }
    }
}

/// How long ago a time of the wall clock was; 0 is never.
fn ago(seconds: u64) -> Option<Duration> {
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    // Somebody has set the clock back since.
    let ago = SystemTime::now().duration_since(then).unwrap_or_default();
    (seconds != 0).then_some(ago)
}

fn public(bytes: &[u8]) -> Option<PublicKey> {
    let key: [u8; LENGTH] = bytes.try_into().ok()?;
    (key != [0; LENGTH]).then_some(PublicKey(key))
}
