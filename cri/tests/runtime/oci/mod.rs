// SPDX-License-Identifier: Apache-2.0
//! The OCI commands, each in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use serde_json::{Value, json};

use crate::pod::{container, make_rootfs};

/// Arguments of one command, for this same test binary to run.
const ARGUMENTS: &str = "PODWRIGHT_TEST_OCI_ARGUMENTS";

/// Not a test of its own: runs a command when another test asks for it.
#[test]
fn command() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Vec<String> = serde_json::from_str(&arguments).expect("arguments");
    let code = cri::oci::cli::main(arguments.into_iter().map(Into::into));
    // The harness would turn any code into its own.
    let code =
        (0..=255u8).find(|number| format!("{code:?}") == format!("{:?}", ExitCode::from(*number)));
    std::process::exit(code.map_or(99, i32::from));
}

pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    pub(crate) id: String,
}

impl Bundle {
    pub(crate) fn new(script: &str, changes: &[(&str, Value)]) -> Bundle {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_rootfs(&dir.path().join("rootfs"));
        let id = format!("podwright-test-{:08x}", rand::random::<u32>());
        let spec = container(script, changes);
        let config = serde_json::to_vec(&spec).expect("serialises");
        std::fs::write(dir.path().join("config.json"), config).expect("writes");
        Bundle { dir, id }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn oci(&self, arguments: &[&str]) -> Output {
        let root = self.path("root");
        let mut all = vec!["podwright oci", "--root", root.to_str().expect("utf-8")];
        all.extend(arguments);
        let output = self.path("output");
        let file = std::fs::File::create(&output).expect("creates");
        // To a file: a pipe would stay open as long as the container.
        let status = Command::new(std::env::current_exe().expect("known"))
            .args(["--exact", "oci::command", "--nocapture", "--quiet"])
            .env(ARGUMENTS, json!(all).to_string())
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone().expect("clones"))
            .stderr(file)
            .status()
            .expect("runs");
        Output {
            status,
            stdout: std::fs::read(output).expect("reads"),
            stderr: Vec::new(),
        }
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.oci(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    }

    pub(crate) fn status(&self) -> String {
        let text = self.ok(&["state", &self.id]);
        let json = text.find('{').expect("an object");
        let state: Value = serde_json::from_str(text[json..].trim()).expect("json");
        state["status"].as_str().expect("a status").to_owned()
    }

    /// The JSON object in what a command prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> String {
        let text = self.ok(arguments);
        let start = text.find('{').expect("an object");
        let end = text.rfind('}').expect("an end");
        text[start..=end].to_owned()
    }

    /// No state, no cgroup, no process of this container.
    pub(crate) fn nothing_left(&self) {
        assert!(!self.path("root").join(&self.id).exists(), "its state");
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .expect("lists")
            .flatten()
        {
            let cgroup = hierarchy.path().join(&self.id);
            assert!(!cgroup.exists(), "{}", cgroup.display());
        }
        assert!(!Path::new("/sys/fs/cgroup").join(&self.id).exists());
    }

    pub(crate) fn bundle(&self) -> &str {
        self.dir.path().to_str().expect("utf-8")
    }

    pub(crate) fn until(&self, status: &str) {
        let start = std::time::Instant::now();
        while self.status() != status {
            assert!(start.elapsed() < crate::pod::DEADLINE, "never {status}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.oci(&["delete", "--force", &self.id]);
    }
}

#[test]
fn a_container_lives_through_all_its_states() {
    let bundle = Bundle::new("echo ran > /tmp/out; sleep 1000", &[]);
    let pid_file = bundle.path("pid");
    let pid_file = pid_file.to_str().expect("utf-8");
    bundle.ok(&[
        "create",
        "--bundle",
        bundle.bundle(),
        "--pid-file",
        pid_file,
        &bundle.id,
    ]);
    assert_eq!(bundle.status(), "created");
    let pid = std::fs::read_to_string(pid_file).expect("reads");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert!(
        !bundle.path("rootfs/tmp/out").exists(),
        "it waits for start"
    );
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.oci(&["start", &bundle.id]).status.code(), Some(1));
    assert_eq!(bundle.oci(&["delete", &bundle.id]).status.code(), Some(1));
    let exec = bundle.oci(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "cat /proc/self/cgroup; exit 9",
    ]);
    assert_eq!(exec.status.code(), Some(9));
    assert!(bundle.ok(&["list", "-q"]).contains(&bundle.id));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(bundle.oci(&["state", &bundle.id]).status.code(), Some(1));
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn run_returns_the_exit_code_and_leaves_nothing() {
    let bundle = Bundle::new("echo out; exit 5", &[]);
    let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("out\n"));
    assert!(!bundle.path("root").join(&bundle.id).exists());
    let cgroup = Path::new("/sys/fs/cgroup/memory").join(&bundle.id);
    assert!(!cgroup.exists() && !Path::new("/sys/fs/cgroup").join(&bundle.id).exists());
}

#[test]
fn what_cannot_be_created_is_said_and_cleaned_up() {
    let bundle = Bundle::new("", &[("/process/args", json!(["nosuch"]))]);
    let log = bundle.path("log");
    let log_text = log.to_str().expect("utf-8");
    let arguments = [
        "--log",
        log_text,
        "--log-format",
        "json",
        "create",
        "-b",
        bundle.bundle(),
    ];
    let output = bundle.oci(&[&arguments[..], &[&bundle.id]].concat());
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_slice(&std::fs::read(log).expect("reads")).expect("json");
    let message = line["msg"].as_str().expect("a message");
    assert!(message.contains("exec: \"nosuch\": executable file not found in $PATH"));
    assert!(!bundle.path("root").join(&bundle.id).exists());
}
