// SPDX-License-Identifier: Apache-2.0
//! pause and resume.

use super::{Bundle, wait_for};

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let script = "i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.01; done";
    let bundle = Bundle::new(script, &[]).started();
    bundle.file("count");
    let count = || std::fs::read_to_string(bundle.path("rootfs/tmp/count")).expect("reads");
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    let before = count();
    let said = bundle.refused(255, &["exec", &bundle.id, "true"]);
    assert!(said.contains("cannot exec in a paused container"), "{said}");
    let said = bundle.refused(1, &["delete", &bundle.id]);
    assert!(said.contains("not stopped: paused"), "{said}");
    let said = bundle.refused(1, &["pause", &bundle.id]);
    assert!(said.contains("container not running"), "{said}");
    assert_eq!(count(), before, "nothing has run meanwhile");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    wait_for("it counts on", || count() != before);
    let said = bundle.refused(1, &["resume", &bundle.id]);
    assert!(said.contains("container not paused"), "{said}");
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.nothing_left();
    let bundle = Bundle::new("sleep 1000", &[]).started();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.nothing_left();
}

#[test]
fn a_container_that_is_paused_before_it_starts_can_be_deleted() {
    let bundle = Bundle::new("sleep 1000", &[]);
    bundle.ok(&["create", "-b", bundle.bundle(), &bundle.id]);
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    let said = bundle.refused(1, &["start", &bundle.id]);
    assert!(said.contains("in the paused state"), "{said}");
    let said = bundle.refused(1, &["delete", &bundle.id]);
    assert!(said.contains("not stopped: paused"), "{said}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.nothing_left();
}
