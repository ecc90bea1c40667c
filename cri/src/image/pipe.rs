// SPDX-License-Identifier: Apache-2.0
//! A bounded pipe of byte chunks between two threads: one works while the other waits for the
//! network, the disk, or the processor.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf as _, Bytes};

/// The end that takes chunks in.
pub(crate) struct ChunkSender(SyncSender<io::Result<Bytes>>);

/// The end that is read. Sees the end only if the sender said so: a sender that vanished is an error.
pub(crate) struct ChunkReader {
    receiver: Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A pipe that holds up to `depth` chunks.
pub(crate) fn pipe(depth: usize) -> (ChunkSender, ChunkReader) {
    let (sender, receiver) = sync_channel(depth);
    let reader = ChunkReader {
        receiver,
        current: Bytes::new(),
        ended: false,
    };
    (ChunkSender(sender), reader)
}

impl ChunkSender {
    /// Waits for room. False when nobody reads any more.
    pub(crate) fn send(&self, chunk: Bytes) -> bool {
        chunk.is_empty() || self.0.send(Ok(chunk)).is_ok()
    }

    /// Says that this was all.
    pub(crate) fn end(self) {
        drop(self.0.send(Ok(Bytes::new())));
    }

    pub(crate) fn fail(self, error: io::Error) {
        drop(self.0.send(Err(error)));
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.ended {
            match self.receiver.recv() {
                Ok(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    self.current = chunk;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let cut = "what was to be read ended early";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount.min(self.current.len()));
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let n = chunk.len().min(buf.len());
        buf[..n].copy_from_slice(&chunk[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_read_in_order_and_the_end_is_told() {
        let (sender, mut reader) = pipe(4);
        assert!(sender.send(Bytes::from_static(b"ab")) && sender.send(Bytes::new()));
        assert!(sender.send(Bytes::from_static(b"c")));
        sender.end();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc");
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn a_sender_that_vanishes_is_not_the_end() {
        let (sender, mut reader) = pipe(1);
        drop(sender);
        let error = reader.fill_buf().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (sender, reader) = pipe(1);
        drop(reader);
        assert!(!sender.send(Bytes::from_static(b"x")));
    }
}
