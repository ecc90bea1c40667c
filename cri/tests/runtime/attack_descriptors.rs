// SPDX-License-Identifier: Apache-2.0
//! Attacks through descriptors that the runtime holds (CVE-2024-21626): as working directory, as a
//! way to a program of the host, as an interpreter. And what a container sees of them: nothing.

use std::path::PathBuf;

use cri::oci::CompileContext;
use cri::shim_client::ExecStdio;
use serde_json::{Value, json};
use shim::plan::ProcessPlan;

use crate::cgroup::Subtree;
use crate::pod::{Pod, container, copy_program, write_program};

/// More than the shim and a child that is being set up have open.
const NUMBERS: std::ops::Range<u32> = 0..48;
/// Enough steps up from anywhere.
const UP: &str = "../../../../../../../../../../../..";

/// A pod, a cgroup (whose directory the launcher keeps open), and a program that only the host has.
struct Target {
    pod: Pod,
    tree: Subtree,
    loot: PathBuf,
}

impl Target {
    async fn new() -> Target {
        let (pod, tree) = (Pod::start().await, Subtree::new());
        tree.manager.create(&tree.path).expect("creates");
        std::fs::create_dir(pod.path("loot")).expect("creates");
        let loot = pod.path("loot/busybox");
        copy_program("/bin/busybox", &loot);
        Target { pod, tree, loot }
    }

    fn context(&self, id: &str) -> CompileContext {
        CompileContext {
            cgroup: self.tree.manager.join(&self.tree.path),
            cgroup_v2: self.tree.manager.is_v2(),
            ..self.pod.context(id)
        }
    }

    /// Starts a container if that is possible at all; its output.
    async fn attempt(&self, id: &str, script: &str, changes: &[(&str, Value)]) -> String {
        let spec = container(script, changes);
        let plan = cri::oci::compile(&spec, &self.context(id)).expect("compiles");
        if let Err(error) = self.pod.shim.create(id, plan, self.pod.io(id)).await {
            return error.to_string();
        }
        if let Err(error) = self.pod.shim.start(id).await {
            return error.to_string();
        }
        self.pod.wait(id).await;
        self.pod.output(id)
    }

    async fn stop(self) {
        self.pod.stop().await;
    }
}

/// Says so when something of the host can be reached from the working directory.
fn look_around(loot: &str) -> String {
    format!(
        "[ -e ./{UP}{loot} ] && echo ESCAPED; [ -e /proc/self/cwd/{UP}{loot} ] && echo ESCAPED; pwd"
    )
}

#[tokio::test]
async fn no_working_directory_leads_out() {
    let target = Target::new().await;
    let loot = target.loot.to_string_lossy().into_owned();
    let mut reached = 0;
    for number in NUMBERS {
        for (kind, path) in [
            ("a", format!("/proc/self/fd/{number}")),
            ("b", format!("/proc/self/fd/{number}/{UP}")),
            ("c", format!("/proc/thread-self/fd/{number}/..")),
        ] {
            let id = format!("{kind}{number}");
            let cwd = [("/process/cwd", json!(path))];
            let output = target.attempt(&id, &look_around(&loot), &cwd).await;
            assert!(!output.contains("ESCAPED"), "{path}: {output}");
            reached += u32::from(output.contains("chdir to cwd"));
        }
    }
    assert!(
        reached > 0,
        "no attempt got as far as the working directory"
    );
    target.stop().await;
}

#[tokio::test]
async fn no_working_directory_of_an_exec_leads_out() {
    let target = Target::new().await;
    let loot = target.loot.to_string_lossy().into_owned();
    let pod = &target.pod;
    pod.launch(
        "c",
        &container("sleep 1000", &[]),
        &target.context("c"),
        pod.io("c"),
    )
    .await;
    for number in NUMBERS {
        let path = format!("/proc/self/fd/{number}");
        let output = exec_in(pod, number, &path, &["sh", "-c", &look_around(&loot)]).await;
        assert!(!output.contains("ESCAPED"), "{path}: {output}");
    }
    target.stop().await;
}

/// What an exec printed, or why it could not be started.
async fn exec_in(pod: &Pod, number: u32, cwd: &str, args: &[&str]) -> String {
    use std::io::Read;
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": cwd, "args": args,
        "env": ["PATH=/bin"]});
    let process = serde_json::from_value(process).expect("a process");
    let plan: ProcessPlan = cri::oci::compile_process(&process, None).expect("compiles");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let null = || std::fs::File::open("/dev/null").expect("opens").into();
    let copy = writer.try_clone().expect("copies").into();
    let stdio = ExecStdio::Streams([null(), writer.into(), copy]);
    match pod.shim.exec("c", &format!("e{number}"), plan, stdio).await {
        Err(error) => error.to_string(),
        Ok(handle) => {
            pod.shim.wait(&handle.process).await.expect("ends");
            let mut output = String::new();
            reader.read_to_string(&mut output).expect("utf-8");
            output
        }
    }
}

/// The program itself can be named through a descriptor: `..` from a directory of the host's leads
/// to the host's root, whatever the root of the process is.
#[tokio::test]
async fn no_program_of_the_host_is_executed_through_a_descriptor() {
    let target = Target::new().await;
    let loot = target.loot.to_string_lossy().into_owned();
    for number in NUMBERS {
        let program = format!("/proc/self/fd/{number}/{UP}{loot}");
        let args = [("/process/args", json!([program, "echo", "ESCAPED"]))];
        let output = target.attempt(&format!("p{number}"), "", &args).await;
        assert!(
            !output.contains("\nESCAPED") && !output.starts_with("ESCAPED"),
            "{program}: {output}"
        );
    }
    target.stop().await;
}

#[tokio::test]
async fn no_interpreter_of_the_host_is_executed_through_a_descriptor() {
    let target = Target::new().await;
    let loot = target.loot.to_string_lossy().into_owned();
    let rootfs = target.pod.rootfs();
    for number in NUMBERS {
        let script = rootfs.join(format!("bin/evil{number}"));
        let line = format!("#!/proc/self/fd/{number}/{UP}{loot} echo\n");
        write_program(&script, &line);
        let name = format!("/bin/evil{number}");
        let args = [("/process/args", json!([name]))];
        let output = target.attempt(&format!("i{number}"), "", &args).await;
        // The interpreter is a program that prints its arguments.
        assert!(!output.starts_with("/bin/evil"), "{name}: {output}");
    }
    target.stop().await;
}

#[tokio::test]
async fn a_container_gets_three_descriptors_however_many_the_shim_holds() {
    let pod = Pod::start().await;
    let clients: Vec<_> = (0..3).map(|n| format!("busy{n}")).collect();
    let mut ends = Vec::new();
    for id in &clients {
        pod.launch(
            id,
            &container("sleep 1000", &[]),
            &pod.context(id),
            pod.io(id),
        )
        .await;
        for _ in 0..4 {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            let attached = pod.shim.attach(id, None, Some(writer.into()), None).await;
            attached.expect("attaches");
            ends.push(reader);
        }
    }
    let list = "ls /proc/self/fd | tr '\\n' ' '";
    let (_, output) = pod.run("c", list, &[]).await;
    assert_eq!(output, "0 1 2 3 ", "3 is the listing's own");
    let (_, output) = pod.exec("busy0", "e", &["sh", "-c", list]).await;
    assert_eq!(output, "0 1 2 3 ");
    let (_, output) = pod.exec("busy0", "f", &["ls", "/proc/1/fd"]).await;
    assert_eq!(output, "0\n1\n2\n");
    pod.stop().await;
}
