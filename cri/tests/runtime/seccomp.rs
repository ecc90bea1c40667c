// SPDX-License-Identifier: Apache-2.0
//! Seccomp profiles of the OCI form, tried from inside.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use cri::oci::spec::{SeccompProfile, seccomp};
use cri::shim_client::ExitRecord;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use serde_json::{Value, json};

use crate::pod::{Pod, container};

/// Runs a script under a profile.
async fn run(
    pod: &Pod,
    id: &str,
    profile: &Value,
    script: &str,
    changes: &[(&str, Value)],
) -> (ExitRecord, String) {
    let profile = SeccompProfile::Localhost(profile.to_string());
    let mut context = pod.context(id);
    context.id = id.to_owned();
    context.seccomp = seccomp(&profile, 0).expect("compiles");
    pod.launch(id, &container(script, changes), &context, pod.io(id))
        .await;
    let record = pod.wait(id).await;
    (record, pod.output(id))
}

/// Everything is allowed but one call.
fn profile(call: &str, action: &str, rest: Value) -> Value {
    let mut rule = json!({"names": [call, "nosuchcall"], "action": action});
    for (key, value) in rest.as_object().into_iter().flatten() {
        rule[key] = value.clone();
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
}

#[tokio::test]
async fn every_action_does_what_it_says() {
    const SIGSYS: i32 = 31;
    let pod = Pod::start().await;
    let script = "exec mkdir /made";
    for (action, rest, signal, said) in [
        ("SCMP_ACT_ALLOW", json!({}), 0, ""),
        ("SCMP_ACT_LOG", json!({}), 0, ""),
        ("SCMP_ACT_ERRNO", json!({}), 0, "Operation not permitted"),
        (
            "SCMP_ACT_ERRNO",
            json!({"errnoRet": 28}),
            0,
            "No space left",
        ),
        // Without a tracer the call does not exist.
        (
            "SCMP_ACT_TRACE",
            json!({"errnoRet": 5}),
            0,
            "not implemented",
        ),
        ("SCMP_ACT_TRAP", json!({}), SIGSYS, ""),
        ("SCMP_ACT_KILL", json!({}), SIGSYS, ""),
        ("SCMP_ACT_KILL_THREAD", json!({}), SIGSYS, ""),
        ("SCMP_ACT_KILL_PROCESS", json!({}), SIGSYS, ""),
    ] {
        let id = format!("c{}{}", action, rest.to_string().len());
        let profile = profile("mkdir", action, rest);
        let (record, output) = run(&pod, &id, &profile, script, &[]).await;
        assert_eq!(record.signal, signal, "{action}: {output}");
        assert!(output.contains(said), "{action}: {output}");
        if signal == 0 {
            assert_eq!(record.code == 0, said.is_empty(), "{action}: {output}");
        }
    }
    pod.stop().await;
}

#[tokio::test]
async fn what_is_not_listed_gets_the_default_with_its_errno() {
    let pod = Pod::start().await;
    // The default profile's table, but for mkdir; its other words are passed over as unknown calls.
    let allowed = include_str!("../../src/oci/default_profile.rs")
        .split_whitespace()
        .filter(|word| {
            word.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
        .filter(|word| *word != "mkdir" && *word != "mkdirat");
    let names: Vec<&str> = allowed.chain(["capset", "prctl"]).collect();
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
    for (id, no_new_privileges) in [("plain", false), ("nnp", true)] {
        let changes = [("/process/noNewPrivileges", json!(no_new_privileges))];
        let script = "mkdir /made; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
        let (_, output) = run(&pod, id, &profile, script, &changes).await;
        assert!(output.contains("No space left on device"), "{output}");
        let expected = format!(
            "CapEff:\t00000000a80425fb\nNoNewPrivs:\t{}\nSeccomp:\t2",
            u8::from(no_new_privileges)
        );
        assert!(output.contains(&expected), "{output}");
    }
    pod.stop().await;
}

#[tokio::test]
async fn arguments_are_compared_by_every_operator() {
    let pod = Pod::start().await;
    let script = "for s in 10 20 30; do case \"$(kill -$s 999999 2>&1)\" in \
        *denied*) printf X;; *) printf .;; esac; done; echo";
    let compare = |op: &str, value: u64, two: u64| json!({"index": 1, "op": op, "value": value, "valueTwo": two});
    for (op, args, expected) in [
        ("eq", json!([compare("SCMP_CMP_EQ", 20, 0)]), ".X."),
        ("ne", json!([compare("SCMP_CMP_NE", 20, 0)]), "X.X"),
        ("lt", json!([compare("SCMP_CMP_LT", 20, 0)]), "X.."),
        ("le", json!([compare("SCMP_CMP_LE", 20, 0)]), "XX."),
        ("gt", json!([compare("SCMP_CMP_GT", 20, 0)]), "..X"),
        ("ge", json!([compare("SCMP_CMP_GE", 20, 0)]), ".XX"),
        (
            "masked",
            json!([compare("SCMP_CMP_MASKED_EQ", 20, 20)]),
            ".XX",
        ),
        // Two about one argument: either is enough.
        (
            "either",
            json!([compare("SCMP_CMP_EQ", 10, 0), compare("SCMP_CMP_EQ", 30, 0)]),
            "X.X",
        ),
        // Two about different arguments: both must hold.
        (
            "both",
            json!([compare("SCMP_CMP_GE", 20, 0),
                {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}]),
            "...",
        ),
    ] {
        let profile = profile(
            "kill",
            "SCMP_ACT_ERRNO",
            json!({"errnoRet": 13, "args": args}),
        );
        let (_, output) = run(&pod, op, &profile, script, &[]).await;
        assert_eq!(output.trim(), expected, "{op}");
    }
    pod.stop().await;
}

/// Accepts one filter: the state that comes with it, and its descriptor.
fn accept(agent: &UnixListener) -> (Value, OwnedFd) {
    let (stream, _) = agent.accept().expect("accepts");
    let mut buffer = [0; 4096];
    let received = shim::sys::socket::receive(stream.as_fd(), &mut buffer);
    let (length, fds) = received.expect("a message");
    let state = serde_json::from_slice(&buffer[..length]).expect("json");
    let descriptor = fds.into_iter().flatten().next().expect("a descriptor");
    (state, descriptor)
}

#[tokio::test]
async fn a_listener_answers_for_the_calls_left_to_it() {
    let pod = Pod::start().await;
    for (id, no_new_privileges) in [("plain", false), ("nnp", true)] {
        let path = pod.path(&format!("{id}.sock"));
        let agent = UnixListener::bind(&path).expect("binds");
        let answering = std::thread::spawn(move || {
            let (state, descriptor) = accept(&agent);
            let call = ScmpNotifReq::receive(descriptor.as_raw_fd()).expect("a call");
            let flags = ScmpNotifRespFlags::empty();
            ScmpNotifResp::new_error(call.id, -libc::ENOSPC, flags)
                .respond(descriptor.as_raw_fd())
                .expect("responds");
            state
        });
        let mut profile = profile("mkdir", "SCMP_ACT_NOTIFY", json!({}));
        profile["listenerPath"] = json!(path);
        profile["listenerMetadata"] = json!("some \"words\"");
        let changes = [("/process/noNewPrivileges", json!(no_new_privileges))];
        let script = "mkdir /made; grep -E '^(CapEff|Seccomp):' /proc/self/status";
        let (record, output) = run(&pod, id, &profile, script, &changes).await;
        let state = answering.join().expect("the agent is content");
        assert!(output.contains("No space left on device"), "{output}");
        assert!(
            output.contains("CapEff:\t00000000a80425fb\nSeccomp:\t2"),
            "{output}"
        );
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "some \"words\"");
        assert_eq!(state["pid"], record.pid);
        assert_eq!(state["state"]["id"], id);
        assert_eq!(state["state"]["pid"], record.pid);
        assert_eq!(state["state"]["status"], "creating");
    }
    // Nobody there: the container is not made.
    let mut profile = profile("mkdir", "SCMP_ACT_NOTIFY", json!({}));
    profile["listenerPath"] = json!(pod.path("nosuch.sock"));
    let mut context = pod.context("alone");
    let localhost = SeccompProfile::Localhost(profile.to_string());
    context.seccomp = seccomp(&localhost, 0).expect("compiles");
    let plan = cri::oci::compile(&container("true", &[]), &context).expect("compiles");
    let error = pod.shim.create("alone", plan, pod.io("alone")).await;
    let message = error.expect_err("refused").to_string();
    assert!(message.contains("linux.seccomp.listenerPath"), "{message}");
    pod.stop().await;
}
