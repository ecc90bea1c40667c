// SPDX-License-Identifier: Apache-2.0
//! What clients get, and what becomes of the address.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use serde_json::json;

use super::client::{
    Resolver, SERVER, addresses, ask, bytes, code, connect, over_tcp, over_udp, question, receive,
    said, send, with_edns,
};
use super::place::{Dns, service};
use crate::api::SERVICES;
use crate::host::inside;
use crate::place::{in_new_host, run};
use crate::scene::Scene;
use crate::whole::{get, within};

fn plain(asked: &Message, _: bool) -> Vec<Vec<u8>> {
    let name = asked.queries[0].name().to_string();
    match name.as_str() {
        "none.example." => vec![bytes(&code(asked, ResponseCode::NXDomain))],
        _ => vec![bytes(&addresses(asked, &[[192, 0, 2, 1]]))],
    }
}

fn has_address() -> bool {
    run("ip", &["-o", "addr", "show", "dev", "lo"]).contains("10.43.0.10/32 scope host")
}

#[test]
fn clients_find_what_the_api_says() {
    in_new_host(|| {
        let resolver = Resolver::start("127.0.1.1", plain);
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        for (asked, expected) in [
            ("db-1.db.d.svc.cluster.local. A", "NoError 10.42.0.3"),
            ("WEB.d.svc.cluster.local. A", "NoError 10.43.0.5"),
            ("web.d.svc.cluster.local. AAAA", "NoError"),
            ("none.d.svc.cluster.local. A", "NXDomain"),
            (
                "5.0.43.10.in-addr.arpa. PTR",
                "NoError web.d.svc.cluster.local.",
            ),
            (
                "_http._tcp.web.d.svc.cluster.local. SRV",
                "NoError 0 100 80 web.d.svc.cluster.local.",
            ),
            (
                "out.d.svc.cluster.local. A",
                "NoError www.example. 192.0.2.1",
            ),
            ("www.example. A", "NoError 192.0.2.1"),
            ("none.example. A", "NXDomain"),
            ("localhost. A", "NoError 127.0.0.1"),
            ("example. AXFR", "Refused"),
        ] {
            assert_eq!(ask(asked), expected, "{asked}");
            let tcp = over_tcp(&question(asked)).expect("an answer");
            assert_eq!(said(&tcp), expected, "{asked} over TCP");
        }
        // Once for the alias and the name, and a denial that may not be kept each time.
        let before = resolver.count();
        assert_eq!(ask("www.example. A"), "NoError 192.0.2.1");
        assert_eq!(resolver.count(), before);
        let page = run(
            "busybox",
            &[
                "nslookup",
                "-type=a",
                "db.d.svc.cluster.local",
                "10.43.0.10",
            ],
        );
        assert!(
            page.contains("10.42.0.2") && page.contains("10.42.0.3"),
            "{page}"
        );
        // A change is an answer.
        let moved = service("web", json!({"clusterIP": "10.43.0.99"}));
        dns.api.say(SERVICES, "MODIFIED", moved);
        within("the new address", || {
            ask("web.d.svc.cluster.local. A") == "NoError 10.43.0.99"
        });
        let (status, page) = get("10.43.0.10:9153", "/metrics");
        assert_eq!(status, 200);
        for name in [
            "coredns_dns_requests_total{",
            "coredns_cache_hits_total{",
            "rcode=\"NOERROR\",to=\"127.0.1.1:53\"",
        ] {
            assert!(page.contains(name), "no {name} in\n{page}");
        }
    });
}

#[test]
fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    in_new_host(|| {
        let dns = Dns::start("");
        dns.wait_for_names();
        let name = "many.d.svc.cluster.local. A";
        for (message, limit) in [
            (question(name), 512),
            (with_edns(name, 1000), 1000),
            (with_edns(name, 9000), 1232),
        ] {
            let reply = over_udp(&message).expect("an answer");
            assert!(reply.truncation && bytes(&reply).len() <= limit, "{limit}");
            assert!(!reply.answers.is_empty());
        }
        let whole = over_tcp(&question(name)).expect("an answer");
        assert_eq!((whole.truncation, whole.answers.len()), (false, 200));
        // Nobody to ask for other names.
        assert_eq!(ask("www.example. A"), "ServFail");
    });
}

#[test]
fn a_connection_takes_many_questions_and_a_client_few_connections() {
    in_new_host(|| {
        Resolver::start("127.0.1.1", |asked, _| {
            std::thread::sleep(Duration::from_millis(300));
            vec![bytes(&addresses(asked, &[[192, 0, 2, 1]]))]
        });
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        let mut stream = connect().expect("connect");
        let mut slow = question("slow.example. A");
        slow.metadata.id = 1;
        let mut quick = question("web.d.svc.cluster.local. A");
        quick.metadata.id = 2;
        send(&mut stream, &bytes(&slow)).expect("send");
        send(&mut stream, &bytes(&quick)).expect("send");
        let ids: Vec<u16> = (0..2)
            .map(|_| receive(&mut stream).expect("an answer"))
            .map(|packet| u16::from_be_bytes([packet[0], packet[1]]))
            .collect();
        assert_eq!(ids, [2, 1], "what is known is not held up");
        // A message that is no question ends the connection.
        stream.write_all(&[0, 3, 1, 2, 3]).expect("write");
        assert_eq!(stream.read(&mut [0; 10]).expect("the end"), 0);
        let open: Vec<TcpStream> = (0..40).map(|_| connect().expect("connect")).collect();
        let served = |mut stream: &TcpStream| {
            let packet = bytes(&question("web.d.svc.cluster.local. A"));
            let framed = [&(packet.len() as u16).to_be_bytes()[..], &packet].concat();
            stream.write_all(&framed).is_ok()
                && matches!(stream.read(&mut [0; 512]), Ok(n) if n > 0)
        };
        assert_eq!(open.iter().filter(|stream| served(stream)).count(), 32);
        // Those that have gone leave their places.
        drop(open);
        within("a place", || {
            over_tcp(&question("web.d.svc.cluster.local. A")).is_ok()
        });
    });
}

#[test]
fn packets_that_are_no_questions_do_no_harm() {
    in_new_host(|| {
        let dns = Dns::start("");
        dns.wait_for_names();
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.connect(SERVER).expect("connect");
        let good = bytes(&question("web.d.svc.cluster.local. A"));
        for length in 0..good.len() {
            socket.send(&good[..length]).expect("send");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0xff;
            socket.send(&bad).expect("send");
        }
        socket.send(&[0xff; 4000]).expect("send");
        assert_eq!(ask("web.d.svc.cluster.local. A"), "NoError 10.43.0.5");
    });
}

#[test]
fn pods_are_served_and_strangers_only_with_the_clusters_names() {
    in_new_host(|| {
        let scene = Scene::new(true);
        Resolver::start("127.0.1.1", plain);
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        let both = || {
            let own = ask("web.d.svc.cluster.local. A");
            (
                own,
                ask("www.example. A"),
                over_tcp(&question("www.example. A")).map(|r| said(&r)),
            )
        };
        let (own, other) = (
            "NoError 10.43.0.5".to_owned(),
            "NoError 192.0.2.1".to_owned(),
        );
        let from_pod = inside(&scene.pods[2], both);
        assert_eq!((from_pod.0, from_pod.1), (own.clone(), other.clone()));
        assert_eq!(from_pod.2.expect("TCP"), other);
        let from_outside = inside(&scene.outside, both);
        assert_eq!(
            (from_outside.0, from_outside.1),
            (own, "Refused".to_owned())
        );
        // A port of the address that nothing listens on.
        let closed = inside(&scene.pods[2], || TcpStream::connect("10.43.0.10:80"));
        let closed = closed.expect_err("nobody is there").kind();
        assert_eq!(closed, std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn the_address_is_kept_and_in_the_end_removed() {
    in_new_host(|| {
        let mut dns = Dns::start("");
        dns.wait_for_names();
        assert!(has_address());
        run("ip", &["addr", "del", "10.43.0.10/32", "dev", "lo"]);
        let took = within("the address", has_address);
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(ask("web.d.svc.cluster.local. A"), "NoError 10.43.0.5");
        dns.end();
        assert!(has_address(), "clients are refused, not led elsewhere");
        dns.run();
        dns.wait_for_names();
        dns.end();
        let file = dns.state_file();
        proxy::dns::cleanup(&file).expect("cleanup");
        assert!(!has_address() && !file.exists());
        proxy::dns::cleanup(&file).expect("again");
        dns.run();
    });
}

#[test]
fn a_port_that_is_taken_is_waited_for() {
    in_new_host(|| {
        let other = UdpSocket::bind("0.0.0.0:53").expect("bind");
        // It says that it is ready all the same: the node goes on without.
        let dns = Dns::start("");
        drop(other);
        dns.wait_for_names();
    });
}
