// SPDX-License-Identifier: Apache-2.0
//! Attacks through what a process is born with: inheritable capabilities (CVE-2022-29162, -24769),
//! supplementary groups (CVE-2022-2995), a keyring that is shared.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::pod::{Pod, container, copy_program};

const STATUS: &str = "grep -E '^(CapInh|CapAmb|CapBnd|Groups)' /proc/self/status";

#[tokio::test]
async fn nothing_is_inheritable_that_the_spec_does_not_name() {
    let pod = Pod::start().await;
    for (id, uid) in [("root", 0), ("user", 1000)] {
        let user = json!({"uid": uid, "gid": uid});
        let spec = container(&format!("{STATUS}; sleep 1000"), &[("/process/user", user)]);
        pod.launch(id, &spec, &pod.context(id), pod.io(id)).await;
        crate::pod::eventually("the first process has spoken", || {
            pod.log(id).exists() && pod.output(id).contains("Groups")
        })
        .await;
        let (_, exec) = pod
            .exec(id, &format!("e-{id}"), &["sh", "-c", STATUS])
            .await;
        for (whose, status) in [("first process", pod.output(id)), ("exec", exec)] {
            for line in ["CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"] {
                assert!(status.contains(line), "{whose} of {id}: {status}");
            }
        }
    }
    pod.stop().await;
}

/// A file that its group may not read, although everybody else may.
#[tokio::test]
async fn groups_are_those_of_the_spec_and_cannot_be_shed() {
    let pod = Pod::start().await;
    let denied = pod.rootfs().join("etc/denied");
    std::fs::write(&denied, "secret").expect("writes");
    std::os::unix::fs::chown(&denied, Some(0), Some(77)).expect("chowns");
    std::fs::set_permissions(&denied, PermissionsExt::from_mode(0o604)).expect("sets");
    let script = format!(
        "{STATUS}; cat /etc/denied 2>/dev/null && echo READ; \
         su -s /bin/sh app -c 'cat /etc/denied' 2>/dev/null && echo READ; \
         setpriv --clear-groups cat /etc/denied 2>/dev/null && echo READ; \
         sg app 'cat /etc/denied' 2>/dev/null && echo READ"
    );
    for (id, groups) in [("with", json!([77, 1000])), ("only", json!([77]))] {
        let user = json!({"uid": 1000, "gid": 1000, "additionalGids": groups});
        let (_, output) = pod.run(id, &script, &[("/process/user", user)]).await;
        let wanted = if id == "with" {
            "Groups:\t77 1000 \n"
        } else {
            "Groups:\t77 \n"
        };
        assert!(output.contains(wanted), "{output}");
        assert!(
            !output.contains("READ") && !output.contains("secret"),
            "{output}"
        );
    }
    // Nothing of the runtime's own groups is left when none is given.
    let user = [("/process/user", json!({"uid": 1000, "gid": 1000}))];
    let (_, output) = pod.run("none", STATUS, &user).await;
    assert!(
        output.contains("Groups:\t \n") || output.contains("Groups:\t\n"),
        "{output:?}"
    );
    pod.stop().await;
}

/// Tells this executable, run in a container, what to do with keys: a key's name to add, or the
/// serial number of one to read.
const ADD: &str = "PODWRIGHT_TEST_KEY_ADD";
const READ: &str = "PODWRIGHT_TEST_KEY_READ";

/// Not a test of its own: the program of [`keys_are_not_shared_between_containers`].
#[test]
fn key_program() {
    if let Ok(name) = std::env::var(ADD) {
        println!("added {}", keys::add(&name));
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
    if let Ok(wanted) = std::env::var(READ) {
        let (serial, name) = wanted.split_once(' ').expect("a serial and a name");
        println!("session {:?}", keys::find(name));
        println!("serial {:?}", keys::read(serial.parse().expect("a number")));
    }
}

mod keys {
    #![expect(unsafe_code, reason = "no safe wrapper has the key system calls")]

    use std::ffi::CString;

    const SESSION: i32 = -3;
    const KEYCTL_SEARCH: i32 = 10;
    const KEYCTL_READ: i32 = 11;

    fn outcome(result: i64) -> Result<i64, i32> {
        match result {
            -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            number => Ok(number),
        }
    }

    pub(super) fn add(name: &str) -> i64 {
        let name = CString::new(name).expect("plain");
        // SAFETY: type and name are C strings, the payload is three live bytes and said to be.
        let result = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                b"key".as_ptr(),
                3usize,
                SESSION,
            )
        };
        outcome(result).expect("adds a key")
    }

    pub(super) fn find(name: &str) -> Result<i64, i32> {
        let name = CString::new(name).expect("plain");
        // SAFETY: type and name are C strings; the other arguments are numbers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_SEARCH,
                SESSION,
                c"user".as_ptr(),
                name.as_ptr(),
                0,
            )
        };
        outcome(result)
    }

    pub(super) fn read(serial: i32) -> Result<i64, i32> {
        let mut buffer = [0u8; 16];
        // SAFETY: the kernel writes at most the 16 bytes that it is told of.
        let result = unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_READ,
                serial,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        outcome(result)
    }
}

#[tokio::test]
async fn keys_are_not_shared_between_containers() {
    let pod = Pod::start().await;
    copy_program("/proc/self/exe", &pod.rootfs().join("bin/keys"));
    let args = json!([
        "/bin/keys",
        "--exact",
        "attack_identity::key_program",
        "--nocapture"
    ]);
    let with = |variable: String| {
        [
            ("/process/args", args.clone()),
            ("/process/env", json!([variable])),
        ]
    };
    let spec = container("", &with(format!("{ADD}=podwright-secret")));
    pod.launch("a", &spec, &pod.context("a"), pod.io("a")).await;
    let added = |output: String| {
        let serial = output
            .lines()
            .find_map(|line| line.split_once("added "))?
            .1
            .to_owned();
        Some(serial)
    };
    crate::pod::eventually("the key is added", || {
        pod.log("a").exists() && added(pod.output("a")).is_some()
    })
    .await;
    let serial = added(pod.output("a")).expect("a serial");
    let spec = container("", &with(format!("{READ}={serial} podwright-secret")));
    pod.launch("b", &spec, &pod.context("b"), pod.io("b")).await;
    pod.wait("b").await;
    let output = pod.output("b");
    assert!(
        output.contains("session Err") && output.contains("serial Err"),
        "{output}"
    );
    pod.stop().await;
}
