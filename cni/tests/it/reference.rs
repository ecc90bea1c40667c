// SPDX-License-Identifier: Apache-2.0
//! The built-in plugins as executables, beside the reference plugins of Debian's package
//! containernetworking-plugins: the same configuration gives the same pod. And an ADD that is
//! killed in the middle leaves nothing after GC.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cni::{Network, netns};
use serde_json::{Value, json};

use crate::executables::{call, executable, our_plugins, plugins};
use crate::host::{Host, inside};
use crate::place::{Dir, in_new_host, run};

/// What can be compared of a result: without names and hardware addresses that are drawn.
fn comparable(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().expect("interfaces") {
        let fields = interface.as_object_mut().expect("an object");
        fields.remove("mac");
        fields.remove("mtu"); // 1.1, newer than the reference plugin
        if fields["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("veth") || n.starts_with("pw"))
        {
            fields.insert("name".into(), "host end".into());
        }
    }
    result["dns"] = Value::Null;
    result
}

/// Addresses and routes of a pod and of the bridge, as ip(8) shows them.
fn seen(netns: &Path) -> Vec<String> {
    let addresses = |dev| {
        let text = run("ip", &["-o", "-4", "addr", "show", "dev", dev]);
        text.split_whitespace()
            .skip(2)
            .take(4)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut seen = vec![addresses("cnit0")];
    seen.extend(inside(netns, || {
        vec![addresses("eth0"), run("ip", &["route"])]
    }));
    let ports = run("ip", &["-o", "-d", "link", "show", "master", "cnit0"]);
    seen.push(format!(
        "{} port, hairpin on: {}",
        ports.lines().count(),
        ports.contains("hairpin on")
    ));
    seen.push(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("read"));
    seen
}

#[test]
fn the_same_configuration_gives_the_same_pod_as_the_reference_plugins() {
    let outcome = |reference: bool| {
        in_new_host(move || {
            let dir = Dir::new();
            let bin = plugins(reference, dir.path());
            let pod = dir.path().join("pod");
            netns::create(&pod).expect("netns");
            let path = pod.to_str().expect("utf-8");
            let conf = json!({
                "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "cnit0", "isGateway": true,
                "isDefaultGateway": true, "hairpinMode": true, "mtu": 1400,
                "ipam": {"type": "host-local", "dataDir": dir.path(),
                    "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9"}]],
                    "routes": [{"dst": "10.8.0.0/16", "gw": "10.9.0.1"}, {"dst": "10.7.0.0/16", "gw": "10.9.0.7"}]}
            });
            let (ok, result) = call(&bin, "bridge", "ADD", path, &conf);
            assert!(ok, "{result}");
            let seen = seen(&pod);
            let lease = std::fs::read_to_string(dir.path().join("n/10.9.0.9")).expect("a lease");
            let mut later = conf.clone();
            later["prevResult"] = result.clone();
            let (ok, error) = call(&bin, "bridge", "CHECK", path, &later);
            assert!(ok, "CHECK: {error}");
            assert!(call(&bin, "bridge", "DEL", path, &later).0, "DEL");
            assert!(call(&bin, "bridge", "DEL", "", &later).0, "DEL again");
            assert!(
                !dir.path().join("n/10.9.0.9").exists(),
                "the lease is released"
            );
            assert!(!call(&bin, "bridge", "ADD", "/nowhere", &conf).0);
            let text = comparable(result).to_string().replace(path, "POD");
            (
                text,
                seen,
                lease,
                call(&bin, "bridge", "VERSION", "", &conf).0,
            )
        })
    };
    assert_eq!(outcome(false), outcome(true));
}

#[test]
fn errors_are_printed_as_the_protocol_wants_them() {
    let dir = Dir::new();
    let bin = our_plugins(dir.path());
    for (plugin, verb, conf, code) in [
        ("bridge", "ADD", json!({"cniVersion": "9.9.9"}), 1),
        (
            "bridge",
            "ADD",
            json!({"cniVersion": "1.1.0", "name": "n", "colour": "red"}),
            2,
        ),
        ("bridge", "NOD", json!({"cniVersion": "1.1.0"}), 4),
        (
            "portmap",
            "ADD",
            json!({"cniVersion": "1.1.0", "name": "n"}),
            7,
        ),
        (
            "host-local",
            "ADD",
            json!({"cniVersion": "1.1.0", "name": "../n", "ipam": {"subnet": "10.0.0.0/24"}}),
            7,
        ),
    ] {
        let (ok, error) = call(&bin, plugin, verb, "/n", &conf);
        assert!(
            !ok && error["code"] == code,
            "{plugin} {verb} {conf}: {error}"
        );
    }
    let (ok, versions) = call(
        &bin,
        "loopback",
        "VERSION",
        "",
        &json!({"cniVersion": "0.4.0"}),
    );
    assert!(ok && versions["cniVersion"] == "0.4.0", "{versions}");
}

#[test]
fn a_killed_add_leaves_nothing_after_gc() {
    in_new_host(|| {
        let host = Host::new();
        let conf = host.dir.path().join("conf");
        let state = host.dir.path().join("state");
        let begin = |id: &str, netns: &Path| {
            Command::new(executable())
                .arg("add")
                .arg(&conf)
                .arg(&state)
                .arg(id)
                .arg(netns)
                .spawn()
                .expect("spawn")
        };
        // How long a whole one takes here, now.
        let path = host.attachment("whole", &[]).netns;
        netns::create(&path).expect("netns");
        let begun = Instant::now();
        assert!(begin("whole", &path).wait().expect("wait").success());
        let whole = begun.elapsed();
        host.run(host.network.del(&host.attachment("whole", &[])))
            .expect("del");
        netns::remove(&path).expect("remove");

        const CUTS: u32 = 25;
        for cut in 0..CUTS {
            let id = format!("cut{cut}");
            let path = host.attachment(&id, &[]).netns;
            netns::create(&path).expect("netns");
            let mut child = begin(&id, &path);
            std::thread::sleep(whole * cut / CUTS);
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert_clean_after_gc(&host.network, &host, &state, &id);
            netns::remove(&path).expect("remove");
        }
    });
}

fn assert_clean_after_gc(network: &Network, host: &Host, state: &Path, id: &str) {
    host.run(network.gc(&[]))
        .unwrap_or_else(|e| panic!("{id}: {}", crate::host::report(&e)));
    let files = |dir: &str| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(state.join(dir)) else {
            return vec![];
        };
        entries
            .map(|e| e.expect("entry").file_name().into_string().expect("a name"))
            .collect()
    };
    let leases: Vec<_> = files("networks/podwright")
        .into_iter()
        .filter(|n| n.parse::<std::net::IpAddr>().is_ok())
        .collect();
    assert_eq!(
        (
            leases,
            files("results")
                .into_iter()
                .filter(|n| n.ends_with("json"))
                .count()
        ),
        (vec![], 0),
        "{id}"
    );
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let links = run("ip", &["-o", "link"]);
        let left = links.lines().filter(|l| l.contains("master pwt0")).count();
        if left == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{id}: {links}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let rules = run("nft", &["list", "ruleset"]);
    assert!(
        !rules.contains("10.42.0.") || !rules.contains("elements"),
        "{id}: {rules}"
    );
}
