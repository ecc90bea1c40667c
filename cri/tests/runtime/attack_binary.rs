// SPDX-License-Identifier: Apache-2.0
//! Attacks on the runtime's own executables through /proc/<pid>/exe (CVE-2019-5736): the image's
//! program is the runtime itself, and somebody in the container tries to write to it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::oci::Bundle;
use crate::pod::{Pod, container, write_program};

/// Makes this test executable, started in a container as "the runtime", stay.
const STAY: &str = "PODWRIGHT_TEST_STAY";

/// Not a test of its own: what the attacks run when they run the runtime.
#[test]
fn stay() {
    if std::env::var_os(STAY).is_some() {
        println!("inside");
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

/// Finds a process that runs none of the container's own programs, opens its executable, kills it,
/// and tries to write; says how that went. One that has ended in between is passed over: a failing
/// `exec 3<` would end the shell.
const WRITER: &str = r#"
while :; do for dir in /proc/[0-9]*; do
  case "$(readlink $dir/exe)" in */busybox|"") continue;; esac
  {
    (echo attack >/proc/self/fd/3) 2>&1 && echo WRITTEN
    kill -9 ${dir#/proc/}
    for i in 1 2 3 4 5 6 7 8 9; do (echo attack >/proc/self/fd/3) 2>&1 && echo WRITTEN; done
    echo done; exit
  } 3<$dir/exe
done; done"#;

/// Programs that are the runtime by another name.
fn make_programs(rootfs: &Path) -> [&'static str; 3] {
    symlink("/proc/self/exe", rootfs.join("bin/link")).expect("links");
    symlink("/proc/thread-self/exe", rootfs.join("bin/thread")).expect("links");
    let script = rootfs.join("bin/script");
    write_program(&script, "#!/proc/self/exe\n");
    ["/bin/link", "/bin/thread", "/bin/script"]
}

/// A script's own name becomes the first argument, and no shim lives in a file: it may end before
/// anybody has seen it.
fn stays(program: &str) -> bool {
    program != "/bin/script"
}

fn check(output: &str) {
    assert!(
        output.contains("done") && !output.contains("WRITTEN"),
        "{output}"
    );
    assert!(output.contains("Read-only file system"), "{output}");
}

#[tokio::test]
async fn the_shim_that_executes_cannot_be_written() {
    let pod = Pod::start().await;
    let programs = make_programs(&pod.rootfs());
    let before = shim_programs(&pod);
    for (number, program) in programs.into_iter().enumerate() {
        let id = format!("c{number}");
        pod.launch(&id, &container(WRITER, &[]), &pod.context(&id), pod.io(&id))
            .await;
        // With a directory as argument the shim would even stay, as a shim of the container's own.
        let exec = exec_anything(&pod, &id, &[program, "/tmp"]).await;
        if exec && stays(program) {
            pod.wait(&id).await;
            check(&pod.output(&id));
        }
    }
    assert_eq!(shim_programs(&pod), before);
    pod.stop().await;
}

#[tokio::test]
async fn the_shim_that_creates_cannot_be_written() {
    let pod = Pod::start().await;
    let programs = make_programs(&pod.rootfs());
    let before = shim_programs(&pod);
    for (number, program) in programs.into_iter().enumerate() {
        let id = format!("c{number}");
        let writer = format!("w{number}");
        let first = pod
            .launch(
                &writer,
                &container(WRITER, &[]),
                &pod.context(&writer),
                pod.io(&writer),
            )
            .await;
        let path = format!("/proc/{first}/ns/pid");
        let changes = [
            ("/process/args", json!([program, "/tmp"])),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "pid", "path": path}]),
            ),
        ];
        let plan = cri::oci::compile(&container("", &changes), &pod.context(&id));
        let made = pod
            .shim
            .create(&id, plan.expect("compiles"), pod.io(&id))
            .await;
        if made.is_ok() && pod.shim.start(&id).await.is_ok() && stays(program) {
            pod.wait(&writer).await;
            check(&pod.output(&writer));
        }
    }
    assert_eq!(shim_programs(&pod), before);
    pod.stop().await;
}

#[tokio::test]
async fn pause_cannot_be_written_by_a_pod_that_shares_its_processes() {
    let pod = Pod::start().await;
    let path = format!("/proc/{}/ns/pid", pod.sandbox_pid);
    let join = [(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "pid", "path": path}]),
    )];
    let before = shim_programs(&pod);
    // The sandbox of this pod has a pid namespace of its own: pause is its first process.
    let script = "(echo attack >/proc/1/exe) 2>&1 && echo WRITTEN; (exec 3</proc/1/exe; echo attack >/proc/self/fd/3) 2>&1 && echo WRITTEN; echo done";
    let (_, output) = pod.run("c", script, &join).await;
    assert!(
        output.contains("done") && !output.contains("WRITTEN"),
        "{output}"
    );
    assert_eq!(shim_programs(&pod), before);
    pod.stop().await;
}

/// Starts a process in a container; whether it could be executed.
async fn exec_anything(pod: &Pod, id: &str, args: &[&str]) -> bool {
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": []});
    let process = serde_json::from_value(process).expect("a process");
    let plan = cri::oci::compile_process(&process, None).expect("compiles");
    let null = || std::fs::File::open("/dev/null").expect("opens").into();
    let stdio = cri::shim_client::ExecStdio::Streams([null(), null(), null()]);
    pod.shim.exec(id, "attack", plan, stdio).await.is_ok()
}

/// The bytes of the runtime's programs.
fn shim_programs(pod: &Pod) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("lists").path();
        let bytes = std::fs::read(&path).expect("reads");
        (path, bytes)
    };
    let mut all: Vec<_> = std::fs::read_dir(pod.path("bin"))
        .expect("lists")
        .map(read)
        .collect();
    all.sort();
    all
}

/// Arguments that make this executable call [`stay`].
const STAY_ARGUMENTS: [&str; 3] = ["--exact", "attack_binary::stay", "--nocapture"];

fn with_arguments(program: &str) -> Value {
    let mut args = vec![program];
    // A script's own name comes first, and would be a filter that matches no test.
    args.extend(STAY_ARGUMENTS);
    json!(args)
}

fn own_digest() -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(&std::fs::read("/proc/self/exe").expect("reads"));
    hasher.finish()
}

/// `create` and `run`: the first process is the runtime, an exec is the writer.
#[test]
fn the_oci_commands_that_create_cannot_be_written() {
    let before = own_digest();
    let env = json!(["PATH=/bin", format!("{STAY}=1")]);
    for program in ["/bin/link", "/bin/thread"] {
        let changes = [
            ("/process/args", with_arguments(program)),
            ("/process/env", env.clone()),
        ];
        let bundle = Bundle::new("", &changes);
        make_programs(&bundle.path("rootfs"));
        bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
        bundle.ok(&["start", &bundle.id]);
        let output = bundle.oci(&["exec", &bundle.id, "sh", "-c", WRITE_TO_FIRST]);
        check(&text(&output));
        bundle.oci(&["delete", "--force", &bundle.id]);
    }
    assert_eq!(own_digest(), before);
}

/// As [`WRITER`], where the first process is the runtime: it need not die, since a read-only mount
/// is noticed before a running program.
const WRITE_TO_FIRST: &str = "exec 3</proc/1/exe; (echo attack >/proc/self/fd/3) 2>&1 && echo WRITTEN; (echo attack >/proc/1/exe) 2>&1 && echo WRITTEN; echo done";

#[test]
fn the_oci_command_that_executes_cannot_be_written() {
    let before = own_digest();
    let bundle = Bundle::new(&format!("({WRITER}) >/tmp/out 2>&1; sleep 1000"), &[]);
    make_programs(&bundle.path("rootfs"));
    bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    let stay = format!("{STAY}=1");
    let mut exec = vec!["exec", "--env", &stay, &bundle.id, "/bin/link"];
    exec.extend(STAY_ARGUMENTS);
    let killed = bundle.oci(&exec);
    assert_eq!(killed.status.code(), Some(137), "{}", text(&killed));
    let out = bundle.path("rootfs/tmp/out");
    let start = std::time::Instant::now();
    let mut output = String::new();
    while !output.contains("done") {
        assert!(
            start.elapsed() < crate::pod::DEADLINE,
            "never done: {output}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        output = std::fs::read_to_string(&out).unwrap_or_default();
    }
    check(&output);
    assert_eq!(own_digest(), before);
}

/// The program is bound over a file of its own, or its file or its mount is gone: none of these stops a
/// command, or makes the program writable.
#[test]
fn the_oci_commands_run_from_wherever_their_program_is() {
    const BOUND: &str = "touch $PLACE; mount --bind $EXE $PLACE; exec $PLACE";
    const REMOVED: &str = "cp $EXE $PLACE; exec 3<$PLACE; rm $PLACE; exec /proc/self/fd/3";
    let before = own_digest();
    const DETACHED: &str =
        "mkdir $PLACE; mount -t tmpfs none $PLACE; cp $EXE $PLACE/p; exec 3<$PLACE/p
        umount -l $PLACE; exec /proc/self/fd/3";
    for (start, expected) in [
        (BOUND, "Read-only file system"),
        (REMOVED, "Read-only file system"),
        (DETACHED, "Text file busy"),
    ] {
        let changes = [
            ("/process/args", with_arguments("/bin/link")),
            ("/process/env", json!(["PATH=/bin", format!("{STAY}=1")])),
        ];
        let bundle = Bundle::new("", &changes);
        make_programs(&bundle.path("rootfs"));
        let create = ["create", "--bundle", bundle.bundle(), &bundle.id];
        let like = bundle.command(&create);
        let mut command = std::process::Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-ec", start])
            .env("EXE", like.get_program())
            .env("PLACE", bundle.path("program"))
            .stdin(std::process::Stdio::null());
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = bundle.finish(&mut command);
        assert!(output.status.success(), "{start}: {}", text(&output));
        bundle.ok(&["start", &bundle.id]);
        let output = bundle.oci(&["exec", &bundle.id, "sh", "-c", WRITE_TO_FIRST]);
        let said = text(&output);
        assert!(said.contains("done") && !said.contains("WRITTEN"), "{said}");
        assert!(said.contains(expected), "{said}");
        bundle.oci(&["delete", "--force", &bundle.id]);
        if start == BOUND {
            assert_eq!(own_digest(), before);
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Between clone and exec the new process is a copy of the runtime, seen by everybody in its pid
/// namespace. Nothing behind its /proc entry may be opened.
#[tokio::test]
async fn a_process_that_is_being_set_up_cannot_be_looked_into() {
    let pod = Pod::start().await;
    let join = |pid: u32| json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{pid}/ns/pid")}]);
    let first = pod
        .launch(
            "c",
            &container("sleep 1000", &[]),
            &pod.context("c"),
            pod.io("c"),
        )
        .await;
    let spaces = [("/linux/namespaces", join(first))];
    // Created, not started: it waits at the gate.
    let plan = cri::oci::compile(&container("sleep 1000", &spaces), &pod.context("d"));
    let made = pod
        .shim
        .create("d", plan.expect("compiles"), pod.io("d"))
        .await;
    let waiting = made.expect("creates").pid;
    assert!(Path::new(&format!("/proc/{waiting}")).exists());
    let script = r#"for dir in /proc/[0-9]*; do
        [ "$(cat $dir/comm)" = podwright-shim ] || continue
        echo found
        for f in exe cwd root fd/0 fd/3 fd/4 fd/5; do readlink $dir/$f && echo REACHED $f; done
        for f in environ maps mem auxv; do head -c 1 $dir/$f >/dev/null && echo REACHED $f; done
        done 2>/dev/null"#;
    for (name, user) in [
        ("r", json!({"uid": 0, "gid": 0})),
        ("u", json!({"uid": 1000, "gid": 1000})),
    ] {
        let changes = [("/linux/namespaces", join(first)), ("/process/user", user)];
        let (_, output) = pod.run(name, script, &changes).await;
        assert_eq!(output, "found\n", "{name}");
    }
    pod.stop().await;
}
