// SPDX-License-Identifier: Apache-2.0
//! Version 1 as it is on the wire. What fails here breaks running pods at an upgrade: a new field or
//! variant belongs at the end of its type, and nothing that is there may change or go.

use crate::protocol::{
    self, Answer, Body, ContainerIo, ExitRecord, Failure, FailureKind, Message, Phase, ProcessId,
    ProcessState, Request, ShimState,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn check<T>(value: &T, pinned: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = protocol::encode(value).expect("encodes");
    assert_eq!(hex(&bytes), pinned, "{value:?}");
    assert_eq!(protocol::decode::<T>(&bytes).as_ref(), Ok(value));
}

pub(super) fn text(text: &str) -> String {
    text.to_owned()
}

fn exec() -> ProcessId {
    ProcessId {
        container: text("c"),
        exec: Some(text("e")),
    }
}

#[test]
fn requests() {
    let io = ContainerIo {
        log_path: Some(text("l")),
        stdin: true,
        stdin_once: true,
    };
    let bodies = [
        (Body::Hello { version: 1 }, "0202ac020400010101"),
        (Body::State, "0202ac020101"),
        (Body::Subscribe, "0202ac020102"),
        (Body::StartSandbox(Box::default()), "0202ac02020300"),
        (
            Body::Create {
                container: text("c"),
                plan: Box::default(),
                io,
            },
            "0202ac021004030201630009030301016c01010101",
        ),
        (
            Body::Start {
                container: text("c"),
            },
            "0202ac02050501020163",
        ),
        (
            Body::Signal {
                process: exec(),
                signal: 9,
                all: true,
            },
            "0202ac020f060308020201630301016501120101",
        ),
        (
            Body::Exec {
                container: text("c"),
                exec: text("e"),
                process: Box::default(),
            },
            "0202ac02080702020163020165",
        ),
        (
            Body::Wait { process: exec() },
            "0202ac020b0801080202016303010165",
        ),
        (
            Body::Resize {
                container: text("c"),
                columns: 80,
                rows: 300,
            },
            "0202ac020a0903020163015002ac02",
        ),
        (
            Body::Attach {
                container: text("c"),
                stdin: true,
                stdout: true,
                stderr: true,
            },
            "0202ac020b0a04020163010101010101",
        ),
        (
            Body::ReopenLog {
                container: text("c"),
            },
            "0202ac02050b01020163",
        ),
        (
            Body::Remove { process: exec() },
            "0202ac020b0c01080202016303010165",
        ),
        (Body::Shutdown, "0202ac02010d"),
    ];
    for (body, pinned) in bodies {
        check(&Request { id: 300, body }, pinned);
    }
}

#[test]
fn messages() {
    let record = ExitRecord {
        pid: 7,
        code: 137,
        signal: 9,
        oom_killed: true,
        started_at: 1_000,
        finished_at: 2_000,
    };
    let phases = [
        Phase::Created,
        Phase::Running { started_at: 5 },
        Phase::Exited(record),
        Phase::Starting,
    ];
    let state = |phase| ProcessState {
        process: exec(),
        pid: 7,
        phase,
    };
    let state = ShimState {
        shim_pid: 6,
        processes: phases.map(state).into(),
    };
    let answers = [
        (Answer::Done, "000102ac02"),
        (Answer::Hello { version: 1 }, "000202ac02050001010101"),
        (
            Answer::Started {
                pid: 7,
                notes: vec![text("n")],
            },
            "000202ac020900020201070301016e",
        ),
        (
            Answer::Exited(record),
            "000202ac021200030601070292020112010102d00f02a01f",
        ),
        (
            Answer::State(state),
            concat!(
                "000202ac025000040201064a0402080202016303010165010703080202016303010165010704",
                "0101010a03080202016303010165010711020601070292020112010102d00f02a01f03080202",
                "01630301016501070103",
            ),
        ),
    ];
    for (answer, pinned) in answers {
        let result = Ok(answer);
        check(&Message::Reply { id: 300, result }, pinned);
    }
    let kinds = [
        FailureKind::NotFound,
        FailureKind::Exists,
        FailureKind::State,
        FailureKind::Launch,
        FailureKind::Invalid,
        FailureKind::System,
        FailureKind::Newer,
    ];
    let failures = kinds.map(|kind| Failure {
        kind,
        message: text("m"),
    });
    check(
        &failures.to_vec(),
        concat!(
            "07020002016d02010102016d02010202016d02010302016d02010402016d02010502016d0201",
            "0602016d",
        ),
    );
    let process = exec();
    check(
        &Message::Exit { process, record },
        "0102080202016303010165100601070292020112010102d00f02a01f",
    );
}
