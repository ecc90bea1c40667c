// SPDX-License-Identifier: Apache-2.0
//! A pod for one test: a directory, a shim, a root filesystem; gone when the test is.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cri::oci::{self, CompileContext, SandboxInput, spec};
use cri::shim_client::{
    ContainerIo, ExecStdio, ExitRecord, ProcessId, Programs, Shim, SpawnOptions,
};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use shim::plan::{CgroupJoin, ProcessPlan, RootFs};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 31] = [
    "sh", "cat", "ls", "id", "hostname", "sleep", "echo", "grep", "tty", "stty", "mount", "head",
    "tr", "touch", "readlink", "dd", "env", "wc", "mkdir", "ps", "kill", "stat", "unshare", "find",
    "rmdir", "umount", "su", "setpriv", "sg", "pwd", "true",
];

pub(crate) struct Pod {
    pub(crate) shim: Shim,
    pub(crate) dir: PathBuf,
    pub(crate) sandbox_pid: u32,
    root: tempfile::TempDir,
}

impl Pod {
    /// A pod whose sandbox runs, with new network and pid namespaces of the containers' own.
    pub(crate) async fn start() -> Pod {
        Pod::start_with(|_| {}).await
    }

    /// As `start`, with something else in the sandbox.
    pub(crate) async fn start_with(change: impl FnOnce(&mut SandboxInput)) -> Pod {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("pod");
        std::fs::create_dir(&dir).expect("creates");
        make_rootfs(&root.path().join("rootfs"));
        let programs = install(&root.path().join("bin"));
        let options = SpawnOptions {
            dir: dir.clone(),
            cgroup: CgroupJoin::default(),
        };
        let shim = Shim::spawn(&programs, options).await.expect("spawns");
        let mut input = SandboxInput {
            pause: programs.pause.clone(),
            netns: None,
            hostname: "pod".into(),
            shm_bytes: 1 << 20,
            ..SandboxInput::default()
        };
        change(&mut input);
        let plan = oci::sandbox_plan(&input).expect("plans");
        let sandbox = shim.start_sandbox(plan).await.expect("starts the sandbox");
        Pod {
            shim,
            dir,
            sandbox_pid: sandbox.pid,
            root,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.log"))
    }

    /// A context with an overlay of its own for `id`.
    pub(crate) fn context(&self, id: &str) -> CompileContext {
        let layer = |name: &str| {
            let path = self.path(&format!("{id}-{name}"));
            std::fs::create_dir_all(&path).expect("creates");
            path.to_string_lossy().into_owned()
        };
        CompileContext {
            rootfs: RootFs::Overlay {
                lower: vec![self.rootfs().to_string_lossy().into_owned()],
                upper: layer("upper"),
                work: layer("work"),
            },
            sandbox_binds: vec![("/dev/shm".into(), "/dev/shm".into())],
            ..CompileContext::default()
        }
    }

    pub(crate) fn io(&self, id: &str) -> ContainerIo {
        ContainerIo {
            log_path: Some(self.log(id).to_string_lossy().into_owned()),
            stdin: false,
            stdin_once: false,
        }
    }

    /// Creates and starts a container.
    pub(crate) async fn launch(
        &self,
        id: &str,
        spec: &Spec,
        context: &CompileContext,
        io: ContainerIo,
    ) -> u32 {
        let plan = oci::compile(spec, context).expect("compiles");
        let made = self.shim.create(id, plan, io).await.expect("creates");
        self.shim.start(id).await.expect("starts");
        made.pid
    }

    /// Starts a container with a shell script and nothing special.
    pub(crate) async fn start_shell(&self, id: &str, script: &str) -> u32 {
        let (spec, context) = (container(script, &[]), self.context(id));
        self.launch(id, &spec, &context, self.io(id)).await
    }

    /// Runs a shell script to its end; returns its exit and its log's text, without the prefixes.
    pub(crate) async fn run(
        &self,
        id: &str,
        script: &str,
        changes: &[(&str, Value)],
    ) -> (ExitRecord, String) {
        let spec = container(script, changes);
        self.launch(id, &spec, &self.context(id), self.io(id)).await;
        let record = self.wait(id).await;
        (record, self.output(id))
    }

    pub(crate) async fn wait(&self, id: &str) -> ExitRecord {
        let process = process(id);
        let wait = self.shim.wait(&process);
        let record = tokio::time::timeout(DEADLINE, wait).await;
        record.expect("ends in time").expect("is known")
    }

    /// Kills all of a container and waits for its end.
    pub(crate) async fn kill(&self, id: &str) -> ExitRecord {
        let killed = self.shim.signal(&process(id), 9, true).await;
        killed.expect("signals");
        self.wait(id).await
    }

    pub(crate) fn log_lines(&self, id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log(id)).expect("a log file");
        text.lines().map(str::to_owned).collect()
    }

    /// The text of the log, pieces joined.
    pub(crate) fn output(&self, id: &str) -> String {
        let mut output = String::new();
        for line in self.log_lines(id) {
            let mut parts = line.splitn(4, ' ').skip(2);
            let tag = parts.next().expect("a tag");
            output.push_str(parts.next().expect("text"));
            if tag == "F" {
                output.push('\n');
            }
        }
        output
    }

    /// Runs a command in a container; returns its exit and stdout.
    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> (ExitRecord, String) {
        self.execute(id, exec, process_plan(args)).await
    }

    /// As `exec`, with a plan.
    pub(crate) async fn execute(
        &self,
        id: &str,
        exec: &str,
        plan: ProcessPlan,
    ) -> (ExitRecord, String) {
        self.try_execute(id, exec, plan).await.expect("executes")
    }

    /// As `execute`, which may fail.
    pub(crate) async fn try_execute(
        &self,
        id: &str,
        exec: &str,
        plan: ProcessPlan,
    ) -> Result<(ExitRecord, String), String> {
        use std::io::Read;
        let null = || std::fs::File::open("/dev/null").expect("opens").into();
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let stdio = ExecStdio::Streams([null(), writer.into(), null()]);
        let started = self.shim.exec(id, exec, plan, stdio).await;
        let handle = started.map_err(|error| error.to_string())?;
        let wait = tokio::time::timeout(DEADLINE, self.shim.wait(&handle.process));
        let record = wait.await.expect("ends in time").expect("is known");
        let mut output = String::new();
        reader.read_to_string(&mut output).expect("utf-8");
        Ok((record, output))
    }

    pub(crate) async fn stop(self) {
        self.shim.shutdown().await.expect("shuts down");
        let gone = || !Path::new(&format!("/proc/{}", self.sandbox_pid)).exists();
        eventually("the sandbox is gone", gone).await;
    }
}

pub(crate) fn process(id: &str) -> ProcessId {
    ProcessId {
        container: id.into(),
        exec: None,
    }
}

/// A process of root in a container.
pub(crate) fn process_plan(args: &[&str]) -> shim::plan::ProcessPlan {
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
        "env": ["PATH=/bin"]});
    let process = serde_json::from_value(process).expect("a process");
    oci::compile_process(&process, None).expect("compiles")
}

/// The default spec with a shell script, and parts replaced: (JSON pointer, value).
pub(crate) fn container(script: &str, changes: &[(&str, Value)]) -> Spec {
    let mut spec = serde_json::to_value(spec::container_spec()).expect("serialises");
    spec["process"]["args"] = json!(["sh", "-c", script]);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        spec.pointer_mut(parent).expect("there")[key] = value.clone();
    }
    serde_json::from_value(spec).expect("a spec")
}

/// Waits for a condition, generously.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The runtime's own programs.
pub(crate) fn install(dir: &Path) -> Programs {
    let programs = Programs::install(dir).expect("installs");
    until_not_busy(&programs.shim);
    until_not_busy(&programs.pause);
    programs
}

pub(crate) fn copy_program(from: &str, to: &Path) {
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("copying {from}: {error}"));
    until_not_busy(to);
}

pub(crate) fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("writes");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("sets");
    until_not_busy(path);
}

/// To be called for a program that was just written. A process that another test is starting has a
/// copy of our descriptor until it executes, and what somebody can write to cannot be executed.
#[expect(unsafe_code, reason = "leases have no safe interface here")]
fn until_not_busy(path: &Path) {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path).expect("opens");
    // SAFETY: a valid descriptor and two numbers.
    let lease =
        |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    let start = Instant::now();
    // A read lease is given when nobody has the file open for writing (fcntl(2)).
    while lease(libc::F_RDLCK) != 0 {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
        assert!(start.elapsed() < DEADLINE, "{} is busy", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(lease(libc::F_UNLCK), 0);
}

pub(crate) fn make_rootfs(root: &Path) {
    for dir in ["bin", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(dir)).expect("creates");
    }
    copy_program(BUSYBOX, &root.join("bin/busybox"));
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("links");
    }
    let users = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), users).expect("writes");
}
