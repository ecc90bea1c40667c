// SPDX-License-Identifier: Apache-2.0
//! Bundles that cannot become containers: runc's exit codes, an error that names what is wrong, and
//! nothing left.

use serde_json::{Value, json};

use crate::oci::Bundle;
use crate::pod::write_program;

/// What `create` and `run` say of a bundle; both fail with code 1.
fn refusal(bundle: &Bundle) -> String {
    let mut said = String::new();
    for verb in ["create", "run"] {
        let output = bundle.oci(&[verb, "--bundle", bundle.bundle(), &bundle.id]);
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        bundle.nothing_left();
    }
    said
}

fn refused(changes: &[(&str, Value)], words: &[&str]) {
    let bundle = Bundle::new("", changes);
    let said = refusal(&bundle);
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

#[test]
fn a_config_that_is_no_json_or_no_spec() {
    for (text, words) in [
        ("{", "EOF while parsing"),
        ("[]", "it is missing"),
        (r#"{"ociVersion": 7}"#, "ociVersion"),
        (
            r#"{"ociVersion": "1.2.0", "process": {"cwd": 5}}"#,
            "expected",
        ),
    ] {
        let bundle = Bundle::new("", &[]);
        std::fs::write(bundle.path("config.json"), text).expect("writes");
        let said = refusal(&bundle);
        assert!(
            said.contains("config.json") && said.contains(words),
            "{words}: {said}"
        );
    }
    let bundle = Bundle::new("", &[]);
    std::fs::remove_file(bundle.path("config.json")).expect("removes");
    let said = refusal(&bundle).to_lowercase();
    assert!(said.contains("config.json not found"), "{said}");
}

#[test]
fn a_root_that_is_not_there() {
    for path in ["nosuch", "config.json", ""] {
        let bundle = Bundle::new("", &[("/root/path", json!(path))]);
        let said = refusal(&bundle);
        assert!(said.contains("root.path"), "{path:?}: {said}");
    }
}

#[test]
fn a_namespace_path_that_is_no_namespace() {
    for (kind, path, reason) in [
        ("network", "/dev/null", "is no namespace"),
        ("network", "/proc/self/ns/ipc", "ipc"),
        ("ipc", "/nosuch", "no such file or directory"),
        ("pid", "/dev/null", "is no namespace"),
    ] {
        let namespaces = json!([{"type": "mount"}, {"type": kind, "path": path}]);
        let changes = [("/linux/namespaces", namespaces), ("/mounts", json!([]))];
        let field = format!("linux.namespaces[{kind}]");
        refused(&changes, &[&field, path, reason]);
    }
}

#[test]
fn a_cgroup_that_cannot_be_made() {
    // No directory can be made below a file; v2 already fails to enable controllers there.
    let changes = [("/linux/cgroupsPath", json!("/cgroup.procs/podwright-test"))];
    refused(&changes, &["cgroup", "/cgroup.procs/", "not a directory"]);
}

#[test]
fn a_program_that_is_not_there_or_cannot_run() {
    for (program, words) in [
        (
            "nosuch",
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            "/bin/nosuch",
            "exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory",
        ),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": permission denied"),
        (
            "/etc/passwd/x",
            "exec: \"/etc/passwd/x\": stat /etc/passwd/x: no such file or directory",
        ),
    ] {
        refused(&[("/process/args", json!([program]))], &[words]);
    }
    let bundle = Bundle::new("", &[("/process/args", json!(["/bin/broken"]))]);
    let broken = bundle.path("rootfs/bin/broken");
    write_program(&broken, "no program");
    let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("exec /bin/broken: exec format error"),
        "{said}"
    );
    bundle.nothing_left();
}

/// As runc does: a profile may name calls that another kernel has.
#[test]
fn a_seccomp_call_that_nobody_knows_is_passed_over() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["nosuchcall"], "action": "SCMP_ACT_ERRNO"}],
    });
    let bundle = Bundle::new("exit 3", &[("/linux/seccomp", profile)]);
    let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    bundle.nothing_left();
}

#[test]
fn an_exec_that_cannot_start() {
    let bundle = Bundle::new("sleep 1000", &[]);
    bundle.ok(&["run", "--detach", "--bundle", bundle.bundle(), &bundle.id]);
    for (program, words) in [
        ("nosuch", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "permission denied"),
    ] {
        let output = bundle.oci(&["exec", &bundle.id, program]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(255), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(bundle.status(), "running");
}

/// Whether a program may be executed is asked with the capabilities that it will have.
#[test]
fn a_program_of_another_user_runs_with_the_capability_to() {
    let all = json!(["CAP_DAC_OVERRIDE"]);
    let sets = json!({"bounding": all, "effective": all, "permitted": all,
        "inheritable": all, "ambient": all});
    for (sets, code) in [(sets, 0), (json!({}), 1)] {
        let user = json!({"uid": 1000, "gid": 1000});
        let changes = [
            ("/process/user", user),
            ("/process/capabilities", sets),
            ("/process/args", json!(["/own/sh", "-c", "exit 0"])),
        ];
        let bundle = Bundle::new("", &changes);
        let own = bundle.path("rootfs/own");
        std::fs::create_dir(&own).expect("creates");
        std::fs::copy(bundle.path("rootfs/bin/busybox"), own.join("sh")).expect("copies");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o744);
        std::fs::set_permissions(own.join("sh"), mode).expect("changes");
        let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}
