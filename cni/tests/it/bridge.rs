// SPDX-License-Identifier: Apache-2.0
//! Pods on a bridge: reachability, masquerade, host ports, and that nothing is left afterwards.

use std::net::UdpSocket;

use cni::{PortMapping, Protocol, netns};

use crate::host::{Host, at, inside, neighbour, report};
use crate::place::{ask_tcp, ask_udp, in_new_host, run, serve_tcp, serve_udp};

impl Host {
    fn gone(&self, name: &str) {
        self.run(self.network.del(&self.attachment(name, &[])))
            .unwrap_or_else(|e| panic!("{}", report(&e)));
        netns::remove(&self.attachment(name, &[]).netns).expect("remove");
    }

    fn leases(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("state/networks/podwright"))
        else {
            return vec![];
        };
        let names = entries.map(|e| e.expect("entry").file_name().into_string().expect("a name"));
        names
            .filter(|n| n.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }
}

#[test]
fn two_pods_reach_each_other_the_host_and_the_world() {
    in_new_host(|| {
        let host = Host::new();
        let outside = neighbour(&host);
        let (a, a_ip) = host.pod("a", &[]);
        let (b, b_ip) = host.pod("b", &[]);
        inside(&b, || serve_tcp(at(b_ip, 80), "b"));
        inside(&outside, || {
            serve_tcp("192.0.2.2:80".parse().expect("address"), "out")
        });
        let said = inside(&a, || ask_tcp(at(b_ip, 80)).expect("pod to pod"));
        assert_eq!(said, format!("b {a_ip}"));
        assert_eq!(ask_tcp(at(b_ip, 80)).expect("host to pod"), "b 10.42.0.1");
        inside(&a, || {
            run("busybox", &["ping", "-c1", "-W2", &b_ip.to_string()])
        });
        run("ip", &["route", "add", "default", "via", "192.0.2.2"]);
        let said = inside(&a, || {
            ask_tcp("192.0.2.2:80".parse().expect("address")).expect("out")
        });
        assert_eq!(said, "out 192.0.2.1", "masqueraded");
        host.run(host.network.check(&host.attachment("a", &[])))
            .expect("check");
        host.run(host.network.status()).expect("status");

        // Namespace first, DEL afterwards; and DEL twice.
        netns::remove(&a).expect("remove");
        host.gone("a");
        host.gone("a");
        host.gone("b");
        assert_eq!(host.leases(), Vec::<String>::new());
        let rules = run("nft", &["list", "table", "inet", "pwt-cni"]);
        assert!(!rules.contains("10.42.0.2"), "{rules}");
        cni::cleanup("pwt0", "pwt").expect("cleanup");
        cni::cleanup("pwt0", "pwt").expect("and again");
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        assert!(!run("ip", &["link"]).contains("pw"), "links are left");
    });
}

#[test]
fn host_ports_lead_to_their_pod_only_from_local_addresses() {
    in_new_host(|| {
        let host = Host::new();
        let outside = neighbour(&host);
        let port = |host_port, protocol| PortMapping {
            host_port,
            container_port: 80,
            protocol,
            host_ip: None,
        };
        let ports = [port(8080, Protocol::Tcp), port(5353, Protocol::Udp)];
        let (a, a_ip) = host.pod("a", &ports);
        let (b, b_ip) = host.pod("b", &[]);
        inside(&a, || {
            serve_tcp(at(a_ip, 80), "a");
            serve_udp(at(a_ip, 80), "a");
        });
        let node = at([192, 0, 2, 1], 8080);
        assert_eq!(
            inside(&outside, || ask_tcp(node)).expect("from outside"),
            "a 192.0.2.2"
        );
        assert_eq!(
            inside(&b, || ask_tcp(node)).expect("from a pod"),
            format!("a {b_ip}")
        );
        assert!(ask_tcp(node).expect("from the host").starts_with("a "));
        assert_eq!(
            inside(&a, || ask_tcp(node)).expect("from the pod itself"),
            "a 10.42.0.1"
        );
        assert_eq!(
            ask_tcp(at([127, 0, 0, 1], 8080)).expect("from the host, at loopback"),
            "a 10.42.0.1"
        );
        // Only what is meant for this host: port 8080 of others is theirs.
        inside(&outside, || {
            serve_tcp("192.0.2.2:8080".parse().expect("address"), "theirs")
        });
        let theirs = inside(&b, || ask_tcp(at([192, 0, 2, 2], 8080))).expect("not hijacked");
        assert_eq!(theirs, "theirs 192.0.2.1");

        // The port is taken, and stays with its owner when the second gives up.
        let second = host.attachment("c", &ports[..1]);
        netns::create(&second.netns).expect("netns");
        let error = report(&host.run(host.network.add(&second)).expect_err("taken"));
        assert!(
            error.contains("plugin portmap") && error.contains("File exists"),
            "{error}"
        );
        assert_eq!(
            inside(&outside, || ask_tcp(node)).expect("still there"),
            "a 192.0.2.2"
        );
        assert_eq!(host.leases().len(), 2, "the failed pod's lease is back");
        host.run(host.network.check(&host.attachment("a", &ports)))
            .expect("check");

        // A UDP flow follows the port to the next pod that holds it.
        let client = inside(&outside, || UdpSocket::bind("192.0.2.2:4000")).expect("bind");
        let udp = at([192, 0, 2, 1], 5353);
        assert_eq!(ask_udp(&client, udp).expect("answer"), "a 192.0.2.2");
        host.gone("a");
        let (d, d_ip) = host.pod("d", &ports);
        inside(&d, || serve_udp(at(d_ip, 80), "d"));
        assert_eq!(ask_udp(&client, udp).expect("answer"), "d 192.0.2.2");
    });
}

/// A pod whose root sends what is meant for its own loopback to the host (CVE-2020-8558).
#[test]
fn the_hosts_loopback_is_closed_to_pods() {
    in_new_host(|| {
        let host = Host::new();
        let port = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        };
        let (a, _) = host.pod("a", &[port]);
        let read = |name: &str| std::fs::read_to_string(name).expect("a sysctl");
        let open = read("/proc/sys/net/ipv4/conf/pwt0/route_localnet");
        assert_eq!(open.trim(), "1", "or this proves nothing");
        let hidden = at([127, 0, 0, 9], 7);
        serve_udp(hidden, "host");
        let own = UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(
            ask_udp(&own, hidden).expect("from the host"),
            "host 127.0.0.1"
        );
        inside(&a, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("writes");
            run(
                "ip",
                &[
                    "route",
                    "del",
                    "local",
                    "127.0.0.0/8",
                    "dev",
                    "lo",
                    "table",
                    "local",
                ],
            );
            run("ip", &["route", "add", "127.0.0.0/8", "via", "10.42.0.1"]);
            let client = UdpSocket::bind("0.0.0.0:0").expect("bind");
            assert!(ask_udp(&client, hidden).is_err(), "the host answered");
        });
        run("nft", &["flush", "chain", "inet", "pwt-cni", "guard"]);
        inside(&a, || {
            let client = UdpSocket::bind("0.0.0.0:0").expect("bind");
            ask_udp(&client, hidden).expect("without the guard it does");
        });
    });
}

#[test]
fn a_pods_link_goes_with_its_namespace() {
    in_new_host(|| {
        let host = Host::new();
        let (a, _) = host.pod("a", &[]);
        let (b, _) = host.pod("b", &[]);
        // Somebody still holds b's namespace, as a process that hangs in it would.
        let held = std::fs::File::open(&b).expect("open");
        for name in ["a", "b"] {
            host.run(host.network.del_with_netns(&host.attachment(name, &[])))
                .unwrap_or_else(|e| panic!("{}", report(&e)));
        }
        assert!(!a.exists() && !b.exists(), "both files are gone");
        assert_eq!(host.leases(), Vec::<String>::new());
        let ports = || run("ip", &["-o", "link", "show", "master", "pwt0"]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while ports().lines().count() > 1 {
            assert!(std::time::Instant::now() < deadline, "{}", ports());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(
            ports().contains("state DOWN"),
            "b's link is cut off: {}",
            ports()
        );
        host.run(host.network.gc(&[])).expect("gc");
        assert_eq!(ports(), "", "and collected");
        drop(held);
        // Again, when there is nothing: idempotent.
        host.run(host.network.del_with_netns(&host.attachment("a", &[])))
            .expect("twice");
    });
}

#[test]
fn gc_takes_what_a_crash_left() {
    in_new_host(|| {
        let host = Host::new();
        host.pod("a", &[]);
        host.pod("b", &[]);
        // "b" was cut off after its lease and link were made, before anything was written.
        std::fs::remove_file(host.dir.path().join("state/results/b-eth0.json")).expect("a record");
        host.run(host.network.gc(&[("a".into(), "eth0".into())]))
            .expect("gc");
        assert_eq!(host.leases(), ["10.42.0.2"]);
        let links = run("ip", &["-o", "link", "show", "master", "pwt0"]);
        assert_eq!(links.lines().count(), 1, "{links}");
        host.run(host.network.check(&host.attachment("a", &[])))
            .expect("a is as it was");
        host.run(host.network.gc(&[])).expect("gc");
        assert_eq!(host.leases(), Vec::<String>::new());
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    in_new_host(|| {
        let host = Host::new();
        let mut attachment = host.attachment("a", &[]);
        attachment.netns = "/nowhere".into();
        let error = report(
            &host
                .run(host.network.add(&attachment))
                .expect_err("no netns"),
        );
        assert!(
            error.contains("plugin bridge of network podwright failed at ADD"),
            "{error}"
        );
        assert!(error.contains("/nowhere"), "{error}");
        assert_eq!(host.leases(), Vec::<String>::new());
        assert!(!run("ip", &["link"]).contains("pwt0@"), "no port");
        assert!(!host.dir.path().join("state/results/a-eth0.json").exists());
    });
}

#[test]
fn status_names_file_and_field_and_recovers() {
    let host = Host::new();
    let file = host.dir.path().join("conf/10-podwright.conflist");
    let good = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, good.replace("\"bridge\": \"pwt0\"", "\"bridge\": 7")).expect("write");
    let error = report(&host.run(host.network.status()).expect_err("wrong"));
    assert!(
        error.contains("10-podwright.conflist: field plugins[0].bridge: invalid type"),
        "{error}"
    );
    std::fs::write(&file, &good[..40]).expect("write");
    let error = report(&host.run(host.network.status()).expect_err("cut"));
    assert!(
        error.contains("is not valid JSON") && error.contains("line"),
        "{error}"
    );
    std::fs::remove_file(&file).expect("remove");
    let error = report(&host.run(host.network.status()).expect_err("none"));
    assert!(error.contains("no network configuration"), "{error}");
    std::fs::write(&file, good).expect("write");
    host.run(host.network.status()).expect("mended");
}

#[test]
fn pods_of_both_families_need_not_wait_for_their_addresses() {
    in_new_host(|| {
        let host = Host::new();
        let file = host.dir.path().join("conf/10-podwright.conflist");
        let both = std::fs::read_to_string(&file).expect("read");
        let mut list: serde_json::Value = serde_json::from_str(&both).expect("JSON");
        list["plugins"][0]["ipam"]["ranges"] =
            serde_json::json!([[{"subnet": "10.42.0.0/24"}], [{"subnet": "fd00:42::/64"}]]);
        std::fs::write(&file, list.to_string()).expect("write");
        let (a, _) = host.pod("a", &[]);
        let (b, _) = host.pod("b", &[]);
        // At once: no duplicate address detection holds the address back.
        let server = at(
            "fd00:42::3"
                .parse::<std::net::IpAddr>()
                .expect("an address"),
            80,
        );
        inside(&b, || serve_tcp(server, "b"));
        assert_eq!(
            inside(&a, || ask_tcp(server)).expect("pod to pod"),
            "b fd00:42::2"
        );
        let routes = inside(&a, || run("ip", &["-6", "route"]));
        assert!(routes.contains("default via fd00:42::1"), "{routes}");
        let count = 20;
        let begun = std::time::Instant::now();
        (0..count).for_each(|i| drop(host.pod(&format!("p{i}"), &[])));
        eprintln!("a namespace and ADD: {:?} each", begun.elapsed() / count);
    });
}
