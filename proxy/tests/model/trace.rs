// SPDX-License-Identifier: Apache-2.0
//! Single packets through the rules of a known Service.

use std::net::IpAddr;

use cni::nft::Reject;
use proxy::rules::Settings;
use proxy::service::ServiceRules;
use proxy::state::State;
use serde_json::json;

use crate::objects::{CLUSTER_IP, CLUSTER_IP6, key, ready, settings};
use crate::services::ruleset::{Fate, Outcome, Packet, Ruleset, Tracked};

const POD: &str = "10.42.0.9";
const OUTSIDE: &str = "198.51.100.7";
const NODE: &str = "192.0.2.1";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn packet(src: &str, dst: &str, protocol: u8, dport: u16) -> Packet {
    let pod = src.starts_with("10.42.") || src.starts_with("fd42:");
    let node = |text: &str| text == NODE || text == "2001:db8::1" || text == "127.0.0.1";
    Packet {
        iif: match (pod, node(src)) {
            (true, _) => "pw0",
            (_, true) => "",
            _ => "eth0",
        }
        .to_owned(),
        from_local: node(src),
        to_local: node(dst),
        src: ip(src),
        dst: ip(dst),
        protocol,
        dport,
        oif: String::new(),
        original: None,
        tracked: Tracked::New,
        random: 0,
    }
}

fn served_with(rules: ServiceRules, settings: Settings) -> (State, Ruleset) {
    let mut state = State::new("t", settings);
    let mut ruleset = Ruleset::default();
    ruleset.apply(&state.full().transaction);
    ruleset.apply(&state.update(vec![(key(), Some(rules))]).transaction);
    (state, ruleset)
}

fn served(ips: &[&str]) -> (State, Ruleset) {
    served_with(ready(json!({}), ips), settings())
}

fn led(addr: &str, port: u16, masqueraded: bool) -> Fate {
    Fate::Led {
        to: (ip(addr), port),
        masqueraded,
    }
}

#[test]
fn every_slot_leads_to_its_endpoint() {
    let (_, ruleset) = served(&["10.42.0.2", "10.42.0.3", "10.42.1.4"]);
    for chain in ["prerouting", "nat-output"] {
        for (random, to) in [
            (0, "10.42.0.2"),
            (1, "10.42.0.3"),
            (2, "10.42.1.4"),
            (3, "10.42.0.2"),
        ] {
            for (dst, tcp, udp) in [(CLUSTER_IP, 80, 53), (NODE, 30080, 30053)] {
                for (protocol, port, target) in [(6, tcp, 8080), (17, udp, 5353)] {
                    let asked = Packet {
                        random,
                        ..packet(POD, dst, protocol, port)
                    };
                    let expected = Outcome::Dnat(ip(to), target);
                    assert_eq!(ruleset.trace(chain, &asked), expected);
                }
            }
        }
    }
    // Neither the other protocol, nor the node port elsewhere, nor the Service's port on the node.
    for (dst, protocol, port) in [(CLUSTER_IP, 17, 80), ("127.0.0.1", 6, 30080), (NODE, 6, 80)] {
        let stray = packet(POD, dst, protocol, port);
        assert_eq!(ruleset.trace("prerouting", &stray), Outcome::Accept);
    }
}

#[test]
fn sources_are_replaced_only_where_the_answer_would_go_astray() {
    let (_, ruleset) = served(&["10.42.0.2"]);
    for (src, dst, port, masqueraded) in [
        (POD, CLUSTER_IP, 80, false),
        (NODE, CLUSTER_IP, 80, true),
        (OUTSIDE, CLUSTER_IP, 80, true),
        (OUTSIDE, NODE, 30080, true),
        (POD, NODE, 30080, true),
        ("10.42.0.2", CLUSTER_IP, 80, true),
    ] {
        let fate = ruleset.fate(&packet(src, dst, 6, port));
        assert_eq!(fate, led("10.42.0.2", 8080, masqueraded), "{src} to {dst}");
    }
    let plain = ruleset.fate(&packet(POD, OUTSIDE, 6, 443));
    assert_eq!(plain, Fate::Passed, "not ours");
}

#[test]
fn a_service_without_endpoints_refuses_and_recovers() {
    let (mut state, mut ruleset) = served(&[]);
    let tcp = packet(POD, CLUSTER_IP, 6, 80);
    let udp = packet(POD, CLUSTER_IP, 17, 53);
    let node_port = packet(OUTSIDE, NODE, 6, 30080);
    assert_eq!(ruleset.trace("prerouting", &tcp), Outcome::Accept);
    for (chain, packet, how) in [
        ("forward", &tcp, Reject::TcpReset),
        ("filter-output", &udp, Reject::PortUnreachable),
        ("input", &node_port, Reject::TcpReset),
    ] {
        assert_eq!(ruleset.trace(chain, packet), Outcome::Reject(how));
    }
    let back = state.update(vec![(key(), Some(ready(json!({}), &["10.42.0.2"])))]);
    ruleset.apply(&back.transaction);
    assert_eq!(ruleset.fate(&tcp), led("10.42.0.2", 8080, false));
    assert_eq!(ruleset.trace("input", &node_port), Outcome::Accept);
    let wrong = packet(POD, CLUSTER_IP, 6, 81);
    assert_eq!(ruleset.fate(&wrong), Fate::Refused, "no such port");
    ruleset.apply(&state.update(vec![(key(), None)]).transaction);
    assert_eq!(ruleset.count(), 0);
    assert_eq!(ruleset.trace("forward", &wrong), Outcome::Accept);
}

#[test]
fn a_client_keeps_its_endpoint_until_that_is_gone() {
    let sticky = |ips: &[&str]| ready(json!({"sessionAffinity": "ClientIP"}), ips);
    let all = ["10.42.0.2", "10.42.0.3", "10.42.1.4"];
    let (mut state, mut ruleset) = served_with(sticky(&all), settings());
    let ask = |ruleset: &Ruleset, src: &str, random| {
        ruleset.fate(&Packet {
            random,
            ..packet(src, CLUSTER_IP, 6, 80)
        })
    };
    for random in [1, 0, 2] {
        assert_eq!(ask(&ruleset, POD, random), led("10.42.0.3", 8080, false));
    }
    assert_eq!(ask(&ruleset, "10.42.0.8", 0), led("10.42.0.2", 8080, false));
    let less = state.update(vec![(key(), Some(sticky(&["10.42.0.2", "10.42.1.4"])))]);
    ruleset.apply(&less.transaction);
    for random in [1, 0] {
        assert_eq!(ask(&ruleset, POD, random), led("10.42.1.4", 8080, false));
    }
    ruleset.apply(&state.update(vec![(key(), Some(sticky(&all)))]).transaction);
    assert_eq!(ask(&ruleset, POD, 0), led("10.42.1.4", 8080, false));
    assert_eq!(ask(&ruleset, "10.42.0.8", 1), led("10.42.0.2", 8080, false));
}

#[test]
fn what_cannot_come_from_outside_is_dropped() {
    let (_, ruleset) = served(&["10.42.0.2"]);
    let from = |src: &str, dst: &str, iif: &str| Packet {
        iif: iif.to_owned(),
        ..packet(src, dst, 6, 80)
    };
    for bad in [
        from(OUTSIDE, "127.0.0.1", "eth0"),
        from("127.0.0.1", CLUSTER_IP, "eth0"),
        from(CLUSTER_IP, "10.42.0.2", "eth0"),
        from(POD, "127.0.0.1", "pw0"),
    ] {
        assert_eq!(ruleset.fate(&bad), Fate::Dropped, "{bad:?}");
    }
    let own = from("127.0.0.1", "127.0.0.1", "lo");
    assert_eq!(ruleset.fate(&own), Fate::Passed);
    let outside = from(OUTSIDE, CLUSTER_IP, "eth0");
    assert_eq!(ruleset.fate(&outside), led("10.42.0.2", 8080, true));
    let strict = Settings {
        strict: true,
        ..settings()
    };
    let (_, ruleset) = served_with(ready(json!({}), &["10.42.0.2"]), strict);
    assert_eq!(ruleset.fate(&outside), Fate::Dropped);
    let inside = from(POD, CLUSTER_IP, "pw0");
    assert_eq!(ruleset.fate(&inside), led("10.42.0.2", 8080, false));
}

#[test]
fn lists_of_sources_share_chains_and_give_their_numbers_on() {
    let balancer = |ranges: &[&str]| {
        Some(ready(
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges,
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}}),
            &["10.42.0.2"],
        ))
    };
    let mut state = State::new("t", settings());
    let mut ruleset = Ruleset::default();
    ruleset.apply(&state.full().transaction);
    for round in 0..20 {
        let range = format!("203.0.{round}.0/24");
        let step = state.update(vec![(key(), balancer(&[&range]))]);
        let text = step.transaction.to_string();
        // The list before is in use until the transaction is done, so there are two in turns.
        assert!(!text.contains("sources-4"), "{text}");
        ruleset.apply(&step.transaction);
        let from = |src: &str| ruleset.fate(&packet(src, "198.51.100.9", 6, 80));
        assert_eq!(
            from(&format!("203.0.{round}.5")),
            led("10.42.0.2", 8080, true)
        );
        assert_eq!(from("203.0.77.5"), Fate::Dropped);
    }
}

#[test]
fn ipv6_fares_the_same() {
    let both = json!({"clusterIPs": [CLUSTER_IP, CLUSTER_IP6]});
    let (_, ruleset) = served_with(ready(both, &["fd42::2", "10.42.0.2"]), settings());
    for (src, dst, port, masqueraded) in [
        ("fd42::9", CLUSTER_IP6, 80, false),
        ("2001:db8::1", CLUSTER_IP6, 80, true),
        ("2001:db8:f::1", "2001:db8::1", 30080, true),
        ("fd42::2", CLUSTER_IP6, 80, true),
    ] {
        let fate = ruleset.fate(&packet(src, dst, 6, port));
        assert_eq!(fate, led("fd42::2", 8080, masqueraded), "{src} to {dst}");
    }
    let wrong = packet("fd42::9", CLUSTER_IP6, 6, 81);
    assert_eq!(ruleset.fate(&wrong), Fate::Refused);
}
