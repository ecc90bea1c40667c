// SPDX-License-Identifier: Apache-2.0
//! Device rules, tried from inside.

use cri::cgroup::Limits;
use cri::oci;
use serde_json::{Value, json};

use super::{Subtree, printed};
use crate::pod::Pod;

fn rules(devices: &Value) -> Limits {
    let resources = json!({"devices": devices});
    oci::limits(&serde_json::from_value(resources).expect("resources")).expect("compiles")
}

const TRY: &str = "t() { head -c 1 /dev/$1 >/dev/null 2>&1 && echo $1 || echo no-$1; }; t zero; t full; \
    echo x > /dev/null && echo null";

async fn tried(devices: &Value) -> String {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({}));
    tree.manager.apply(&path, &rules(devices)).expect("applies");
    tree.launch(&pod, "c", &path, TRY).await;
    pod.wait("c").await;
    let output = pod.output("c").replace('\n', " ");
    pod.stop().await;
    output
}

#[tokio::test]
async fn the_default_devices_are_open_in_a_closed_group() {
    let closed = json!([{"allow": false, "access": "rwm"}]);
    assert_eq!(tried(&closed).await, "zero full null ");
}

#[tokio::test]
async fn rules_without_the_default_set_are_kept_to() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({}));
    let mut limits = rules(&json!([{"allow": false, "access": "rwm"}]));
    let rules = limits.devices.as_mut().expect("rules");
    // /dev/zero goes, and /dev/full is only written to.
    rules.retain(|rule| (rule.major, rule.minor) != (Some(1), Some(5)));
    for rule in rules.iter_mut() {
        rule.read &= (rule.major, rule.minor) != (Some(1), Some(7));
    }
    tree.manager.apply(&path, &limits).expect("applies");
    tree.launch(&pod, "c", &path, TRY).await;
    pod.wait("c").await;
    assert_eq!(pod.output("c"), "no-zero\nno-full\nnull\n");
    pod.stop().await;
}

#[tokio::test]
async fn wildcards_open_what_they_cover() {
    let open = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c",
        "major": 1, "access": "rwm"}, {"allow": true, "access": "m"}]);
    assert_eq!(tried(&open).await, "zero full null ");
    let all = json!([{"allow": true, "access": "rwm"}]);
    assert_eq!(tried(&all).await, "zero full null ");
}

/// A device that stays allowed is never away while the rules change.
#[tokio::test]
async fn an_update_leaves_no_window() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({}));
    let closed = rules(&json!([{"allow": false, "access": "rwm"}]));
    let more = rules(&json!([{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]));
    tree.manager.apply(&path, &closed).expect("applies");
    let script =
        "echo go; while [ ! -e /tmp/stop ]; do : > /dev/null || echo denied; done; echo end";
    tree.launch(&pod, "c", &path, script).await;
    printed(&pod, "c", "go\n").await;
    for limits in [&more, &closed].into_iter().cycle().take(100) {
        tree.manager.apply(&path, limits).expect("applies");
    }
    pod.exec("c", "stop", &["touch", "/tmp/stop"]).await;
    pod.wait("c").await;
    assert_eq!(pod.output("c"), "go\nend\n");
    pod.stop().await;
}
