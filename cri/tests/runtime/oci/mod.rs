// SPDX-License-Identifier: Apache-2.0
//! The OCI commands, each in a process of its own.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};

use serde_json::{Value, json};

use crate::pod::{container, make_rootfs};

mod bundle;
mod descriptors;
mod documents;
mod exec;
mod joined;
mod lifecycle;
mod limits;
mod outside;
mod pause;
mod run;
mod show;
mod systemd;
mod terminal;

/// Arguments of one command, for this same test binary to run.
const ARGUMENTS: &str = "PODWRIGHT_TEST_OCI_ARGUMENTS";

/// With arguments in its environment, this binary is the command line. That is decided before the
/// harness starts: its threads would get the signals that are meant for the command.
#[expect(unsafe_code, reason = "the linker's name for what runs before main")]
#[unsafe(link_section = ".init_array")]
#[used]
static COMMAND: extern "C" fn() = command;

extern "C" fn command() {
    // The command's launcher, which is this binary again.
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments
        .first()
        .is_some_and(|name| name == cri::oci::cli::NAME)
    {
        leave(cri::oci::cli::main(arguments.into_iter()));
    }
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Vec<String> = serde_json::from_str(&arguments).expect("arguments");
    leave(cri::oci::cli::main(arguments.into_iter().map(Into::into)));
}

fn leave(code: ExitCode) -> ! {
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

    /// One command, still to be started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let root = self.path("root");
        let mut all = vec!["podwright oci", "--root", root.to_str().expect("utf-8")];
        all.extend(arguments);
        let mut command = Command::new(std::env::current_exe().expect("known"));
        command.env(ARGUMENTS, json!(all).to_string());
        // What the harness itself may have been started with.
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        command.stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn oci(&self, arguments: &[&str]) -> Output {
        self.finish(&mut self.command(arguments))
    }

    /// Runs a command to its end; both of its streams are in `stdout`.
    pub(crate) fn finish(&self, command: &mut Command) -> Output {
        let output = self.path(&format!("output-{:08x}", rand::random::<u32>()));
        let file = std::fs::File::create(&output).expect("creates");
        // To a file: a pipe would stay open as long as the container.
        let status = command
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

    /// A command that has to fail with this code; what it says.
    pub(crate) fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.oci(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    /// Creates and starts it.
    pub(crate) fn started(self) -> Bundle {
        self.ok(&["create", "-b", self.bundle(), &self.id]);
        self.ok(&["start", &self.id]);
        self
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.json(&["state", &self.id])).expect("json")
    }

    /// Waits until the container has made a file, which it does by renaming: it is whole then.
    pub(crate) fn file(&self, name: &str) -> String {
        let path = self.path("rootfs/tmp").join(name);
        wait_for(name, || path.exists());
        std::fs::read_to_string(path).expect("utf-8")
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

    /// No state, cgroup, mount or process of this container.
    pub(crate) fn nothing_left(&self) {
        assert!(!self.path("root").join(&self.id).exists(), "its state");
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("lists");
        let hierarchies = hierarchies.flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
            let cgroup = hierarchy.join(&self.id);
            assert!(!cgroup.exists(), "{}", cgroup.display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
        assert!(!mounts.contains(self.bundle()), "{mounts}");
        // One that has been killed, or that sees that its parent was, takes a moment to go.
        wait_for("its processes are gone", || !self.has_process());
    }

    /// Whether a process still has the arguments of one of our commands.
    fn has_process(&self) -> bool {
        let mut entries = std::fs::read_dir("/proc").expect("lists").flatten();
        entries.any(|entry| {
            let environment = std::fs::read(entry.path().join("environ"));
            let environment = environment.unwrap_or_default();
            let id = self.id.as_bytes();
            environment.windows(id.len()).any(|window| window == id)
        })
    }

    pub(crate) fn bundle(&self) -> &str {
        self.dir.path().to_str().expect("utf-8")
    }

    pub(crate) fn until(&self, status: &str) {
        wait_for(status, || self.status() == status);
    }
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < crate::pod::DEADLINE, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.oci(&["delete", "--force", &self.id]);
    }
}
