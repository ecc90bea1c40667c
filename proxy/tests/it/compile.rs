// SPDX-License-Identifier: Apache-2.0
//! What a Service means, without a kernel.

use proxy::service::{Backend, Frontend, Masquerade, Protocol, ServiceRules, Target, compile};
use proxy::state::State;
use serde_json::{Value, json};

use crate::objects::{CLUSTER_IP, endpoint, key, node, ready, service, slice};

fn frontend(addr: &str, protocol: Protocol, port: u16) -> Frontend {
    Frontend {
        addr: addr.parse().expect("an address"),
        protocol,
        port,
    }
}

fn backend(text: &str) -> Backend {
    let socket: std::net::SocketAddr = text.parse().expect("address and port");
    Backend {
        addr: socket.ip(),
        port: socket.port(),
    }
}

fn web(rules: &ServiceRules) -> &Target {
    &rules.frontends[&frontend(CLUSTER_IP, Protocol::Tcp, 80)]
}

fn web_of(endpoints: &[Value]) -> Target {
    web(&compile(
        &service(json!({})),
        &[slice("s-1", endpoints)],
        &node(),
    ))
    .clone()
}

#[test]
fn ports_are_matched_by_name_and_slices_are_merged() {
    let up = |ip| endpoint(ip, "n1", json!({"ready": true}));
    let slices = [
        slice("s-1", &[up("10.42.0.3"), up("10.42.0.2")]),
        slice("s-2", &[up("10.42.0.3"), up("10.42.1.9")]),
    ];
    let rules = compile(&service(json!({})), &slices, &node());
    let expected = ["10.42.0.2:8080", "10.42.0.3:8080", "10.42.1.9:8080"]
        .map(backend)
        .to_vec();
    assert_eq!(
        *web(&rules),
        Target::Backends(expected.clone(), Masquerade::Outside)
    );
    let node_port = &rules.frontends[&frontend("192.0.2.1", Protocol::Tcp, 30080)];
    assert_eq!(*node_port, Target::Backends(expected, Masquerade::All));
    let dns = &rules.frontends[&frontend(CLUSTER_IP, Protocol::Udp, 53)];
    assert!(
        matches!(dns, Target::Backends(b, _) if b[0] == backend("10.42.0.2:5353")),
        "{dns:?}"
    );
    // Two ports on the cluster IP, two on the node's address, none on its loopback.
    assert_eq!(rules.frontends.len(), 4);
}

#[test]
fn unready_endpoints_serve_only_while_they_terminate_and_nothing_else_is_there() {
    let up = endpoint("10.42.0.2", "n1", json!({"ready": true}));
    let down = endpoint("10.42.0.3", "n1", json!({"ready": false}));
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    let leaving = endpoint("10.42.0.4", "n1", conditions);
    let unsaid = endpoint("10.42.0.5", "n1", json!({}));
    let only = |text| Target::Backends(vec![backend(text)], Masquerade::Outside);
    assert_eq!(
        web_of(&[up, down.clone(), leaving.clone()]),
        only("10.42.0.2:8080")
    );
    assert_eq!(web_of(&[down.clone(), leaving]), only("10.42.0.4:8080"));
    assert_eq!(web_of(&[unsaid]), only("10.42.0.5:8080"));
    assert_eq!(web_of(&[down]), Target::Reject);
    assert_eq!(web_of(&[]), Target::Reject);
}

#[test]
fn endpoints_that_would_lead_into_the_host_are_left_out() {
    for ip in [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "fd00::1",
        "no address",
    ] {
        assert_eq!(
            web_of(&[endpoint(ip, "n1", json!({"ready": true}))]),
            Target::Reject,
            "{ip}"
        );
    }
}

#[test]
fn a_local_policy_drops_where_no_endpoint_is() {
    let far = slice(
        "s-1",
        &[endpoint("10.42.1.2", "n2", json!({"ready": true}))],
    );
    let policies = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    let rules = compile(&service(policies), &[far], &node());
    assert!(
        rules.frontends.values().all(|t| *t == Target::Drop),
        "{rules:?}"
    );
}

#[test]
fn what_has_no_cluster_ip_has_no_rules() {
    for extra in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
        json!({"type": "ExternalName", "externalName": "x.example"}),
    ] {
        assert_eq!(ready(extra, &["10.42.0.2"]).frontends.len(), 0);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let rules = ready(
        json!({
            "sessionAffinity": "ClientIP",
            "externalIPs": ["198.51.100.1"],
            "trafficDistribution": "PreferClose",
            "ports": [{"name": "web", "port": 80, "protocol": "SCTP"}]
        }),
        &["10.42.0.2"],
    );
    let words = [
        "sessionAffinity",
        "externalIPs",
        "trafficDistribution",
        "SCTP",
    ];
    for (problem, word) in rules.problems.iter().zip(words) {
        assert!(problem.contains(word), "{problem}");
    }
    assert_eq!((rules.problems.len(), rules.frontends.len()), (4, 0));
}

#[test]
fn a_change_touches_only_its_own_elements() {
    let mut state = State::new("t", &[]);
    let ip = "10.43.0.11";
    let other = json!({"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP"});
    let other = (
        ("d".to_owned(), "other".to_owned()),
        Some(ready(other, &["10.42.0.2"])),
    );
    state.update(vec![
        other,
        (key(), Some(ready(json!({}), &["10.42.0.2", "10.42.0.3"]))),
    ]);
    let same = state.update(vec![(
        key(),
        Some(ready(json!({}), &["10.42.0.3", "10.42.0.2"])),
    )]);
    assert_eq!(same.transaction.commands, []);
    assert_eq!(same.udp.len(), 0);
    let step = state.update(vec![(key(), Some(ready(json!({}), &["10.42.0.2"])))]);
    let text = step.transaction.to_string();
    assert!(
        !text.contains("0a2b000b"),
        "the other Service's address: {text}"
    );
    assert!(
        text.contains("delete element inet t loop4 { 0a2a00030a2a0003 }"),
        "{text}"
    );
    assert!(
        !text.contains("0a2a00020a2a0002"),
        "a pod that both have: {text}"
    );
    assert_eq!(step.udp.len(), 2);
    let gone = state.update(vec![(key(), None)]).transaction.to_string();
    assert!(!gone.contains("add "), "{gone}");
    let full = state.full().transaction.to_string();
    assert!(!full.contains("0a2b000a"), "{full}");
}
