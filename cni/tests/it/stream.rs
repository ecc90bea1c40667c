// SPDX-License-Identifier: Apache-2.0
//! A TCP connection that is never quiet, to see what becomes of it when something changes below.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{at, inside};

/// Bytes of one piece: its number, again and again.
const PIECE: usize = 512;
const PACE: Duration = Duration::from_millis(1);
/// Longer than anything that is tested may take.
const STUCK: Duration = Duration::from_secs(60);

pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(u64, Duration)>,
}

/// What a stream was.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Pieces.
    pub(crate) sent: u64,
    /// Pieces, each the one after the last.
    pub(crate) received: u64,
    /// The longest time in which nothing came.
    pub(crate) gap: Duration,
}

fn piece(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(PIECE / 8)
}

impl Stream {
    /// From an address in one namespace to one in another.
    pub(crate) fn start(from: (&str, &Path), to: (&str, &Path)) -> Stream {
        let address = |text: &str| at(text.parse::<IpAddr>().expect(text), 0);
        let listener = inside(to.1, || TcpListener::bind(address(to.0)).expect("bind"));
        let there = listener.local_addr().expect("an address");
        let stream = inside(from.1, || TcpStream::connect_timeout(&there, STUCK));
        let stream = stream.expect("a connection");
        let (accepted, _) = listener.accept().expect("a connection");
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        Stream {
            stop,
            sender: std::thread::spawn(move || send(stream, &until)),
            receiver: std::thread::spawn(move || receive(accepted)),
        }
    }

    pub(crate) fn end(self) -> Flow {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let (received, gap) = self.receiver.join().expect("the receiver");
        Flow {
            sent,
            received,
            gap,
        }
    }
}

fn send(mut stream: TcpStream, until: &AtomicBool) -> u64 {
    stream.set_nodelay(true).expect("no delay");
    stream.set_write_timeout(Some(STUCK)).expect("a deadline");
    let mut number = 0;
    while !until.load(Ordering::Relaxed) {
        stream.write_all(&piece(number)).expect("write");
        number += 1;
        std::thread::sleep(PACE);
    }
    number
}

fn receive(mut stream: TcpStream) -> (u64, Duration) {
    stream.set_read_timeout(Some(STUCK)).expect("a deadline");
    let (mut number, mut gap) = (0, Duration::ZERO);
    let mut buffer = [0; PIECE];
    loop {
        let waiting = Instant::now();
        match stream.read_exact(&mut buffer) {
            Ok(()) => assert_eq!(buffer[..], piece(number), "piece {number}"),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (number, gap),
            Err(error) => panic!("after {number} pieces: {error}"),
        }
        gap = gap.max(waiting.elapsed());
        number += 1;
    }
}
