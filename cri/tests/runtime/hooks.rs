// SPDX-License-Identifier: Apache-2.0
//! Hooks of all six kinds: when they run, where, and what they are told.

use std::path::Path;

use serde_json::{Value, json};

use crate::oci::{Bundle, wait_for};
use crate::pod::{Pod, container, write_program};

/// In the order of a container's life.
const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that runs a script of this bundle's shell, as the host sees it or as the container does.
fn hook(bundle: &Bundle, point: &str, script: &str) -> Value {
    let busybox = match point {
        "startContainer" => "/bin/busybox".into(),
        _ => bundle.path("rootfs/bin/busybox").display().to_string(),
    };
    let env = [format!("B={}", bundle.bundle()), "PATH=/bin".into()];
    let script = format!("b() {{ {busybox} \"$@\"; }}; {script}");
    json!({"path": busybox, "args": ["sh", "-c", script], "env": env, "timeout": 20})
}

/// Adds hooks and a name to a bundle's config.json.
fn set_hooks(bundle: &Bundle, hooks: &[(&str, Value)]) {
    let path = bundle.path("config.json");
    let text = std::fs::read(&path).expect("reads");
    let mut spec: Value = serde_json::from_slice(&text).expect("json");
    for (point, hook) in hooks {
        spec["hooks"][*point] = json!([hook]);
    }
    spec["annotations"] = json!({"a": "note"});
    std::fs::write(path, spec.to_string()).expect("writes");
}

fn text(path: &Path) -> String {
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

fn state(bundle: &Bundle, point: &str) -> Value {
    let dir = if point == "startContainer" {
        "rootfs/tmp"
    } else {
        ""
    };
    let path = bundle.path(dir).join(format!("{point}.state"));
    serde_json::from_str(&text(&path)).expect("json")
}

#[test]
fn each_hook_runs_at_its_moment_in_its_namespace_with_the_state() {
    let bundle = Bundle::new(
        "echo ran > /tmp/ran; grep -c ' /tmp/hooked tmpfs' /proc/mounts > /tmp/hooked.seen; sleep 1000",
        &[],
    );
    let record = |point: &str, more: &str| {
        let dir = if point == "startContainer" {
            "/tmp"
        } else {
            "$B"
        };
        let script = format!(
            "b cat > {dir}/{point}.state; b readlink /proc/self/ns/mnt > {dir}/{point}.ns; {more}"
        );
        (point.to_owned(), hook(&bundle, point, &script))
    };
    let mount = "b mkdir $B/rootfs/tmp/hooked && b mount -t tmpfs x $B/rootfs/tmp/hooked \
        && b touch $B/rootfs/tmp/hooked/file";
    let hooks = [
        record("prestart", "b test ! -e $B/createRuntime.state"),
        record("createRuntime", "b test -e $B/prestart.state"),
        record(
            "createContainer",
            &format!("b test -e $B/createRuntime.state && {mount}"),
        ),
        record(
            "startContainer",
            "b test ! -e /tmp/ran && b test -e /tmp/hooked/file",
        ),
        record("poststart", "b test -e $B/rootfs/tmp/startContainer.state"),
        record("poststop", "b test -e $B/poststart.state"),
    ];
    let hooks: Vec<_> = hooks.iter().map(|(p, h)| (p.as_str(), h.clone())).collect();
    set_hooks(&bundle, &hooks);
    bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
    let pid: Value = serde_json::from_str(&bundle.json(&["state", &bundle.id])).expect("json");
    let pid = pid["pid"].clone();
    for absent in ["rootfs/tmp/startContainer.state", "poststart.state"] {
        assert!(!bundle.path(absent).exists(), "{absent} before start");
    }
    bundle.ok(&["start", &bundle.id]);
    assert!(!bundle.path("poststop.state").exists());
    let until = || text(&bundle.path("rootfs/tmp/hooked.seen"));
    let start = std::time::Instant::now();
    while !bundle.path("rootfs/tmp/hooked.seen").exists() || until().is_empty() {
        assert!(
            start.elapsed() < crate::pod::DEADLINE,
            "the container never ran"
        );
        std::thread::yield_now();
    }
    assert_eq!(
        until(),
        "1",
        "the container sees what createContainer mounted"
    );
    let inside = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("runs");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);

    let own = std::fs::read_link("/proc/self/ns/mnt").expect("ours");
    let expected = [
        ("creating", Some(pid.clone()), &own),
        ("creating", Some(pid.clone()), &own),
        ("creating", Some(json!(1)), &inside),
        ("created", Some(json!(1)), &inside),
        ("running", Some(pid), &own),
        ("stopped", None, &own),
    ];
    for (point, (status, pid, namespace)) in POINTS.into_iter().zip(expected) {
        let state = state(&bundle, point);
        assert_eq!(state["ociVersion"], "1.2.0", "{point}");
        assert_eq!(state["id"], json!(bundle.id), "{point}");
        assert_eq!(state["status"], status, "{point}");
        assert_eq!(state.get("pid"), pid.as_ref(), "{point}");
        assert_eq!(state["bundle"], bundle.bundle(), "{point}");
        assert_eq!(state["annotations"], json!({"a": "note"}), "{point}");
        let dir = if point == "startContainer" {
            "rootfs/tmp"
        } else {
            ""
        };
        let seen = text(&bundle.path(dir).join(format!("{point}.ns")));
        assert_eq!(seen, namespace.to_string_lossy(), "{point}");
    }
}

#[test]
fn a_hook_that_fails_is_named_and_nothing_is_left() {
    for point in &POINTS[..5] {
        let bundle = Bundle::new("sleep 1000", &[]);
        let failing = hook(&bundle, point, "echo why >&2; exit 3");
        let stopped = hook(&bundle, "poststop", "b cat > $B/poststop.state");
        set_hooks(&bundle, &[(point, failing), ("poststop", stopped)]);
        let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("error running {point} hook #0: ");
        assert!(
            said.contains(&expected) && said.contains("busybox: exit status 3, output: why"),
            "{said}"
        );
        assert_eq!(state(&bundle, "poststop")["status"], "stopped");
        bundle.nothing_left();
    }
}

#[test]
fn start_tells_what_failed_after_it() {
    let bundle = Bundle::new("", &[]);
    set_hooks(
        &bundle,
        &[(
            "startContainer",
            hook(&bundle, "startContainer", "echo no; exit 4"),
        )],
    );
    bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
    let output = bundle.oci(&["start", &bundle.id]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("startContainer hook #0: /bin/busybox: exit status 4, output: no"),
        "{said}"
    );
    bundle.until("stopped");

    let bundle = Bundle::new("", &[("/process/args", json!(["/bin/broken"]))]);
    let broken = bundle.path("rootfs/bin/broken");
    write_program(&broken, "\x7fELF");
    bundle.ok(&["create", "--bundle", bundle.bundle(), &bundle.id]);
    let output = bundle.oci(&["start", &bundle.id]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("exec /bin/broken: exec format error"),
        "{said}"
    );
}

/// A hook inside the container is not freer than the container's process.
#[test]
fn a_start_container_hook_is_confined_like_the_process() {
    let bundle = Bundle::new(
        "sleep 1000",
        &[("/process/user", json!({"uid": 1000, "gid": 1000}))],
    );
    let look = "b id -u > /dev/stdout; b grep CapEff: /proc/self/status; exit 1";
    set_hooks(
        &bundle,
        &[("startContainer", hook(&bundle, "startContainer", look))],
    );
    let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("output: 1000\\nCapEff:\\t0000000000000000"),
        "{said}"
    );
}

/// Hooks of a container in a pod: each writes down what it is told, and then runs a script.
fn pod_hooks(pod: &Pod, dir: &Path, points: &[(&str, &str)]) -> Value {
    let busybox = pod.rootfs().join("bin/busybox").display().to_string();
    let dir = dir.display();
    let mut hooks = json!({});
    for (point, script) in points {
        let script = format!(
            "b() {{ {busybox} \"$@\"; }}; cd {dir}; b cat >{point}.new; {script}; b mv {point}.new {point}"
        );
        hooks[*point] = json!([{"path": busybox, "args": ["sh", "-c", script], "env": ["A=b"]}]);
    }
    hooks
}

/// Starts a container with hooks, in a directory of its own.
async fn start_with_hooks(pod: &Pod, id: &str, dir: &Path, hooks: Value) {
    let spec = container("exit 3", &[("/hooks", hooks)]);
    let mut context = pod.context(id);
    context.id = id.to_owned();
    context.bundle = dir.display().to_string();
    let plan = cri::oci::compile(&spec, &context).expect("compiles");
    let root = pod.path(&format!("{id}-upper"));
    cri::oci::write_bundle(dir, &spec, &root, &plan.hooks).expect("writes");
    let made = pod.shim.create(id, plan, pod.io(id)).await;
    made.expect("creates");
    pod.shim.start(id).await.expect("starts");
}

#[tokio::test]
async fn hooks_in_a_pod_find_their_bundle_and_follow_the_end() {
    let pod = Pod::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let points = [
        ("createRuntime", "b cp config.json seen.json"),
        ("poststart", "true"),
        ("poststop", "true"),
    ];
    let hooks = pod_hooks(&pod, dir.path(), &points);
    start_with_hooks(&pod, "c", dir.path(), hooks).await;
    assert_eq!(pod.wait("c").await.code, 3);
    wait_for("poststop has run", || dir.path().join("poststop").exists());
    for (point, status) in [
        ("createRuntime", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let state: Value = serde_json::from_str(&text(&dir.path().join(point))).expect("json");
        assert_eq!(state["status"], status);
        assert_eq!(state["bundle"], json!(dir.path()));
        assert_eq!(state["pid"].is_u64(), point != "poststop");
    }
    let seen: Value = serde_json::from_str(&text(&dir.path().join("seen.json"))).expect("json");
    assert_eq!(seen["root"]["path"], json!(pod.path("c-upper")));
    assert!(seen["hooks"]["poststop"].is_array() && seen["process"]["env"].is_array());
    pod.stop().await;
}

#[tokio::test]
async fn a_poststop_hook_holds_up_nobody_and_ends_with_the_shim() {
    let pod = Pod::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let points = [(
        "poststop",
        "echo $$ >pid.new; b mv pid.new pid; b sleep 1000",
    )];
    let hooks = pod_hooks(&pod, dir.path(), &points);
    start_with_hooks(&pod, "c", dir.path(), hooks).await;
    assert_eq!(pod.wait("c").await.code, 3);
    let pid = dir.path().join("pid");
    wait_for("the hook runs", || pid.exists());
    let (record, output) = pod.run("other", "echo fine", &[]).await;
    assert_eq!((record.code, output.as_str()), (0, "fine\n"));
    pod.stop().await;
    let process = Path::new("/proc").join(text(&pid)).join("stat");
    let gone = || std::fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
    wait_for("the hook has ended", gone);
}
