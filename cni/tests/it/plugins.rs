// SPDX-License-Identifier: Apache-2.0
//! What plugins do to packets, in pods of their own, and what a network says when they fail.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni::netns;
use serde_json::{Value, json};

use crate::executables::REFERENCE;
use crate::host::{Host, at, inside, report};
use crate::place::{ask_tcp, in_new_host, run, serve_tcp};

impl Host {
    /// A host whose network is a list of these plugins.
    fn with(plugins: Value) -> Host {
        let host = Host::new();
        host.configure(plugins);
        host
    }

    fn configure(&self, plugins: Value) {
        let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": plugins});
        let file = self.dir.path().join("conf/10-podwright.conflist");
        std::fs::write(file, list.to_string()).expect("written");
    }

    fn bin(&self) -> PathBuf {
        let bin = self.dir.path().join("bin");
        std::fs::create_dir_all(&bin).expect("mkdir");
        bin
    }

    /// A plugin that is a shell script.
    fn script(&self, name: &str, text: &str) {
        let path = self.bin().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
    }

    fn try_pod(&self, name: &str) -> Result<PathBuf, String> {
        let attachment = self.attachment(name, &[]);
        if !attachment.netns.exists() {
            netns::create(&attachment.netns).expect("netns");
        }
        let added = self.run(self.network.add(&attachment));
        added.map(|_| attachment.netns).map_err(|e| report(&e))
    }

    fn end(&self, name: &str) {
        self.run(self.network.del_with_netns(&self.attachment(name, &[])))
            .unwrap_or_else(|e| panic!("{}", report(&e)));
    }
}

fn bridge(extra: Value) -> Value {
    let mut plugin = json!({"type": "bridge", "bridge": "pwt0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.42.0.0/24"}});
    let extra = extra.as_object().expect("an object").clone();
    plugin.as_object_mut().expect("an object").extend(extra);
    plugin
}

/// Does a ping from one pod reach an address?
fn reaches(from: &Path, to: &str) -> bool {
    inside(from, || {
        std::process::Command::new("busybox")
            .args(["ping", "-c1", "-W1", to])
            .stdout(std::process::Stdio::null())
            .status()
            .expect("busybox")
            .success()
    })
}

#[test]
fn a_pod_sends_from_its_own_hardware_address_only() {
    in_new_host(|| {
        let host = Host::with(json!([bridge(
            json!({"macspoofchk": true, "podwright": {"table": "pwt-cni"}})
        )]));
        let (a, b) = (host.try_pod("a").expect("a"), host.try_pod("b").expect("b"));
        assert!(reaches(&a, "10.42.0.3") && reaches(&b, "10.42.0.2"));
        host.run(host.network.check(&host.attachment("a", &[])))
            .expect("check");
        inside(&a, || {
            run(
                "ip",
                &["link", "set", "eth0", "address", "02:00:00:00:be:ef"],
            )
        });
        assert!(!reaches(&a, "10.42.0.3"), "with another address");
        assert!(reaches(&b, "10.42.0.1"), "the other pod is not concerned");
        run("nft", &["flush", "table", "bridge", "pwt-cni"]);
        for pod in [&a, &b] {
            inside(pod, || run("ip", &["neigh", "flush", "dev", "eth0"]));
        }
        assert!(reaches(&a, "10.42.0.3"), "or this proves nothing");
        for name in ["a", "b"] {
            host.end(name);
        }
        let rules = run("nft", &["list", "table", "bridge", "pwt-cni"]);
        assert!(!rules.contains("elements"), "{rules}");
    });
}

#[test]
fn isolated_ports_reach_the_gateway_only() {
    in_new_host(|| {
        let host = Host::with(json!([bridge(json!({"portIsolation": true}))]));
        let (a, _) = (host.try_pod("a").expect("a"), host.try_pod("b").expect("b"));
        assert!(reaches(&a, "10.42.0.1"));
        assert!(!reaches(&a, "10.42.0.3"), "the other pod");
    });
}

#[test]
fn an_address_is_asked_about_first() {
    in_new_host(|| {
        let host = Host::with(json!([bridge(json!({"enabledad": true,
            "ipam": {"type": "host-local", "subnet": "fd00:42::/64"}}))]));
        let a = host.try_pod("a").expect("a");
        let shown = inside(&a, || run("ip", &["-6", "addr", "show", "dev", "eth0"]));
        assert!(
            shown.contains("fd00:42::2") && !shown.contains("tentative"),
            "{shown}"
        );
        assert!(!shown.contains("nodad"), "{shown}");
    });
}

#[test]
fn bridges_are_kept_apart() {
    in_new_host(|| {
        let host = Host::new();
        let firewall = |policy: &str| json!({"type": "firewall", "ingressPolicy": policy, "podwright": {"table": "pwt-cni"}});
        let pod = |bridge_name: &str, subnet: &str, policy: &str, name: &str| {
            let plugin = bridge(
                json!({"bridge": bridge_name, "podwright": {"routed": true, "table": "pwt-cni"},
                "ipam": {"type": "host-local", "subnet": subnet}}),
            );
            host.configure(json!([plugin, firewall(policy)]));
            host.try_pod(name).expect("a pod")
        };
        let a = pod("pwt0", "10.42.0.0/24", "same-bridge", "a");
        pod("pwt0", "10.42.0.0/24", "same-bridge", "b");
        let c = pod("pwt1", "10.43.0.0/24", "isolated", "c");
        pod("pwt1", "10.43.0.0/24", "isolated", "d");
        assert!(reaches(&a, "10.42.0.3"), "the same bridge");
        assert!(!reaches(&a, "10.43.0.2"), "another bridge");
        assert!(!reaches(&c, "10.43.0.3"), "the same one, isolated");
        assert!(reaches(&c, "10.43.0.1"), "the gateway");
        host.run(host.network.check(&host.attachment("c", &[])))
            .expect("check");
    });
}

#[test]
fn what_a_pod_sends_and_gets_is_limited() {
    in_new_host(|| {
        let host = Host::with(json!([
            bridge(json!({})),
            {"type": "bandwidth", "capabilities": {"bandwidth": true}}
        ]));
        // 2 MB/s to the pod, 1 MB/s from it, 100 KB at once.
        let mut attachment = host.attachment("a", &[]);
        attachment.capabilities.other.insert(
            "bandwidth".to_owned(),
            json!({"ingressRate": 16_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}),
        );
        netns::create(&attachment.netns).expect("netns");
        host.run(host.network.add(&attachment)).expect("add");
        host.run(host.network.check(&attachment)).expect("check");
        let took = |from: &dyn Fn(&mut dyn FnMut())| {
            let mut elapsed = Duration::ZERO;
            from(&mut || {
                let begun = Instant::now();
                ask_tcp(at([10, 42, 0, 1], 80)).expect("from the host");
                elapsed = begun.elapsed();
            });
            elapsed
        };
        let text: &'static str = "x".repeat(1_500_000).leak();
        serve_tcp(at([10, 42, 0, 1], 80), text);
        let limited = inside(&attachment.netns, || took(&|work| work()));
        // 1.5 MB less the burst at 2 MB/s take 0.7 s.
        assert!(limited > Duration::from_millis(500), "{limited:?}");
        let shown = run("tc", &["qdisc", "show"]);
        assert_eq!(shown.matches("tbf").count(), 2, "{shown}");
        inside(&attachment.netns, || {
            serve_tcp(at([10, 42, 0, 2], 80), text)
        });
        let begun = Instant::now();
        ask_tcp(at([10, 42, 0, 2], 80)).expect("from the pod");
        assert!(
            begun.elapsed() > Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        // A crash loses the record: GC finds the link.
        std::fs::remove_file(host.dir.path().join("state/results/a-eth0.json")).expect("a record");
        host.run(host.network.gc(&[])).expect("gc");
        let links = run("ip", &["-o", "link"]);
        assert!(!links.contains("pwb"), "{links}");
    });
}

#[test]
fn a_full_pool_is_told_and_the_pod_starts_when_an_address_is_free() {
    in_new_host(|| {
        let host = Host::with(json!([bridge(
            json!({"ipam": {"type": "host-local", "subnet": "10.42.0.0/30"}})
        )]));
        host.try_pod("a").expect("the only address");
        let error = host.try_pod("b").expect_err("full");
        assert_eq!(
            error,
            "plugin bridge of network n failed at ADD: failed to allocate for range 0: \
             no IP addresses available in range set: 10.42.0.1-10.42.0.2"
        );
        host.run(host.network.status())
            .expect("no reason to call the node unfit");
        assert!(!host.dir.path().join("state/results/b-eth0.json").exists());
        host.end("a");
        host.try_pod("b").expect("an address is free");
    });
}

#[test]
fn a_plugin_that_hangs_or_prints_rubbish_is_told_with_its_complaints() {
    in_new_host(|| {
        let host = Host::with(json!([bridge(json!({})), {"type": "broken"}]));
        let network = host.network.clone().with_patience(Duration::from_secs(1));
        let attachment = host.attachment("a", &[]);
        netns::create(&attachment.netns).expect("netns");
        let error = || {
            let begun = Instant::now();
            let error = host.run(network.add(&attachment)).expect_err("broken");
            assert!(begun.elapsed() < Duration::from_secs(10));
            // What went before is undone, whatever the broken one says to DEL.
            let files =
                std::fs::read_dir(host.dir.path().join("state/networks/n")).expect("leases");
            let leases = files.filter(|f| {
                let name = f.as_ref().expect("an entry").file_name();
                name.to_string_lossy().starts_with("10.")
            });
            assert_eq!(leases.count(), 0);
            assert!(!run("ip", &["link"]).contains("master pwt0"));
            report(&error)
        };
        host.script("broken", "echo 'waiting for the cloud' >&2; sleep 100");
        let text = error();
        assert!(
            text.starts_with("plugin broken of network n failed at ADD: plugin /")
                && text.contains("did not end within")
                && text.ends_with(": waiting for the cloud"),
            "{text}"
        );
        host.script(
            "broken",
            "[ $CNI_COMMAND = DEL ] && exit; echo Hello; echo 'lost my way' >&2",
        );
        let text = error();
        assert!(
            text.contains("printed \"Hello\"") && text.ends_with(": lost my way"),
            "{text}"
        );
        host.script("broken", "[ $CNI_COMMAND = DEL ] && exit; echo '[1, 2]'");
        let text = error();
        assert!(text.contains("its result is not one"), "{text}");
        std::fs::remove_file(host.bin().join("broken")).expect("removed");
        let text = error();
        assert!(text.contains("no plugin broken in /"), "{text}");
        // Mended: the configuration is read for every pod.
        host.configure(json!([bridge(json!({}))]));
        host.run(network.add(&attachment)).expect("mended");
    });
}

/// Our runtime with the reference plugins, in a chain with ours.
#[test]
fn foreign_plugins_and_ours_in_one_list() {
    in_new_host(|| {
        let host = Host::new();
        for name in ["bridge", "tuning"] {
            symlink(
                Path::new(REFERENCE).join(name),
                host.bin().join(format!("their-{name}")),
            )
            .expect("symlink");
        }
        symlink(
            Path::new(REFERENCE).join("host-local"),
            host.bin().join("host-local"),
        )
        .expect("symlink");
        let ipam = json!({"type": "host-local", "subnet": "10.42.0.0/24", "dataDir": host.dir.path().join("leases")});
        let list = json!({"cniVersions": ["0.4.0", "1.0.0"], "name": "n", "plugins": [
            {"type": "their-bridge", "bridge": "pwt0", "isDefaultGateway": true, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}, "podwright": {"table": "pwt-cni"}},
            {"type": "their-tuning", "mtu": 1400, "dataDir": host.dir.path().join("tuning")},
            {"type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000}
        ]});
        let file = host.dir.path().join("conf/10-podwright.conflist");
        std::fs::write(file, list.to_string()).expect("written");
        let port = cni::PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: cni::Protocol::Tcp,
            host_ip: None,
        };
        let (a, a_ip) = host.pod("a", &[port]);
        inside(&a, || serve_tcp(at(a_ip, 80), "a"));
        assert!(
            ask_tcp(at([127, 0, 0, 1], 8080))
                .expect("the host port")
                .starts_with("a ")
        );
        assert!(inside(&a, || run("ip", &["link", "show", "eth0"])).contains("mtu 1400"));
        host.end("a");
        assert!(
            !host.dir.path().join("leases/n/10.42.0.2").exists(),
            "their lease is back"
        );
        assert!(!run("nft", &["list", "ruleset"]).contains("8080"));
    });
}

#[test]
fn host_ports_without_another_source() {
    in_new_host(|| {
        let host = Host::with(json!([
            bridge(json!({"podwright": {"routed": true}})),
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false}
        ]));
        let port = |host_port, protocol| cni::PortMapping {
            host_port,
            container_port: 80,
            protocol,
            host_ip: None,
        };
        let ports = [
            port(8080, cni::Protocol::Tcp),
            port(8081, cni::Protocol::Sctp),
        ];
        let (a, a_ip) = host.pod("a", &ports);
        let (b, b_ip) = host.pod("b", &[]);
        inside(&a, || serve_tcp(at(a_ip, 80), "a"));
        let said = inside(&b, || ask_tcp(at([10, 42, 0, 1], 8080))).expect("from a pod");
        assert_eq!(said, format!("a {b_ip}"));
        let rules = run("nft", &["list", "table", "inet", "podwright-cni"]);
        assert!(rules.contains("sctp . 8081 : 10.42.0.2 . 80"), "{rules}");
        assert!(!rules.contains("10.42.0.2 . 10.42.0.2"), "{rules}");
        // With masqAll everybody comes from the node.
        host.configure(json!([
            bridge(json!({"podwright": {"routed": true}})),
            {"type": "portmap", "capabilities": {"portMappings": true}, "masqAll": true}
        ]));
        let (c, c_ip) = host.pod("c", &[port(9090, cni::Protocol::Tcp)]);
        inside(&c, || serve_tcp(at(c_ip, 80), "c"));
        let said = inside(&b, || ask_tcp(at([10, 42, 0, 1], 9090))).expect("from a pod");
        assert_eq!(said, "c 10.42.0.1");
        for name in ["a", "b", "c"] {
            let record = host.attachment(name, &[]);
            host.run(host.network.del_with_netns(&record)).expect("del");
        }
        let rules = run("nft", &["list", "table", "inet", "podwright-cni"]);
        assert!(!rules.contains("elements"), "{rules}");
    });
}
