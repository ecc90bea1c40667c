// SPDX-License-Identifier: Apache-2.0
//! The CRI log splitter: what a process wrote can be read back from its log, however it came.

use shim::daemon::log::{LINE_MAX, Splitter};

use super::input::Input;

const TIME: &str = "2024-02-29T12:34:56.000000007Z";
const STREAM: &str = "stdout";

/// The input says how the text is read in pieces, and what it is.
pub fn check(data: &[u8]) {
    let (mut splitter, mut input) = (Splitter::new(STREAM), Input(data));
    let (mut text, mut log) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let piece = piece(&mut input);
        splitter.push(TIME, &piece, &mut log);
        text.extend_from_slice(&piece);
    }
    splitter.finish(TIME, &mut log);
    let mut again = log.len();
    splitter.finish(TIME, &mut log);
    assert_eq!(again, log.len(), "the end comes once");
    assert_eq!(read_back(&log), text, "bytes are lost or added");
    // One piece must give the same lines as many.
    let (mut splitter, mut whole) = (Splitter::new(STREAM), Vec::new());
    splitter.push(TIME, &text, &mut whole);
    splitter.finish(TIME, &mut whole);
    again = whole.len();
    assert_eq!((again, whole), (log.len(), log), "pieces change the log");
}

/// Bytes of the input, or a run of one byte about as long as a line may be.
fn piece(input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() {
        control if control < 192 => input.take(usize::from(control)).to_vec(),
        control => {
            let length = match control % 4 {
                0 => LINE_MAX,
                1 => LINE_MAX - usize::from(input.byte()),
                2 => LINE_MAX + usize::from(input.byte()),
                _ => usize::from(input.byte()) * 16,
            };
            vec![input.byte(); length]
        }
    }
}

/// Parses a log as a reader would.
fn read_back(log: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let Some(lines) = log.strip_suffix(b"\n") else {
        assert!(log.is_empty(), "the last line has no end");
        return text;
    };
    for line in lines.split(|byte| *byte == b'\n') {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        assert_eq!(fields.next(), Some(TIME.as_bytes()));
        assert_eq!(fields.next(), Some(STREAM.as_bytes()));
        let tag = fields.next().expect("a tag");
        let part = fields.next().expect("text");
        assert!(part.len() <= LINE_MAX, "a line is too long");
        text.extend_from_slice(part);
        match tag {
            b"F" => text.push(b'\n'),
            b"P" => assert!(!part.is_empty(), "an empty piece"),
            other => panic!("tag {other:?}"),
        }
    }
    text
}
