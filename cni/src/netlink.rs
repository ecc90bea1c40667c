// SPDX-License-Identifier: Apache-2.0
//! A blocking netlink socket: send a batch of requests, read the answers, find the one that failed.
//!
//! A request to rtnetlink or nf_tables is answered by the kernel within the system call that sends
//! it, so a thread blocks for microseconds here. That is why the socket is a plain one, without an
//! executor: the same code serves the daemon's threads, threads inside a pod's namespace, and the
//! plugin executables. A receive deadline guards against a kernel that does not answer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use zeroize::Zeroize;

const HEADER: usize = 16;
const NLM_F_MULTI: u16 = 2;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Longer than any answer can take that comes at all.
const RECEIVE_DEADLINE_SECS: i64 = 10;
/// A batch is one datagram; a full resync of 10,000 Services is about 4 MiB.
const BUFFER_BYTES: usize = 64 << 20;
const RECEIVE_BYTES: usize = 256 << 10;

/// One netlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    next_seq: u32,
    /// What is received holds secrets.
    overwrite: bool,
}

/// Why a batch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused one request of the batch.
    #[error("{}", if hint.is_empty() { "the kernel refused" } else { hint })]
    Refused {
        /// Which request, counted from 0.
        index: usize,
        source: io::Error,
        /// The kernel's own words, often empty.
        hint: String,
    },
}

impl NetlinkError {
    /// The errno of a refusal.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Socket(_) => None,
        }
    }
}

impl Socket {
    /// A socket of family `NETLINK_ROUTE` or `NETLINK_NETFILTER`.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Both are optional niceties: words with an error, and errors without a copy of the request.
        let _ = crate::sys::set_netlink_option(fd.as_fd(), libc::NETLINK_EXT_ACK, 1);
        let _ = crate::sys::set_netlink_option(fd.as_fd(), libc::NETLINK_CAP_ACK, 1);
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(RECEIVE_DEADLINE_SECS, 0),
        )?;
        Ok(Socket {
            fd,
            next_seq: 1,
            overwrite: false,
        })
    }

    /// The address that the kernel gave it.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let address: NetlinkAddr = getsockname(self.fd.as_raw_fd())?;
        Ok(address.pid())
    }

    /// Hear what is told to a multicast group from now on ([`Socket::hear`]).
    pub(crate) fn join(&self, group: libc::c_int) -> io::Result<()> {
        let option = libc::NETLINK_ADD_MEMBERSHIP;
        crate::sys::set_netlink_option(self.fd.as_fd(), option, group)
    }

    /// Messages of the groups that were joined, by type and payload: blocks until there are some, at
    /// most for `wait`, and then returns none.
    pub(crate) fn hear(&self, wait: Duration) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let heard = self.hear_whom(wait)?.into_iter();
        Ok(heard.map(|heard| (heard.kind, heard.payload)).collect())
    }

    /// [`Socket::hear`], with who has caused each message.
    pub(crate) fn hear_whom(&self, wait: Duration) -> io::Result<Vec<Heard>> {
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let mut readable = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut readable, wait) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(Vec::new()),
            other => other?,
        };
        let mut buffer = vec![0_u8; RECEIVE_BYTES];
        let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let heard = messages(&buffer[..length]).map(|message| Heard {
            kind: message.kind,
            sender: message.sender,
            payload: message.payload.to_vec(),
        });
        Ok(heard.collect())
    }

    /// Have the kernel read the header and attributes of a dump request as filters (Linux 4.20).
    pub(crate) fn filter_dumps(&self) -> io::Result<()> {
        const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
        crate::sys::set_netlink_option(self.fd.as_fd(), NETLINK_GET_STRICT_CHK, 1)
    }

    /// Let one batch be as long as it takes. Needs CAP_NET_ADMIN in the initial user namespace to
    /// pass the limits of `net.core`; without it the limits hold, and a longer batch is an error.
    pub(crate) fn enlarge_buffers(&self) {
        if setsockopt(&self.fd, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &BUFFER_BYTES);
        }
        if setsockopt(&self.fd, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            let _ = setsockopt(&self.fd, sockopt::RcvBuf, &BUFFER_BYTES);
        }
    }

    /// Leave nothing of what is received in memory, but for what is returned.
    pub(crate) fn overwrite_received(&mut self) {
        self.overwrite = true;
    }

    /// Sequence number for the first message of a batch of `count`.
    pub(crate) fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.next_seq;
        let count = u32::try_from(count).expect("a batch has fewer than 2^32 messages");
        self.next_seq = first.checked_add(count).unwrap_or(1);
        first
    }

    /// Send a batch, and collect what the kernel answers until the message with `last_seq` is
    /// acknowledged or one is refused. The payloads of data messages are returned with their type.
    pub(crate) fn exchange(
        &self,
        batch: &[u8],
        first_seq: u32,
        last_seq: u32,
    ) -> Result<Vec<(u16, Vec<u8>)>, NetlinkError> {
        let mut data = Vec::new();
        self.exchange_with(batch, first_seq, last_seq, |kind, payload| {
            data.push((kind, payload.to_vec()));
        })?;
        Ok(data)
    }

    /// [`Socket::exchange`] for answers that may be too many to be kept: each is shown once.
    pub(crate) fn exchange_with(
        &self,
        batch: &[u8],
        first_seq: u32,
        last_seq: u32,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        send(self.fd.as_raw_fd(), batch, MsgFlags::empty())
            .map_err(|e| NetlinkError::Socket(e.into()))?;
        let mut buffer = vec![0_u8; RECEIVE_BYTES];
        let answered = self.answers(&mut buffer, first_seq, last_seq, &mut each);
        if self.overwrite {
            buffer.zeroize();
        }
        answered
    }

    fn answers(
        &self,
        buffer: &mut [u8],
        first_seq: u32,
        last_seq: u32,
        each: &mut impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        loop {
            let length = self.receive(buffer)?;
            for message in messages(&buffer[..length]) {
                if message.seq.wrapping_sub(first_seq) > last_seq.wrapping_sub(first_seq) {
                    continue; // the tail of an earlier batch that was refused
                }
                match message.outcome() {
                    Outcome::Data => each(message.kind, message.payload),
                    Outcome::Acknowledged if message.seq == last_seq => return Ok(()),
                    Outcome::Acknowledged => {}
                    Outcome::Refused { errno, hint } => {
                        let index = message.seq.wrapping_sub(first_seq);
                        return Err(NetlinkError::Refused {
                            index: usize::try_from(index).expect("usize holds 32 bits"),
                            source: io::Error::from_raw_os_error(errno),
                            hint,
                        });
                    }
                }
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, NetlinkError> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Socket(errno.into())),
                Ok(length) => return Ok(length),
            }
        }
    }
}

/// A message of a multicast group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) kind: u16,
    /// Address of the socket whose request caused it; 0: the kernel did it by itself.
    pub(crate) sender: u32,
    pub(crate) payload: Vec<u8>,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

pub(crate) struct Message<'a> {
    sender: u32,
    pub(crate) kind: u16,
    flags: u16,
    seq: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram, up to the first that is none.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (message, rest) = Message::split(bytes)?;
        bytes = rest;
        Some(message)
    })
}

enum Outcome {
    Data,
    Acknowledged,
    Refused { errno: i32, hint: String },
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Message<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Message<'a>, &'a [u8])> {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            seq: u32_at(bytes, 8)?,
            sender: u32_at(bytes, 12)?,
            payload: bytes.get(HEADER..length)?,
        };
        let next = length.next_multiple_of(4).min(bytes.len());
        Some((message, &bytes[next..]))
    }

    fn outcome(&self) -> Outcome {
        match self.kind {
            NLMSG_ERROR | NLMSG_DONE => {
                let code = u32_at(self.payload, 0).unwrap_or(0).cast_signed();
                if code == 0 {
                    Outcome::Acknowledged
                } else {
                    Outcome::Refused {
                        errno: -code,
                        hint: self.hint().unwrap_or_default(),
                    }
                }
            }
            _ if self.flags & NLM_F_MULTI == 0 && self.payload.is_empty() => Outcome::Acknowledged,
            _ => Outcome::Data,
        }
    }

    /// The text among the attributes of an error, after the header of the refused request
    /// (and all of that request, unless the kernel capped it).
    fn hint(&self) -> Option<String> {
        if self.kind != NLMSG_ERROR || self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let request = usize::try_from(u32_at(self.payload, 4)?).ok()?;
        let skip = if self.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            request.next_multiple_of(4)
        };
        let mut rest = self.payload.get(4 + skip..)?;
        loop {
            let length = usize::from(u16_at(rest, 0)?);
            let value = rest.get(4..length)?;
            if u16_at(rest, 2)? == NLMSGERR_ATTR_MSG {
                let text = value.strip_suffix(&[0]).unwrap_or(value);
                return Some(String::from_utf8_lossy(text).into_owned());
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }
}

/// Attributes one after another: type, value, and both with the header.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        let padded = length.next_multiple_of(4).min(self.0.len());
        let whole = &self.0[..padded];
        self.0 = &self.0[padded..];
        Some((kind, value, whole))
    }
}

/// A number as netfilter writes it.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A text that ends with a zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_message_tells_errno_and_hint() {
        let mut bytes = Vec::new();
        bytes.extend(60_u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend((NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend((-libc::EEXIST).to_ne_bytes());
        bytes.extend([0; HEADER]);
        bytes.extend(9_u16.to_ne_bytes());
        bytes.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        bytes.extend(b"taken\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let length = u32::try_from(bytes.len()).expect("short");
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let (message, rest) = Message::split(&bytes).expect("a whole message");
        assert!(rest.is_empty());
        let Outcome::Refused { errno, hint } = message.outcome() else {
            panic!("an error")
        };
        assert_eq!((errno, hint.as_str()), (libc::EEXIST, "taken"));
    }

    #[test]
    fn a_cut_message_is_not_read() {
        assert!(Message::split(&[40, 0, 0, 0, 2, 0, 0, 0]).is_none());
        assert!(Message::split(&[]).is_none());
    }
}
