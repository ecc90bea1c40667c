// SPDX-License-Identifier: Apache-2.0
//! What a container gets from outside: network devices, and Intel RDT groups.

use std::os::fd::AsFd;

use cni::cidr::Cidr;
use cni::link::{AddressSpec, Route, VethSpec};
use serde_json::json;

use super::Bundle;

const DEVICE: &str = "podwright-t0";
const ADDRESSES: [&str; 2] = ["192.0.2.7/24", "2001:db8::7/64"];
/// Prints what it can see of net0 once it has been moved.
const LOOK: &str = "busybox ip addr show dev net0 > /tmp/new; busybox mv /tmp/new /tmp/seen";

/// Runs a test in a network namespace that ends with it; commands inherit it. There is a device
/// with addresses in it.
fn in_own_network(test: impl FnOnce(&mut Route) + Send) {
    let work = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
        let mut route = Route::open().expect("opens");
        let mac = [2, 0, 0, 0, 0, 1];
        route.add_bridge("bridge", mac, None).expect("a bridge");
        let bridge = route.link("bridge").expect("asks").expect("is there");
        let own = std::fs::File::open("/proc/thread-self/ns/net").expect("opens");
        let pair = VethSpec {
            host_name: "other",
            master: bridge.index,
            pod_name: DEVICE,
            pod_mac: None,
            mtu: None,
        };
        route.add_veth(&pair, own.as_fd()).expect("a pair");
        let device = route.link(DEVICE).expect("asks").expect("is there");
        let addresses = ADDRESSES.map(|text| AddressSpec {
            address: text.parse::<Cidr>().expect("an address"),
            no_prefix_route: false,
        });
        let configured = route.configure(device.index, &addresses, &[]);
        configured.expect("gets its addresses");
        test(&mut route);
    };
    std::thread::scope(|scope| scope.spawn(work).join()).expect("passes");
}

fn is_moved(seen: &str) {
    for address in ADDRESSES {
        assert!(seen.contains(&format!("{address} ")), "{seen}");
    }
    assert!(seen.contains(",UP"), "{seen}");
}

#[test]
fn a_device_is_moved_before_hooks_run_with_its_addresses_and_another_name() {
    in_own_network(|route| {
        let hook = "pid=$(busybox sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
                    busybox grep net0 /proc/$pid/net/dev >&2";
        let hook = json!([{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", hook]}]);
        let changes = [
            ("/linux/netDevices", json!({DEVICE: {"name": "net0"}})),
            ("/hooks", json!({"createRuntime": hook})),
        ];
        let bundle = Bundle::new(&format!("{LOOK}; sleep 1000"), &changes).started();
        is_moved(&bundle.file("seen"));
        assert_eq!(route.link(DEVICE).expect("asks"), None);
    });
}

#[test]
fn a_device_goes_to_a_namespace_that_is_joined() {
    in_own_network(|_| {
        let first = Bundle::new("sleep 1000", &[]).started();
        let path = format!("/proc/{}/ns/net", first.state()["pid"]);
        let spaces = json!([{"type": "mount"}, {"type": "uts"}, {"type": "pid"},
            {"type": "network", "path": path}]);
        let changes = [
            ("/linux/netDevices", json!({DEVICE: {"name": "net0"}})),
            ("/linux/namespaces", spaces),
        ];
        let second = Bundle::new(&format!("{LOOK}; sleep 1000"), &changes).started();
        is_moved(&second.file("seen"));
        let also = first.ok(&["exec", &first.id, "/bin/busybox", "ip", "addr"]);
        is_moved(&also);
    });
}

#[test]
fn devices_that_cannot_be_moved_stay_and_leave_nothing() {
    in_own_network(|route| {
        let before = route.link(DEVICE).expect("asks").expect("is there");
        for (devices, reason) in [
            (
                json!({"nosuch": {}}),
                "linux.netDevices[nosuch]: there is no such device",
            ),
            (
                json!({DEVICE: {"name": "lo"}}),
                "the container has a device lo already",
            ),
            (
                json!({"bridge": {}}),
                "linux.netDevices[bridge]: moving link bridge",
            ),
            (
                json!({DEVICE: {"name": "a b"}}),
                "linux.netDevices[a b].name is invalid",
            ),
        ] {
            let bundle = Bundle::new("true", &[("/linux/netDevices", devices)]);
            let said = bundle.refused(1, &["run", "-b", bundle.bundle(), &bundle.id]);
            assert!(said.contains(reason), "{said}");
            bundle.nothing_left();
        }
        let after = route.link(DEVICE).expect("asks").expect("is there");
        assert_eq!((after.up, after.index), (before.up, before.index));
        let kept = route.lasting_addresses(after.index).expect("asks");
        assert_eq!(kept.len(), ADDRESSES.len(), "{kept:?}");
    });
}

#[test]
fn intel_rdt_is_done_or_refused_by_name() {
    let script = "sleep 1000";
    let bundle = Bundle::new(script, &[("/linux/intelRdt", json!({}))]);
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
    let Some(root) = cri::oci::intel_rdt::mounted(&table) else {
        let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
        let expected = "config.json: linux.intelRdt is not supported: no resctrl filesystem";
        assert!(said.contains(expected), "{said}");
        bundle.nothing_left();
        return;
    };
    let bundle = bundle.started();
    let group = root.join(&bundle.id);
    let tasks = std::fs::read_to_string(group.join("tasks")).expect("reads");
    assert_eq!(tasks.trim(), bundle.state()["pid"].to_string());
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!group.exists());
}
