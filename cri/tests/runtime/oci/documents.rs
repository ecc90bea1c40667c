// SPDX-License-Identifier: Apache-2.0
//! spec, features, version and help: what others read.

use serde_json::Value;

use super::Bundle;

#[test]
fn spec_writes_a_bundle_that_runs_and_never_over_another() {
    let bundle = Bundle::new("true", &[]);
    let said = bundle.refused(1, &["spec", "-b", bundle.bundle()]);
    assert!(said.contains("exists. Remove it first"), "{said}");
    let path = bundle.path("config.json");
    std::fs::remove_file(&path).expect("removes");
    bundle.ok(&["spec", "--bundle", bundle.bundle()]);
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(text.starts_with("{\n\t\"ociVersion\": \"1.2."), "{text}");
    let text = text.replace("\"terminal\": true", "\"terminal\": false");
    let text = text.replace("\"sh\"", "\"id\"");
    std::fs::write(&path, text.replace("/usr/local/sbin:", "")).expect("writes");
    let said = bundle.ok(&["run", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("uid=0"), "{said}");
}

#[test]
fn features_is_the_specifications_document() {
    let bundle = Bundle::new("true", &[]);
    let document: Value = serde_json::from_str(&bundle.ok(&["features"])).expect("json");
    assert_eq!(document["ociVersionMin"], "1.0.0");
    assert_eq!(document["linux"]["cgroup"]["v2"], true);
    assert_eq!(document["linux"]["seccomp"]["enabled"], true);
    assert_eq!(document["hooks"].as_array().map(Vec::len), Some(6));
    let unsafe_ones = &document["potentiallyUnsafeConfigAnnotations"];
    assert_eq!(*unsafe_ones, serde_json::json!(["org.systemd.property."]));
}

#[test]
fn the_version_has_runcs_form() {
    let bundle = Bundle::new("true", &[]);
    let version = bundle.ok(&["--version"]);
    let mut lines = version.lines();
    let first = lines.next().expect("a line");
    assert_eq!(
        first,
        concat!("podwright oci version ", env!("CARGO_PKG_VERSION"))
    );
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("spec: 1.2."))
    );
    assert_eq!(bundle.ok(&["-v"]), version);
}

/// The snapshot is what the commands say of themselves. After a change that is meant: run with
/// PODWRIGHT_WRITE_SNAPSHOTS set, in the source tree, and read the difference.
#[test]
fn help_is_as_it_was() {
    let bundle = Bundle::new("true", &[]);
    let mut help = bundle.ok(&["--help"]);
    for verb in [
        "create", "run", "start", "state", "kill", "delete", "exec", "list", "ps", "pause",
        "resume", "update", "events", "features", "spec",
    ] {
        help.push_str(&format!("\n== {verb}\n\n"));
        help.push_str(&bundle.ok(&[verb, "--help"]));
    }
    if std::env::var_os("PODWRIGHT_WRITE_SNAPSHOTS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime/oci/help.txt");
        std::fs::write(path, &help).expect("writes");
    }
    assert_eq!(help, include_str!("help.txt"));
}

#[test]
fn help_is_no_failure_and_a_verb_that_is_none_has_a_code() {
    let bundle = Bundle::new("true", &[]);
    for help in [&[][..], &["-h"], &["run", "--help"], &["checkpoint", "-h"]] {
        let said = bundle.ok(help);
        assert!(said.contains("Usage: podwright oci"), "{help:?}: {said}");
    }
    let said = bundle.refused(3, &["nosuch", "-h"]);
    assert!(said.contains("No help topic for 'nosuch'"), "{said}");
    for verb in ["checkpoint", "restore"] {
        let said = bundle.refused(1, &[verb, "--image-path", "x", &bundle.id]);
        assert!(said.contains(&format!("{verb} is not supported")), "{said}");
    }
    bundle.refused(1, &["run", "--nosuch", &bundle.id]);
}
