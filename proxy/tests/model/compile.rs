// SPDX-License-Identifier: Apache-2.0
//! What a Service means, without a kernel.

use proxy::service::{
    Backend, Frontend, HealthCheck, Masquerade, Protocol, Refuse, ServiceRules, Target,
};
use proxy::state::State;
use serde_json::{Value, json};

use crate::objects::{
    CLUSTER_IP, endpoint, key, node, ready, rules_at, rules_of, service, settings, slice,
};

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

fn backends(texts: &[&str]) -> Vec<Backend> {
    texts.iter().map(|text| backend(text)).collect()
}

fn at<'a>(rules: &'a ServiceRules, addr: &str) -> &'a Target {
    let frontend = frontend(addr, Protocol::Tcp, 80);
    rules.target(&frontend).expect("a frontend")
}

fn web(rules: &ServiceRules) -> &Target {
    at(rules, CLUSTER_IP)
}

fn node_port(rules: &ServiceRules) -> &Target {
    let frontend = Frontend::node_port(true, Protocol::Tcp, 30080);
    rules.target(&frontend).expect("a node port")
}

fn web_of(endpoints: &[Value]) -> Target {
    web(&rules_of(&service(json!({})), &[slice("s-1", endpoints)])).clone()
}

fn up(ip: &str) -> Value {
    endpoint(ip, "n1", json!({"ready": true}))
}

fn far(ip: &str) -> Value {
    endpoint(ip, "n2", json!({"ready": true}))
}

fn leaving(ip: &str) -> Value {
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    endpoint(ip, "n1", conditions)
}

#[test]
fn ports_are_matched_by_name_and_slices_are_merged() {
    let slices = [
        slice("s-1", &[up("10.42.0.3"), up("10.42.0.2")]),
        slice("s-2", &[up("10.42.0.3"), far("10.42.1.9")]),
    ];
    let rules = rules_of(&service(json!({})), &slices);
    let expected = backends(&["10.42.0.2:8080", "10.42.0.3:8080", "10.42.1.9:8080"]);
    assert_eq!(*web(&rules).cluster, expected);
    assert_eq!(web(&rules).masquerade, Masquerade::Outside);
    assert_eq!(*node_port(&rules).cluster, expected);
    assert_eq!(node_port(&rules).masquerade, Masquerade::All);
    let dns = frontend(CLUSTER_IP, Protocol::Udp, 53);
    let dns = rules.target(&dns).expect("a frontend");
    assert_eq!(dns.cluster[0], backend("10.42.0.2:5353"));
    assert_eq!(rules.frontends.len(), 4);
    assert_eq!(rules.loops.len(), 2, "pods of this node");
}

#[test]
fn unready_endpoints_serve_only_while_they_terminate_and_nothing_else_is_there() {
    let down = endpoint("10.42.0.3", "n1", json!({"ready": false}));
    let unsaid = endpoint("10.42.0.5", "n1", json!({}));
    let only = |endpoints: &[Value]| web_of(endpoints).cluster.to_vec();
    assert_eq!(
        only(&[up("10.42.0.2"), down.clone(), leaving("10.42.0.4")]),
        backends(&["10.42.0.2:8080"])
    );
    assert_eq!(
        only(&[down.clone(), leaving("10.42.0.4")]),
        backends(&["10.42.0.4:8080"])
    );
    assert_eq!(only(&[unsaid]), backends(&["10.42.0.5:8080"]));
    for nobody in [web_of(&[down]), web_of(&[])] {
        assert!(nobody.cluster.is_empty());
        assert_eq!(nobody.refuse, Some(Refuse::Reject));
    }
}

#[test]
fn endpoints_that_would_lead_into_the_host_are_left_out() {
    for ip in [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "no address",
    ] {
        assert_eq!(web_of(&[up(ip)]).refuse, Some(Refuse::Reject), "{ip}");
    }
}

#[test]
fn a_local_policy_leads_outsiders_to_this_node_and_everybody_else_everywhere() {
    let local = json!({"externalTrafficPolicy": "Local"});
    let both = [slice("s-1", &[up("10.42.0.2"), far("10.42.1.2")])];
    let rules = rules_of(&service(local.clone()), &both);
    let target = node_port(&rules);
    assert_eq!(
        *target.cluster,
        backends(&["10.42.0.2:8080", "10.42.1.2:8080"])
    );
    let here = target.local.as_deref().expect("two kinds of clients");
    assert_eq!(here, backends(&["10.42.0.2:8080"]));
    assert_eq!((target.masquerade, target.refuse), (Masquerade::Host, None));
    let rules = rules_of(&service(local), &[slice("s-1", &[far("10.42.1.2")])]);
    assert_eq!(node_port(&rules).refuse, Some(Refuse::Drop));
    assert_eq!(node_port(&rules).cluster.len(), 1, "pods still reach it");
    let internal = json!({"internalTrafficPolicy": "Local"});
    let rules = rules_of(&service(internal), &both);
    assert_eq!(*web(&rules).cluster, backends(&["10.42.0.2:8080"]));
    let internal = json!({"internalTrafficPolicy": "Local"});
    let rules = rules_of(&service(internal), &[slice("s-1", &[far("10.42.1.2")])]);
    assert!(web(&rules).cluster.is_empty());
    assert_eq!(web(&rules).refuse, Some(Refuse::Drop));
}

#[test]
fn an_endpoint_that_terminates_serves_outsiders_while_others_serve_the_rest() {
    let local = json!({"externalTrafficPolicy": "Local"});
    let slices = [slice("s-1", &[leaving("10.42.0.2"), far("10.42.1.2")])];
    let rules = rules_of(&service(local), &slices);
    let target = node_port(&rules);
    assert_eq!(*target.cluster, backends(&["10.42.1.2:8080"]));
    assert_eq!(
        target.local.as_deref(),
        Some(&*backends(&["10.42.0.2:8080"]))
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
fn external_addresses_are_frontends_and_a_balancers_have_their_sources() {
    let balancer = json!({
        "type": "LoadBalancer", "externalIPs": ["198.51.100.1", "127.0.0.1"],
        "loadBalancerSourceRanges": ["203.0.113.7/24", "198.18.0.0/15"], "healthCheckNodePort": 32000,
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.9"}, {"ip": "198.51.100.8", "ipMode": "Proxy"}, {"hostname": "lb"}]}}
    });
    let rules = ready(balancer, &["10.42.0.2"]);
    assert_eq!(at(&rules, "198.51.100.1").masquerade, Masquerade::All);
    assert_eq!(at(&rules, "198.51.100.1").sources, None);
    let sources = at(&rules, "198.51.100.9").sources.clone();
    let sources: Vec<String> = sources
        .iter()
        .flat_map(|s| s.iter())
        .map(ToString::to_string)
        .collect();
    assert_eq!(sources, ["198.18.0.0/15", "203.0.113.0/24"]);
    let proxied = frontend("198.51.100.8", Protocol::Tcp, 80);
    assert_eq!(rules.target(&proxied), None);
    assert!(
        rules.problems[0].contains("127.0.0.1"),
        "{:?}",
        rules.problems
    );
    assert_eq!(rules.health, None, "not with the Cluster policy");
}

#[test]
fn a_node_that_may_reach_its_balancer_may_use_the_balancers_address() {
    let balancer = json!({
        "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}
    });
    let rules = ready(balancer, &["10.42.0.2", "10.42.0.3", "fd42::2"]);
    let sources = at(&rules, "198.51.100.9").sources.clone().expect("sources");
    assert!(sources.iter().any(|s| s.to_string() == "198.51.100.9/32"));
    let expected = HealthCheck {
        port: 32000,
        endpoints: 2,
    };
    assert_eq!(rules.health, Some(expected));
}

fn hinted(ip: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Value {
    let names = |list: &[&str]| list.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
    let mut endpoint = endpoint(ip, node, json!({"ready": true}));
    endpoint["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
    endpoint
}

#[test]
fn hints_choose_the_node_then_the_zone_and_count_only_together() {
    let same_zone = hinted("10.42.0.2", "n2", &["z1"], &[]);
    let other_zone = hinted("10.42.0.3", "n3", &["z2"], &[]);
    let of = |endpoints: &[Value]| web_of(endpoints).cluster.to_vec();
    assert_eq!(
        of(&[same_zone.clone(), other_zone.clone()]),
        backends(&["10.42.0.2:8080"])
    );
    assert_eq!(
        of(std::slice::from_ref(&other_zone)).len(),
        1,
        "none for us: all"
    );
    assert_eq!(
        of(&[same_zone, other_zone, up("10.42.0.4")]).len(),
        3,
        "one without a hint: all"
    );
    let here = hinted("10.42.0.5", "n1", &["z1"], &["n1"]);
    let near = hinted("10.42.0.6", "n2", &["z1"], &["n2"]);
    assert_eq!(of(&[here, near.clone()]), backends(&["10.42.0.5:8080"]));
    let far = hinted("10.42.0.7", "n3", &["z2"], &["n3"]);
    assert_eq!(
        of(&[near, far]),
        backends(&["10.42.0.6:8080"]),
        "then the zone"
    );
    let nowhere = proxy::service::Node {
        zone: String::new(),
        ..node()
    };
    let slices = [slice("s-1", &[hinted("10.42.0.3", "n3", &[""], &[])])];
    let rules = rules_at(&service(json!({})), &slices, &nowhere);
    assert_eq!(web(&rules).cluster.len(), 1);
}

#[test]
fn sctp_and_affinity_are_served() {
    let rules = ready(
        json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}},
            "ports": [{"name": "sig", "port": 2905, "protocol": "SCTP"}]
        }),
        &["10.42.0.2"],
    );
    let target = rules.target(&frontend(CLUSTER_IP, Protocol::Sctp, 2905));
    let target = target.expect("a frontend");
    assert_eq!(*target.cluster, backends(&["10.42.0.2:2905"]));
    assert_eq!(target.affinity, Some(7));
    let unsaid = ready(json!({"sessionAffinity": "ClientIP"}), &["10.42.0.2"]);
    assert_eq!(web(&unsaid).affinity, Some(10800));
    let strange = json!({"ports": [{"name": "x", "port": 1, "protocol": "DCCP"}]});
    assert!(ready(strange, &[]).problems[0].contains("DCCP"));
}

#[test]
fn both_families_have_frontends_and_endpoints_of_their_own() {
    let ips = json!({"clusterIPs": [CLUSTER_IP, "fd43::10"]});
    let rules = ready(ips, &["10.42.0.2", "fd42::2"]);
    assert_eq!(*web(&rules).cluster, backends(&["10.42.0.2:8080"]));
    assert_eq!(
        *at(&rules, "fd43::10").cluster,
        backends(&["[fd42::2]:8080"])
    );
    assert_eq!(rules.frontends.len(), 8);
}

#[test]
fn a_change_touches_only_its_own_elements() {
    let mut state = State::new("t", settings());
    let ip = "10.43.0.11";
    let ports = json!([{"name": "web", "port": 80}]);
    let other = json!({"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "ports": ports});
    let other = (
        ("d".to_owned(), "other".to_owned()),
        Some(ready(other, &["10.42.0.2"])),
    );
    state.full();
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
    assert!(!text.contains("chain"), "chains are there already: {text}");
    assert_eq!(step.udp.len(), 2, "DNS at the cluster IP and the node port");
    let gone = state.update(vec![(key(), None)]).transaction.to_string();
    assert!(!gone.contains("add "), "{gone}");
    let full = state.full().transaction.to_string();
    assert!(!full.contains("0a2b000a"), "{full}");
}

#[test]
fn the_first_of_two_services_keeps_an_address_until_it_goes() {
    let mut state = State::new("t", settings());
    state.full();
    let named = |name: &str| ("d".to_owned(), name.to_owned());
    let one = |ip: &str| Some(ready(json!({"type": "ClusterIP"}), &[ip]));
    let text = |step: proxy::state::Step| step.transaction.to_string();
    let first = text(state.update(vec![(named("b"), one("10.42.0.2"))]));
    assert!(first.contains("0a2a0002"), "{first}");
    let second = text(state.update(vec![(named("a"), one("10.42.0.3"))]));
    assert!(!second.contains("services4"), "{second}");
    let names = [named("a"), named("b")].into();
    assert!(
        state
            .conflicts(&names)
            .iter()
            .all(|(who, _)| *who == named("a"))
    );
    let third = text(state.update(vec![(named("b"), None)]));
    assert!(third.contains("add element inet t endpoints4"), "{third}");
    assert!(third.contains("0a2a0003"), "{third}");
}
