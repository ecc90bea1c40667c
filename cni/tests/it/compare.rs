// SPDX-License-Identifier: Apache-2.0
//! Each plugin beside the reference one of Debian's package containernetworking-plugins: the same
//! configuration gives the same result, links, addresses, routes and queues.

use std::path::Path;
use std::time::{Duration, Instant};

use cni::netns;
use serde_json::{Value, json};

use crate::executables::{REFERENCE, call_as, plugins};
use crate::host::inside;
use crate::place::{Dir, in_new_host, run};

/// What both plugin sets are asked: plugins in order, with the runtime's wishes in them.
struct Scene {
    plugins: Vec<Value>,
    args: &'static str,
}

/// What can be compared of a host with one pod.
#[derive(Debug, PartialEq)]
struct Seen {
    result: String,
    pod: Vec<String>,
    host: Vec<String>,
    left: Vec<String>,
}

fn chain(plugins: Vec<Value>) -> Scene {
    Scene { plugins, args: "" }
}

/// Run a chain with one plugin set, look, and take it down again.
fn play(bin: &Path, dir: &Path, scene: &Scene) -> Seen {
    let pod = dir.join("pod");
    netns::create(&pod).expect("netns");
    let path = pod.to_str().expect("utf-8");
    let mut steps: Vec<(String, Value)> = Vec::new();
    let mut result = Value::Null;
    for plugin in &scene.plugins {
        let mut conf = plugin.clone();
        conf["cniVersion"] = "1.0.0".into();
        conf["name"] = "n".into();
        if !result.is_null() {
            conf["prevResult"] = result;
        }
        let kind = conf["type"].as_str().expect("a type").to_owned();
        let (ok, said) = call_as(bin, &kind, "ADD", path, scene.args, &conf);
        assert!(ok, "{}: ADD {kind}: {said}", bin.display());
        result = said;
        steps.push((kind, conf));
    }
    let names = Names::of(&result, path);
    let seen_pod = inside(&pod, || look("eth0", &names));
    let mut seen_host = Vec::new();
    for interface in result["interfaces"].as_array().into_iter().flatten() {
        if interface["sandbox"].as_str().unwrap_or_default().is_empty() {
            seen_host.extend(look(interface["name"].as_str().expect("a name"), &names));
        }
    }
    seen_host.push(run("ip", &["route"]));
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        seen_host
            .push(std::fs::read_to_string(Path::new("/proc/sys/net").join(file)).expect("read"));
    }
    for (kind, conf) in &mut steps {
        conf["prevResult"] = result.clone();
        // Debian's version refuses much of what it made itself (fixed since).
        if bin == Path::new(REFERENCE) {
            continue;
        }
        let (ok, error) = call_as(bin, kind, "CHECK", path, scene.args, conf);
        assert!(ok, "{}: CHECK {kind}: {error}", bin.display());
    }
    for (kind, conf) in steps.iter().rev().chain(steps.iter().rev()) {
        let (ok, error) = call_as(bin, kind, "DEL", path, scene.args, conf);
        assert!(ok, "{}: DEL {kind}: {error}", bin.display());
    }
    let links = run("ip", &["-o", "link"]);
    let left = links
        .lines()
        .filter_map(|l| l.split_whitespace().nth(1).map(str::to_owned))
        .chain(leases(dir));
    Seen {
        result: names.normal(&comparable(result)),
        pod: seen_pod,
        host: seen_host.iter().map(|text| names.normal(text)).collect(),
        left: left.map(|text| names.normal(&text)).collect(),
    }
}

fn leases(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.join("leases/n")) else {
        return vec![];
    };
    let names = entries.map(|e| e.expect("entry").file_name().into_string().expect("a name"));
    names
        .filter(|n| n.parse::<std::net::IpAddr>().is_ok())
        .collect()
}

/// A result without what only newer versions have, and without the hardware addresses of the host.
fn comparable(mut result: Value) -> String {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let fields = interface.as_object_mut().expect("an object");
        fields.remove("mtu");
        if !fields.contains_key("sandbox") {
            fields.remove("mac");
        }
    }
    if result.get("dns").is_none_or(|dns| *dns == json!({})) {
        result["dns"] = Value::Null;
    }
    result.to_string()
}

/// Names that each plugin set chooses for itself.
struct Names {
    pod: String,
    chosen: Vec<(String, &'static str)>,
}

impl Names {
    fn of(result: &Value, pod: &str) -> Names {
        let mut chosen = Vec::new();
        for interface in result["interfaces"].as_array().into_iter().flatten() {
            let name = interface["name"].as_str().expect("a name").to_owned();
            let inside = interface["sandbox"].as_str().is_some_and(|s| !s.is_empty());
            if inside {
                if let Some(mac) = interface["mac"].as_str() {
                    chosen.push((mac.to_owned(), "POD-MAC"));
                }
            } else if name.starts_with("bwp") || name.starts_with("pwb") {
                chosen.push((name, "IFB"));
            } else if name != "cnit0" {
                chosen.push((name, "HOST"));
            }
        }
        Names {
            pod: pod.to_owned(),
            chosen,
        }
    }

    fn normal(&self, text: &str) -> String {
        let mut text = text.replace(&self.pod, "POD");
        for (name, word) in &self.chosen {
            text = text.replace(name, word);
        }
        // Numbers that the kernel draws.
        let words = text
            .split_whitespace()
            .map(|word| match word.split_once("@if") {
                Some((name, _)) => name.to_owned(),
                None => word.to_owned(),
            });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// A link with its addresses, routes and queues, as the tools show them.
fn look(link: &str, names: &Names) -> Vec<String> {
    let show = || names.normal(&run("ip", &["-o", "link", "show", "dev", link]));
    // The kernel tells of a carrier some time after it is there.
    let mut line = show();
    let begun = Instant::now();
    while line.contains("NO-CARRIER") && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
        line = show();
    }
    // Without its number at the beginning, and its hardware address at the end; Debian's version makes
    // links without a queue length (fixed since).
    let line = line.split_once(": ").map_or("", |(_, rest)| rest);
    let line = line.split("link/").next().unwrap_or_default();
    let line = line.split(" qlen").next().unwrap_or_default();
    let line = line.trim_end_matches(['\\', ' ']).to_owned();
    let port = run("ip", &["-o", "-d", "link", "show", "dev", link]);
    let on = |what: &str| port.contains(&format!("{what} on"));
    let mut seen = vec![
        line,
        format!("hairpin {} isolated {}", on("hairpin"), on("isolated")),
    ];
    for family in ["-4", "-6"] {
        let text = run(
            "ip",
            &["-o", family, "addr", "show", "dev", link, "scope", "global"],
        );
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().skip(2).take(4).collect();
            seen.push(names.normal(&words.join(" ")));
        }
        let mut routes: Vec<String> = run("ip", &[family, "route", "show", "dev", link])
            .lines()
            .filter(|l| !l.starts_with("fe80"))
            .map(|l| names.normal(l))
            .collect();
        routes.sort();
        seen.extend(routes);
    }
    for what in ["qdisc", "filter"] {
        let mut args = vec![what, "show", "dev", link];
        if what == "filter" {
            args.push("ingress");
        }
        let text = run("tc", &args);
        // Theirs redirects twice, and the second is never reached.
        let lines = text.lines().filter(|l| {
            !l.contains("index ") && !l.contains("order 2: mirred") && !l.trim().is_empty()
        });
        seen.extend(lines.map(|l| names.normal(l)));
    }
    seen
}

fn same(name: &'static str, scene: impl Fn(&Path) -> Scene + Send + Copy + 'static) {
    let outcome = |reference: bool| {
        in_new_host(move || {
            let dir = Dir::new();
            let bin = plugins(reference, dir.path());
            play(&bin, dir.path(), &scene(dir.path()))
        })
    };
    let (ours, theirs) = (outcome(false), outcome(true));
    assert_eq!(ours.result, theirs.result, "{name}: result");
    assert_eq!(ours.pod, theirs.pod, "{name}: in the pod");
    assert_eq!(ours.host, theirs.host, "{name}: on the host");
    assert_eq!(ours.left, theirs.left, "{name}: what is left");
}

fn both_families(dir: &Path) -> Value {
    json!({"type": "host-local", "dataDir": dir.join("leases"),
        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64", "rangeStart": "fd00:9::7"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.8.0.0/16"}]})
}

fn one_range(dir: &Path) -> Value {
    json!({"type": "host-local", "dataDir": dir.join("leases"), "subnet": "10.9.0.0/24"})
}

fn bridge(dir: &Path) -> Value {
    json!({"type": "bridge", "bridge": "cnit0", "isGateway": true, "ipam": one_range(dir)})
}

#[test]
fn bridge_of_both_families() {
    same("bridge", |dir| {
        chain(vec![
            json!({"type": "bridge", "bridge": "cnit0", "isGateway": true,
            "forceAddress": true, "promiscMode": true, "ipam": both_families(dir)}),
        ])
    });
}

#[test]
fn bridge_without_addresses() {
    same("bridge", |_| {
        chain(vec![
            json!({"type": "bridge", "bridge": "cnit0", "hairpinMode": true, "mtu": 1400, "ipam": {}}),
        ])
    });
}

#[test]
fn bridge_with_a_hardware_address() {
    same("bridge", |dir| {
        let mut plugin = bridge(dir);
        plugin["runtimeConfig"] = json!({"mac": "02:11:22:33:44:55"});
        plugin["dns"] = json!({"nameservers": ["10.0.0.53"], "search": ["a.test"]});
        chain(vec![plugin])
    });
}

#[test]
fn ptp_of_both_families() {
    same("ptp", |dir| {
        chain(vec![
            json!({"type": "ptp", "mtu": 1450, "ipam": both_families(dir)}),
        ])
    });
}

#[test]
fn host_local_with_a_requested_address() {
    same("host-local", |dir| Scene {
        plugins: vec![bridge(dir)],
        args: "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.9.0.77",
    });
}

#[test]
fn static_addresses() {
    same("static", |_| {
        chain(vec![
            json!({"type": "bridge", "bridge": "cnit0", "ipam": {"type": "static",
            "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"address": "fd00:9::5/64"}],
            "routes": [{"dst": "10.8.0.0/16"}]}}),
        ])
    });
}

#[test]
fn tuning_of_a_link() {
    same("tuning", |dir| {
        chain(vec![
            bridge(dir),
            json!({"type": "tuning", "dataDir": dir.join("tuning"), "mtu": 1380, "promisc": true,
                "allmulti": true, "sysctl": {"net.ipv4.conf.IFNAME.proxy_arp": "1", "net.core.somaxconn": "511"},
                "runtimeConfig": {"mac": "02:11:22:33:44:66"}}),
        ])
    });
}

#[test]
fn bandwidth_of_both_directions() {
    same("bandwidth", |dir| {
        chain(vec![
            bridge(dir),
            json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": {
                "ingressRate": 8_000_000, "ingressBurst": 800_000,
                "egressRate": 16_000_000, "egressBurst": 1_600_000}}}),
        ])
    });
}
