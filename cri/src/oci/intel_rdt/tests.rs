// SPDX-License-Identifier: Apache-2.0
//! With a directory that has the files of a resctrl filesystem. Unlike there, files of a group come
//! to be when they are written, and have to go before it does.

use super::*;
use serde_json::{Value, json};

fn rdt(spec: Value) -> Result<Rdt, String> {
    let linux = serde_json::from_value(json!({ "intelRdt": spec })).expect("a linux part");
    let rdt = intel_rdt(&linux).map_err(|error| error.to_string())?;
    Ok(rdt.expect("it was asked for"))
}

fn resctrl() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["L3", "L3_MON"] {
        std::fs::create_dir_all(dir.path().join("info").join(name)).expect("creates");
    }
    std::fs::write(dir.path().join("tasks"), "").expect("writes");
    dir
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

fn said(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

#[test]
fn a_group_of_the_containers_own_is_made_filled_and_removed() {
    let root = resctrl();
    let rdt = rdt(json!({"l3CacheSchema": "L3:0=f;1=ff", "schemata": ["MB:0=20"]})).expect("fine");
    let groups = rdt.groups(Some(root.path()), "box").expect("there is all");
    let group = root.path().join("box");
    let leftovers = groups.leftovers();
    assert_eq!(leftovers, std::slice::from_ref(&group));
    groups.join(7).expect("joins");
    assert_eq!(read(&group.join("tasks")), "7");
    assert_eq!(read(&group.join("schemata")), "L3:0=f;1=ff\nMB:0=20\n");
    for file in ["tasks", "schemata"] {
        std::fs::remove_file(group.join(file)).expect("removes");
    }
    remove(&leftovers).expect("removes");
    assert!(!group.exists());
    remove(&leftovers).expect("once more is fine");
}

#[test]
fn a_class_with_a_name_stays_and_only_its_monitor_goes() {
    let root = resctrl();
    let class = root.path().join("gold");
    std::fs::create_dir_all(class.join("mon_groups")).expect("creates");
    let rdt = rdt(json!({"closID": "gold", "enableMonitoring": true})).expect("fine");
    let groups = rdt.groups(Some(root.path()), "box").expect("it exists");
    let monitor = class.join("mon_groups/box");
    assert_eq!(groups.leftovers(), std::slice::from_ref(&monitor));
    groups.join(7).expect("joins");
    assert_eq!(read(&class.join("tasks")), "7");
    assert_eq!(read(&monitor.join("tasks")), "7");
    assert!(!class.join("schemata").exists());
}

#[test]
fn a_group_that_was_there_is_not_ours_to_remove() {
    let root = resctrl();
    std::fs::create_dir(root.path().join("box")).expect("creates");
    let groups = rdt(json!({}))
        .expect("fine")
        .groups(Some(root.path()), "box");
    assert_eq!(groups.expect("fine").leftovers(), [] as [PathBuf; 0]);
}

#[test]
fn the_class_of_all_is_the_root() {
    let root = resctrl();
    let groups = rdt(json!({"closID": "/"}))
        .expect("fine")
        .groups(Some(root.path()), "box");
    let groups = groups.expect("fine");
    assert!(groups.leftovers().is_empty());
    groups.join(7).expect("joins");
    assert_eq!(read(&root.path().join("tasks")), "7");
}

#[test]
fn what_makes_no_sense_is_named() {
    for (spec, field) in [
        (json!({"closID": ".."}), "linux.intelRdt.closID is invalid"),
        (json!({"closID": "a/b"}), "linux.intelRdt.closID is invalid"),
        (
            json!({"closID": "info"}),
            "linux.intelRdt.closID is invalid",
        ),
        (
            json!({"l3CacheSchema": "f"}),
            "linux.intelRdt.l3CacheSchema is invalid",
        ),
        (
            json!({"memBwSchema": "MB:"}),
            "linux.intelRdt.memBwSchema is invalid",
        ),
        (
            json!({"schemata": ["MB:0=1", "\u{1b}"]}),
            "linux.intelRdt.schemata[1] is invalid",
        ),
    ] {
        let said = rdt(spec).expect_err("refused");
        assert!(said.starts_with(field), "{said}");
    }
}

#[test]
fn what_the_host_lacks_is_named() {
    let root = resctrl();
    let refused = |spec: Value, root: Option<&Path>| {
        let groups = rdt(spec).expect("fine").groups(root, "box");
        groups.expect_err("refused").to_string()
    };
    let absent = refused(json!({}), None);
    assert!(
        absent.starts_with("linux.intelRdt is not supported: no resctrl"),
        "{absent}"
    );
    let bandwidth = refused(json!({"memBwSchema": "MB:0=20"}), Some(root.path()));
    assert!(
        bandwidth.starts_with("linux.intelRdt.memBwSchema is not supported"),
        "{bandwidth}"
    );
    let class = refused(json!({"closID": "nosuch"}), Some(root.path()));
    assert!(
        class.starts_with("linux.intelRdt.closID is invalid: there is no"),
        "{class}"
    );
}

#[test]
fn the_filesystems_own_words_are_passed_on() {
    let root = resctrl();
    let groups = rdt(json!({"schemata": ["L3:0=f"]})).expect("fine");
    let groups = groups.groups(Some(root.path()), "box").expect("fine");
    std::fs::create_dir_all(root.path().join("box/schemata")).expect("creates");
    let status = root.path().join("info/last_cmd_status");
    std::fs::write(status, "mask f has too many bits\n").expect("writes");
    let said = said(&groups.join(7).expect_err("fails"));
    assert!(
        said.contains("box/schemata (last_cmd_status: mask f has too many bits): "),
        "{said}"
    );
}

#[test]
fn the_mount_is_found_wherever_it_is() {
    let table = "20 1 0:5 / /sys rw - sysfs sysfs rw\n\
                 21 20 0:9 / /mnt/rdt rw,relatime shared:5 - resctrl resctrl rw\n";
    assert_eq!(mounted(table), Some(PathBuf::from("/mnt/rdt")));
    assert_eq!(
        mounted("20 1 0:5 / /sys/fs/resctrl rw - tmpfs resctrl rw\n"),
        None
    );
}
