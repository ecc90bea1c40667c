// SPDX-License-Identifier: Apache-2.0
//! Streams without a container: the test holds the other ends.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::clients::UNSENT_MAX;
use super::streams::{Place, Streams};
use crate::protocol::ContainerIo;
use crate::sys::events;

/// More than a client may be behind, and what its pipe holds.
const FLOOD: usize = UNSENT_MAX + 256 * 1024;

struct Rig {
    streams: Streams,
    /// The container's ends.
    stdin: std::io::PipeReader,
    stdout: Option<std::io::PipeWriter>,
}

fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().expect("a pipe")
}

fn rig(stdin_once: bool) -> Rig {
    let ((stdin, ours), (output, stdout)) = (pipe(), pipe());
    let io = ContainerIo {
        log_path: None,
        stdin: true,
        stdin_once,
    };
    let outputs = [Some(OwnedFd::from(output)), None];
    let streams = Streams::new(io, Some(ours.into()), outputs, false).expect("pipes");
    Rig {
        streams,
        stdin,
        stdout: Some(stdout),
    }
}

impl Rig {
    /// What the shim's loop does in one turn, without waiting. Returns whether the container's
    /// output would have been read.
    fn turn(&mut self) -> bool {
        let mut interests = Vec::new();
        self.streams.interests(&mut interests);
        let (places, mut fds): (Vec<_>, Vec<_>) = interests.into_iter().unzip();
        events::poll(&mut fds, 0).expect("polls");
        for (place, fd) in places.iter().zip(&fds) {
            if fd.revents != 0 {
                self.streams.ready(*place, fd.revents, 0);
            }
        }
        self.streams.sweep(Instant::now());
        places.contains(&Place::Output(0))
    }

    fn attach(&mut self, fds: [Option<OwnedFd>; 3]) {
        self.streams.attach(fds).expect("pipes");
    }

    fn say(&mut self, bytes: &[u8]) {
        let stdout = self.stdout.as_mut().expect("still open");
        stdout.write_all(bytes).expect("the shim reads");
    }
}

#[test]
fn a_dead_reader_never_holds_up_the_container() {
    let mut rig = rig(false);
    let (_dead, end) = pipe();
    rig.attach([None, Some(end.into()), None]);
    for _ in 0..FLOOD / 4096 {
        rig.say(&[b'x'; 4096]);
        assert!(rig.turn(), "the container waits");
    }
    assert_eq!(rig.streams.deadline(), None, "it was cut off");
}

#[test]
fn a_slow_reader_slows_the_container_down_and_loses_nothing() {
    let mut rig = rig(false);
    let (mut slow, end) = pipe();
    rig.attach([None, Some(end.into()), None]);
    let mut take = |rig: &mut Rig, most: usize| {
        let count = slow.read(&mut vec![0; most]).expect("reads");
        rig.turn();
        count
    };
    let (mut said, mut taken) = (0, 0);
    // It has shown that it reads.
    for _ in 0..4 {
        rig.say(&[b'a'; 32 * 1024]);
        for _ in 0..4 {
            rig.turn();
        }
        said += 32 * 1024;
        taken += take(&mut rig, 32 * 1024);
    }
    let mut waited = false;
    for _ in 0..FLOOD / 4096 {
        if waited {
            break;
        }
        rig.say(&[b'b'; 4096]);
        said += 4096;
        waited = !rig.turn();
    }
    assert!(waited, "it is too far behind");
    let deadline = rig.streams.deadline().expect("it must take something");
    assert!(deadline > Instant::now() && deadline < Instant::now() + Duration::from_secs(2));
    taken += take(&mut rig, 64 * 1024);
    assert!(rig.turn(), "it goes on");
    while taken < said {
        taken += take(&mut rig, 64 * 1024);
    }
    assert_eq!(taken, said);
}

#[test]
fn a_burst_reaches_a_reader_that_comes_late() {
    let mut rig = rig(false);
    let (mut late, end) = pipe();
    rig.attach([None, Some(end.into()), None]);
    let burst: Vec<u8> = (0..UNSENT_MAX / 2).map(|i| (i % 251) as u8).collect();
    for piece in burst.chunks(4096) {
        rig.say(piece);
        assert!(rig.turn());
    }
    drop(rig.stdout.take());
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        late.read_to_end(&mut seen).expect("reads");
        seen
    });
    let start = Instant::now();
    while !rig.streams.is_done() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time");
        rig.turn();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(reader.join().expect("joins") == burst);
}

#[test]
fn stdin_comes_from_any_client_and_ends_with_the_first_if_it_is_to_be_fed_once() {
    for once in [false, true] {
        let mut rig = rig(once);
        let ((first, mut to_first), (second, mut to_second)) = (pipe(), pipe());
        rig.attach([Some(first.into()), None, None]);
        rig.attach([Some(second.into()), None, None]);
        to_second.write_all(b"two").expect("writes");
        rig.turn();
        to_first.write_all(b"one").expect("writes");
        drop(to_first);
        for _ in 0..3 {
            rig.turn();
        }
        let mut seen = [0; 6];
        rig.stdin.read_exact(&mut seen).expect("reads");
        assert_eq!(&seen, b"twoone");
        let open = events::wait_readable(std::os::fd::AsFd::as_fd(&rig.stdin), 0);
        assert_eq!(open, Ok(once), "its end shows only if it is fed once");
    }
}

#[test]
fn an_end_comes_after_all_that_was_sent_before() {
    let mut rig = rig(true);
    let (input, mut to) = pipe();
    rig.attach([Some(input.into()), None, None]);
    // More than the container's pipe holds.
    let feeder = std::thread::spawn(move || to.write_all(&[b'i'; 200_000]).expect("writes"));
    let mut seen = Vec::new();
    let start = Instant::now();
    while seen.len() < 200_000 {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", seen.len());
        rig.turn();
        let readable = events::wait_readable(std::os::fd::AsFd::as_fd(&rig.stdin), 0);
        if readable == Ok(true) {
            let mut buffer = [0; 1000];
            let count = rig.stdin.read(&mut buffer).expect("reads");
            assert!(count > 0, "the end came after {} bytes", seen.len());
            seen.extend_from_slice(&buffer[..count]);
        }
    }
    feeder.join().expect("joins");
    // Another test's process may have a copy of the pipe until it executes its program.
    while events::wait_readable(std::os::fd::AsFd::as_fd(&rig.stdin), 0) != Ok(true) {
        assert!(start.elapsed() < Duration::from_secs(20), "it never ends");
        rig.turn();
    }
    assert_eq!(rig.stdin.read(&mut [0]).expect("reads"), 0);
}
