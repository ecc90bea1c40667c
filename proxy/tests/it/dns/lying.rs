// SPDX-License-Identifier: Apache-2.0
//! Resolvers that are slow, silent, wrong, or ask back.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};

use super::client::{Resolver, addresses, ask, bytes, code, over_udp, question, with_edns};
use super::place::Dns;
use crate::place::in_new_host;
use crate::whole::within;

fn first_label(asked: &Message) -> String {
    let name = asked.queries[0].name().to_string();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Says what the first label asks it to.
fn liar(asked: &Message, tcp: bool) -> Vec<Vec<u8>> {
    let right = bytes(&addresses(asked, &[[192, 0, 2, 1]]));
    let mut wrong_id = right.clone();
    wrong_id[0] ^= 0xff;
    match first_label(asked).as_str() {
        "guessed" => vec![wrong_id, right],
        "wrong" => vec![wrong_id],
        "another" => {
            let mut other = question("other.example. A");
            other.metadata.id = asked.id;
            vec![bytes(&addresses(&other, &[[6, 6, 6, 6]])), right]
        }
        "query" => vec![bytes(asked), right],
        "long" if !tcp => {
            let mut cut = addresses(asked, &[]);
            cut.metadata.truncation = true;
            vec![bytes(&cut)]
        }
        "long" => vec![bytes(&addresses(asked, &[[192, 0, 2, 7]; 100]))],
        "garbage" => vec![[&right[..12], &[0xff; 40]].concat()],
        "old" if asked.edns.is_some() => vec![bytes(&code(asked, ResponseCode::FormErr))],
        "failing" => vec![bytes(&code(asked, ResponseCode::ServFail))],
        "refusing" => vec![bytes(&code(asked, ResponseCode::Refused))],
        "silent" => Vec::new(),
        "slow" => {
            std::thread::sleep(Duration::from_millis(1500));
            vec![right]
        }
        _ => vec![right],
    }
}

#[test]
fn only_the_right_answer_counts() {
    in_new_host(|| {
        let resolver = Resolver::start("127.0.1.1", liar);
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        for name in ["plain", "guessed", "another", "query", "old", "slow"] {
            let said = ask(&format!("{name}.example. A"));
            assert_eq!(said, "NoError 192.0.2.1", "{name}");
        }
        for name in ["garbage", "failing"] {
            assert_eq!(ask(&format!("{name}.example. A")), "ServFail", "{name}");
        }
        assert_eq!(ask("refusing.example. A"), "Refused");
        let begun = Instant::now();
        assert_eq!(ask("wrong.example. A"), "ServFail");
        assert_eq!(ask("silent.example. A"), "ServFail");
        assert!(begun.elapsed() < Duration::from_secs(12));
        // No two questions came from one port.
        let mut ports = resolver.ports.lock().expect("no panic").clone();
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() + 1 >= count, "{} of {count}", ports.len());
    });
}

#[test]
fn what_does_not_fit_comes_over_tcp() {
    in_new_host(|| {
        Resolver::start("127.0.1.1", liar);
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        let short = over_udp(&question("long.example. A")).expect("an answer");
        assert!(short.truncation);
        let whole = super::client::over_tcp(&question("long.example. A")).expect("an answer");
        assert_eq!((whole.truncation, whole.answers.len()), (false, 100));
        // The answer fits nobody's packet over UDP.
        let modern = over_udp(&with_edns("long.example. A", 4096)).expect("an answer");
        assert!(modern.truncation && modern.edns.is_some());
    });
}

#[test]
fn a_silent_resolver_is_left_for_another() {
    in_new_host(|| {
        let silent = Resolver::start("127.0.1.1", |_, _| Vec::new());
        let good = Resolver::start("127.0.1.2", |asked, _| {
            vec![bytes(&addresses(asked, &[[192, 0, 2, 2]]))]
        });
        let dns = Dns::start("nameserver 127.0.1.1\nnameserver 127.0.1.2\n");
        dns.wait_for_names();
        assert_eq!(ask("a.example. A"), "NoError 192.0.2.2");
        let begun = Instant::now();
        assert_eq!(ask("b.example. A"), "NoError 192.0.2.2");
        assert!(
            begun.elapsed() < Duration::from_millis(1500),
            "it remembers"
        );
        assert_eq!((silent.count(), good.count()), (1, 2));
        // Many who ask the same at once are one question.
        let same: Vec<_> = (0..20)
            .map(|_| std::thread::spawn(|| ask("same.example. A")))
            .collect();
        for thread in same {
            assert_eq!(thread.join().expect("no panic"), "NoError 192.0.2.2");
        }
        assert_eq!(good.count(), 3);
    });
}

#[test]
fn a_resolver_that_asks_back_is_found_out() {
    in_new_host(|| {
        // Passes everything on to the cluster's DNS, as a stub resolver with that server would.
        let socket = UdpSocket::bind("127.0.1.1:53").expect("bind");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let (packet, socket) = (buffer[..length].to_vec(), socket.try_clone());
                std::thread::spawn(move || {
                    let (Ok(socket), Ok(out)) = (socket, UdpSocket::bind("127.0.0.1:0")) else {
                        return;
                    };
                    let _ = out.set_read_timeout(Some(Duration::from_secs(6)));
                    let _ = out.send_to(&packet, super::client::SERVER);
                    let mut reply = [0; 4096];
                    if let Ok(length) = out.recv(&mut reply) {
                        let _ = socket.send_to(&reply[..length], from);
                    }
                });
            }
        });
        let dns = Dns::start("nameserver 127.0.1.1\n");
        dns.wait_for_names();
        let mut number = 0;
        within("the loop is known", || {
            number += 1;
            let begun = Instant::now();
            let said = ask(&format!("n{number}.example. A"));
            said == "ServFail" && begun.elapsed() < Duration::from_millis(500)
        });
        assert_eq!(ask("web.d.svc.cluster.local. A"), "NoError 10.43.0.5");
        // Mended by the file.
        Resolver::start("127.0.1.2", liar);
        dns.resolv_conf("nameserver 127.0.1.2\n");
        within("another resolver", || {
            number += 1;
            ask(&format!("n{number}.example. A")) == "NoError 192.0.2.1"
        });
    });
}
