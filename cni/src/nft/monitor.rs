// SPDX-License-Identifier: Apache-2.0
//! Hears of changes that others make to nftables (netlink group `NFNLGRP_NFTABLES`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};

use super::model::Family;
use crate::netlink::{Attributes, Message, messages};
use crate::sys;

const NFNLGRP_NFTABLES: libc::c_int = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_NEWGEN: u8 = 15;
/// The table's name has this number in the messages of tables, chains, rules, sets and elements.
const ATTRIBUTE_TABLE: u16 = 1;
const NFGEN_HEADER: usize = 4;
const BUFFER_BYTES: usize = 1 << 20;
const RECEIVE_BYTES: usize = 64 << 10;

/// A socket that tells of changes, in the network namespace of the thread that opened it. It never
/// blocks; wait until its descriptor is readable, then ask [`Monitor::changed`].
#[derive(Debug)]
pub struct Monitor {
    fd: OwnedFd,
}

impl Monitor {
    /// Begin to listen, but not to what the socket with the address `own` changes
    /// ([`super::Socket::port`]): the kernel drops that before it is queued, so that a large change
    /// of one's own neither fills the buffer nor wakes anybody.
    pub fn open(own: u32) -> io::Result<Monitor> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let monitor = Monitor { fd };
        monitor.ignore(own)?;
        let forced = setsockopt(&monitor.fd, sockopt::RcvBufForce, &BUFFER_BYTES);
        if forced.is_err() {
            let _ = setsockopt(&monitor.fd, sockopt::RcvBuf, &BUFFER_BYTES); // a smaller one will do
        }
        let group = libc::NETLINK_ADD_MEMBERSHIP;
        sys::set_netlink_option(monitor.fd.as_fd(), group, NFNLGRP_NFTABLES)?;
        Ok(monitor)
    }

    /// From now on pass over what another socket changes.
    pub fn ignore(&self, own: u32) -> io::Result<()> {
        const OFFSET_OF_SENDER: u32 = 12;
        // A filter reads in network order; the sender stands in host order.
        let own = u32::from_be_bytes(own.to_ne_bytes());
        let instruction = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).expect("codes are small"),
            jt,
            jf,
            k,
        };
        let mut program = [
            instruction(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                0,
                0,
                OFFSET_OF_SENDER,
            ),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, own),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        sys::attach_filter(self.fd.as_fd(), &mut program)
    }

    /// Has somebody changed something of this table since the last call? Reads all that is there.
    /// True as well when messages were lost.
    pub fn changed(&self, family: Family, table: &str) -> io::Result<bool> {
        let mut buffer = vec![0_u8; RECEIVE_BYTES];
        let mut changed = false;
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    changed |= messages(&buffer[..length])
                        .any(|message| is_about(&message, family, table));
                }
                Err(nix::Error::EAGAIN) => return Ok(changed),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => changed = true,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Does a message speak of this table?
fn is_about(message: &Message<'_>, family: Family, table: &str) -> bool {
    let [number, subsystem] = message.kind.to_le_bytes();
    if subsystem != NFNL_SUBSYS_NFTABLES || number == NFT_MSG_NEWGEN {
        return false;
    }
    let same_family = message.payload.first() == Some(&family.number());
    let attributes = message.payload.get(NFGEN_HEADER..).unwrap_or_default();
    let name = Attributes(attributes).find(|a| a.0 == ATTRIBUTE_TABLE);
    same_family
        && name.is_some_and(|(_, value, _)| {
            value.strip_suffix(&[0]).unwrap_or(value) == table.as_bytes()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, table: &str) -> Vec<u8> {
        let mut payload = vec![1, 0, 0, 0];
        let length = u16::try_from(table.len() + 5).expect("short");
        payload.extend(length.to_ne_bytes());
        payload.extend(ATTRIBUTE_TABLE.to_ne_bytes());
        payload.extend(table.as_bytes());
        payload.push(0);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let length = u32::try_from(16 + payload.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn only_messages_of_the_table_count() {
        let (delete_rule, generation) = (0x0a08, 0x0a0f);
        for (kind, name, counts) in [
            (delete_rule, "pwt", true),
            (delete_rule, "pwt-cni", false),
            (generation, "pwt", false),
            (0x0208, "pwt", false),
        ] {
            let mut bytes = message(delete_rule, "other");
            bytes.extend(message(kind, name));
            let found = messages(&bytes).any(|m| is_about(&m, Family::Inet, "pwt"));
            assert_eq!(found, counts, "{kind:#x} {name}");
            assert!(!messages(&bytes).any(|m| is_about(&m, Family::Ip6, "pwt")));
        }
    }

    #[test]
    fn rubbish_is_no_message() {
        for bytes in [&[][..], &[1, 0, 0, 0, 8, 10], &[0xff; 40], &[0; 40]] {
            assert!(!messages(bytes).any(|m| is_about(&m, Family::Inet, "pwt")));
        }
    }
}
