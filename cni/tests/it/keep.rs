// SPDX-License-Identifier: Apache-2.0
//! Somebody takes away what pods need on the host: it comes back, and nothing of others is touched.

use std::path::Path;
use std::time::{Duration, Instant};

use cni::{PortMapping, Protocol, netns};

use crate::host::{Host, at, inside, neighbour};
use crate::place::{ask_tcp, in_new_host, run, serve_tcp};

/// What the issue allows.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// Run `work` while the host's network is kept.
fn while_kept(host: &Host, work: impl FnOnce()) {
    let network = host.network.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let keeper = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = network.keep() => {}
                    _ = stopped => {}
                }
            });
        });
        work();
        drop(stop);
        keeper.join().expect("the keeper");
    });
}

/// Until `works`; panics after the time that a repair may take.
fn until(what: &str, mut works: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !works() {
        assert!(begun.elapsed() < REPAIRED_WITHIN, "{what} is not repaired");
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("{what}: repaired after {:?}", begun.elapsed());
}

fn gateway_mac(pod: &Path) -> String {
    inside(pod, || {
        let text = run("ip", &["neigh", "show", "10.42.0.1"]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words
            .iter()
            .position(|w| *w == "lladdr")
            .expect("a neighbour");
        words[at + 1].to_owned()
    })
}

#[test]
fn what_is_taken_away_comes_back() {
    in_new_host(|| {
        let host = Host::new();
        let outside = neighbour(&host);
        let port = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        };
        let (a, a_ip) = host.pod("a", &[port]);
        let (b, b_ip) = host.pod("b", &[]);
        inside(&a, || serve_tcp(at(a_ip, 80), "a"));
        inside(&outside, || {
            serve_tcp("192.0.2.2:80".parse().expect("address"), "out");
        });
        run("ip", &["route", "add", "default", "via", "192.0.2.2"]);
        run("nft", &["add", "table", "inet", "others"]);
        run("nft", &["add", "chain", "inet", "others", "c"]);
        run(
            "nft",
            &["add", "rule", "inet", "others", "c", "counter", "accept"],
        );
        let others = run("nft", &["list", "table", "inet", "others"]);

        // From pod to pod, out into the world with the node's address, and in by a host port.
        let works = || {
            let pods =
                inside(&b, || ask_tcp(at(a_ip, 80))).is_ok_and(|said| said == format!("a {b_ip}"));
            let out = inside(&b, || ask_tcp(at([192, 0, 2, 2], 80)))
                .is_ok_and(|said| said == "out 192.0.2.1");
            let port = inside(&outside, || ask_tcp(at([192, 0, 2, 1], 8080)))
                .is_ok_and(|said| said == "a 192.0.2.2");
            let local = ask_tcp(at([127, 0, 0, 1], 8080)).is_ok();
            pods && out && port && local
        };
        assert!(works(), "before anything is taken away");
        let mac = gateway_mac(&b);
        let check = || {
            for name in ["a", "b"] {
                let attachment = host.attachment(name, &[]);
                host.run(host.network.check(&attachment))
                    .expect("as ADD left it");
            }
        };
        while_kept(&host, || {
            for (what, program, args) in [
                (
                    "a flushed table",
                    "nft",
                    &["flush", "table", "inet", "pwt-cni"][..],
                ),
                (
                    "a deleted table",
                    "nft",
                    &["delete", "table", "inet", "pwt-cni"],
                ),
                ("a deleted bridge", "ip", &["link", "del", "pwt0"]),
                (
                    "a bridge that is down",
                    "ip",
                    &["link", "set", "pwt0", "down"],
                ),
                (
                    "a bridge without addresses",
                    "ip",
                    &["addr", "flush", "dev", "pwt0"],
                ),
                ("a deleted bridge, again", "ip", &["link", "del", "pwt0"]),
            ] {
                run(program, args);
                until(what, works);
                check();
                assert_eq!(gateway_mac(&b), mac, "{what}: pods remember their gateway");
            }
            run(
                "nft",
                &[
                    "delete",
                    "element",
                    "inet",
                    "pwt-cni",
                    "hostport4",
                    "{ tcp . 8080 }",
                ],
            );
            until("a deleted element", works);
            assert_eq!(run("nft", &["list", "table", "inet", "others"]), others);

            // What goes by itself does not come back.
            host.run(host.network.del(&host.attachment("a", &[])))
                .expect("del");
            netns::remove(&a).expect("remove");
            run("nft", &["flush", "table", "inet", "pwt-cni"]);
            until("a flushed table, with one pod", || {
                inside(&b, || ask_tcp(at([192, 0, 2, 2], 80))).is_ok_and(|s| s == "out 192.0.2.1")
            });
            let rules = run("nft", &["list", "table", "inet", "pwt-cni"]);
            assert!(!rules.contains(&a_ip.to_string()), "{rules}");
        });
    });
}

#[test]
fn nothing_is_made_for_nobody() {
    in_new_host(|| {
        let host = Host::new();
        assert_eq!(host.run(host.network.repair()).expect("nothing to do"), 0);
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        assert!(!run("ip", &["link"]).contains("pwt0"));
    });
}
