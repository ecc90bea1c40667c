// SPDX-License-Identifier: Apache-2.0
//! Messages as packets. A payload that is too large for a packet travels in a memory file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{self, Sys, socket};

/// Below the default send buffer (208 KiB), with room for the kernel's own bookkeeping.
const INLINE_MAX: usize = 64 * 1024;
/// What a memory file may hold: a plan has no reason to be larger.
const PAYLOAD_MAX: u64 = 16 * 1024 * 1024;

const INLINE: u8 = 0;
const IN_FILE: u8 = 1;

/// One packet, ready to be sent any number of times.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Packet {
    /// Frames an encoded message.
    ///
    /// # Errors
    /// When a memory file is needed and cannot be made.
    pub fn new(payload: &[u8]) -> Sys<Packet> {
        if payload.len() > INLINE_MAX {
            let file = socket::memory_file(payload)?;
            return Ok(Packet {
                bytes: vec![IN_FILE],
                file: Some(file),
            });
        }
        let mut bytes = Vec::with_capacity(payload.len() + 1);
        bytes.push(INLINE);
        bytes.extend_from_slice(payload);
        Ok(Packet { bytes, file: None })
    }

    /// Sends it with at most three descriptors.
    ///
    /// # Errors
    /// EAGAIN on a non-blocking socket that is full; EPIPE when the peer is gone.
    pub fn send(&self, to: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Sys<()> {
        match &self.file {
            None => socket::send(to, &self.bytes, fds),
            Some(file) => {
                let mut all = Vec::with_capacity(fds.len() + 1);
                all.extend_from_slice(fds);
                all.push(file.as_fd());
                socket::send(to, &self.bytes, &all)
            }
        }
    }
}

/// Receives one message: its payload and its descriptors. `None` when the peer is gone.
///
/// # Errors
/// EAGAIN on a non-blocking socket with nothing to read; EBADMSG when it is no message.
pub fn receive(from: BorrowedFd<'_>) -> Sys<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let size = socket::next_size(from)?;
    let mut buffer = vec![0; size.max(1)];
    let (length, fds) = socket::receive(from, &mut buffer)?;
    let mut fds: Vec<OwnedFd> = fds.into_iter().flatten().collect();
    match (length, buffer.first()) {
        (0, _) => Ok(None),
        (_, Some(&INLINE)) => {
            buffer.truncate(length);
            buffer.remove(0);
            Ok(Some((buffer, fds)))
        }
        (_, Some(&IN_FILE)) => {
            let file = fds.pop().ok_or(libc::EBADMSG)?;
            Ok(Some((read_file(&file)?, fds)))
        }
        _ => Err(libc::EBADMSG),
    }
}

fn read_file(file: &OwnedFd) -> Sys<Vec<u8>> {
    let size = sys::mounts::fstat(file.as_fd())?.st_size as u64;
    if size > PAYLOAD_MAX {
        return Err(libc::EMSGSIZE);
    }
    let mut bytes = vec![0; size as usize];
    sys::read_at_start(file.as_fd(), &mut bytes)?;
    Ok(bytes)
}
