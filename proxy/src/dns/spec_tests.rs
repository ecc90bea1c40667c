// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes DNS specification 1.1.0 as a table of questions and answers, and what RFC 1034,
//! 2308, 8020 and 8482 say around it.

use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{Answer, Outcome, Turn, answer};
use super::zone::{Place, Zone};

fn place() -> Place {
    Place {
        domain: Name::from_ascii("cluster.local.").expect("a name"),
        servers: vec!["10.43.0.10".parse().expect("an address")],
        pods: vec![
            "10.42.0.0/16".parse().expect("a range"),
            "fd42::/48".parse().expect("a range"),
        ],
        services: vec!["10.43.0.0/16".parse().expect("a range")],
    }
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn list<T>(objects: Vec<T>) -> impl Iterator<Item = Event<T>> {
    let each = objects.into_iter().map(Event::InitApply);
    std::iter::once(Event::Init)
        .chain(each)
        .chain(std::iter::once(Event::InitDone))
}

fn service(name: &str, spec: Value) -> Service {
    object(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec}))
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    object(json!({
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints
    }))
}

fn endpoint(ip: &str, hostname: Option<&str>, ready: bool) -> Value {
    json!({"addresses": [ip], "hostname": hostname, "conditions": {"ready": ready}})
}

fn services() -> Vec<Service> {
    let ports = json!([
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"}
    ]);
    let headless = |more: Value| {
        let mut spec = json!({"clusterIP": "None", "ports": ports});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    };
    vec![
        service("web", json!({"clusterIP": "10.43.0.5", "ports": ports})),
        service(
            "plain",
            json!({"clusterIP": "10.43.0.6", "ports": [{"port": 80}]}),
        ),
        service(
            "dual",
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::7"], "ports": ports}),
        ),
        service("pending", json!({"ports": ports})),
        service("db", headless(json!({}))),
        service("portless", headless(json!({"ports": []}))),
        service("nobody", headless(json!({}))),
        service("early", headless(json!({"publishNotReadyAddresses": true}))),
        service(
            "out",
            json!({"type": "ExternalName", "externalName": "www.Example.com"}),
        ),
        service(
            "alias",
            json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local."}),
        ),
        service(
            "dangling",
            json!({"type": "ExternalName", "externalName": "none.default.svc.cluster.local"}),
        ),
        service(
            "ring",
            json!({"type": "ExternalName", "externalName": "ring.default.svc.cluster.local"}),
        ),
        service(
            "digits",
            json!({"type": "ExternalName", "externalName": "192.0.2.1"}),
        ),
    ]
}

fn slices() -> Vec<EndpointSlice> {
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    vec![
        slice(
            "web-1",
            "web",
            ports.clone(),
            json!([endpoint("10.42.0.9", None, true)]),
        ),
        slice(
            "db-1",
            "db",
            ports.clone(),
            json!([
                endpoint("10.42.0.2", Some("db-0"), true),
                endpoint("10.42.0.3", Some("db-1"), true),
                endpoint("10.42.0.4", None, true),
                endpoint("10.42.0.8", Some("db-2"), false),
            ]),
        ),
        // The same endpoint twice, as while slices are made anew; and another family.
        slice(
            "db-2",
            "db",
            ports.clone(),
            json!([endpoint("10.42.0.2", Some("db-0"), true)]),
        ),
        slice(
            "db-6",
            "db",
            ports.clone(),
            json!([endpoint("fd42::2", Some("db-0"), true)]),
        ),
        slice(
            "portless-1",
            "portless",
            json!([]),
            json!([endpoint("10.42.0.20", None, true)]),
        ),
        slice(
            "nobody-1",
            "nobody",
            ports.clone(),
            json!([endpoint("10.42.0.21", None, false)]),
        ),
        slice(
            "early-1",
            "early",
            ports,
            json!([endpoint("10.42.0.22", None, false)]),
        ),
    ]
}

fn zone() -> Zone {
    let mut zone = Zone::new(place(), 7);
    list(services()).for_each(|event| zone.service_event(event));
    list(slices()).for_each(|event| zone.slice_event(event));
    let names = ["default", "kube-system"];
    let namespaces = names.map(|name| object(json!({"metadata": {"name": name}})));
    list::<Namespace>(namespaces.into()).for_each(|event| zone.namespace_event(event));
    zone
}

const TURN: Turn = Turn {
    offset: 0,
    room: 100,
};

fn ask_in(zone: &Zone, question: &str, class: DNSClass, turn: Turn) -> Outcome {
    let (name, kind) = question.split_once(' ').expect("a name and a type");
    let name = Name::from_ascii(name).expect("a name");
    let kind = match kind {
        "IXFR" => RecordType::IXFR,
        "OPT" => RecordType::OPT,
        "TKEY" => RecordType::Unknown(249),
        known => known.parse().expect("a type"),
    };
    let mut query = Query::query(name, kind);
    query.set_query_class(class);
    answer(&query, zone, turn)
}

fn record(record: &Record) -> String {
    let (name, ttl, kind) = (&record.name, record.ttl, record.record_type());
    format!("{name} {ttl} {kind} {}", record.data)
}

fn words(answer: &Answer) -> String {
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    let mut words = vec![format!("{:?}", answer.code)];
    for (mark, section) in ["", "auth ", "more "].into_iter().zip(sections) {
        words.extend(section.iter().map(|r| format!("{mark}{}", record(r))));
    }
    words.join("; ")
}

fn ask(zone: &Zone, question: &str) -> String {
    match ask_in(zone, question, DNSClass::IN, TURN) {
        Outcome::Done(answer) => words(&answer),
        Outcome::Forward => "forward".to_owned(),
        Outcome::Follow(answer, target) => format!("{} -> {target}", words(&answer)),
    }
}

const SOA: &str = "auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 28 7200 1800 86400 5";

fn check(table: &[(&str, &str)]) {
    let zone = zone();
    for (question, expected) in table {
        let expected = match *expected {
            "NODATA" => format!("NoError; {SOA}"),
            "NX" => format!("NXDomain; {SOA}"),
            other => other.to_owned(),
        };
        assert_eq!(ask(&zone, question), expected, "{question}");
    }
}

#[test]
fn the_schema_version_and_the_zone_itself() {
    check(&[
        (
            "dns-version.cluster.local. TXT",
            "NoError; dns-version.cluster.local. 28800 TXT 1.1.0",
        ),
        ("dns-version.cluster.local. A", "NODATA"),
        ("cluster.local. A", "NODATA"),
        ("cluster.local. SOA", &SOA.replace("auth ", "NoError; ")),
        (
            "cluster.local. NS",
            "NoError; cluster.local. 5 NS ns.dns.cluster.local.; more ns.dns.cluster.local. 5 A 10.43.0.10",
        ),
        (
            "ns.dns.cluster.local. A",
            "NoError; ns.dns.cluster.local. 5 A 10.43.0.10",
        ),
        ("dns.cluster.local. A", "NODATA"),
        ("svc.cluster.local. SOA", "NODATA"),
        ("other.cluster.local. A", "NX"),
        ("web.default.cluster.local. A", "NX"),
    ]);
}

#[test]
fn services_with_cluster_ips() {
    check(&[
        (
            "web.default.svc.cluster.local. A",
            "NoError; web.default.svc.cluster.local. 5 A 10.43.0.5",
        ),
        ("web.default.svc.cluster.local. AAAA", "NODATA"),
        ("web.default.svc.cluster.local. MX", "NODATA"),
        (
            "dual.default.svc.cluster.local. A",
            "NoError; dual.default.svc.cluster.local. 5 A 10.43.0.7",
        ),
        (
            "dual.default.svc.cluster.local. AAAA",
            "NoError; dual.default.svc.cluster.local. 5 AAAA fd43::7",
        ),
        ("pending.default.svc.cluster.local. A", "NODATA"),
        ("absent.default.svc.cluster.local. A", "NX"),
        ("web.absent.svc.cluster.local. A", "NX"),
        (
            "_http._tcp.web.default.svc.cluster.local. SRV",
            "NoError; _http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.; \
             more web.default.svc.cluster.local. 5 A 10.43.0.5",
        ),
        (
            "_dns._udp.web.default.svc.cluster.local. SRV",
            "NoError; _dns._udp.web.default.svc.cluster.local. 5 SRV 0 100 53 web.default.svc.cluster.local.; \
             more web.default.svc.cluster.local. 5 A 10.43.0.5",
        ),
        ("_http._udp.web.default.svc.cluster.local. SRV", "NX"),
        ("_http._tcp.web.default.svc.cluster.local. A", "NODATA"),
        ("http._tcp.web.default.svc.cluster.local. SRV", "NX"),
        ("_http.tcp.web.default.svc.cluster.local. SRV", "NX"),
        // Unnamed ports have no record of their own.
        ("_._tcp.plain.default.svc.cluster.local. SRV", "NX"),
        ("_tcp.plain.default.svc.cluster.local. SRV", "NX"),
        (
            "plain.default.svc.cluster.local. SRV",
            "NoError; plain.default.svc.cluster.local. 5 SRV 0 100 80 plain.default.svc.cluster.local.; \
             more plain.default.svc.cluster.local. 5 A 10.43.0.6",
        ),
        // An endpoint of it, as CoreDNS has them.
        (
            "10-42-0-9.web.default.svc.cluster.local. A",
            "NoError; 10-42-0-9.web.default.svc.cluster.local. 5 A 10.42.0.9",
        ),
        ("10-42-0-10.web.default.svc.cluster.local. A", "NX"),
    ]);
}

#[test]
fn headless_services() {
    check(&[
        (
            "db.default.svc.cluster.local. A",
            "NoError; db.default.svc.cluster.local. 5 A 10.42.0.2; db.default.svc.cluster.local. 5 A 10.42.0.3; \
             db.default.svc.cluster.local. 5 A 10.42.0.4",
        ),
        (
            "db.default.svc.cluster.local. AAAA",
            "NoError; db.default.svc.cluster.local. 5 AAAA fd42::2",
        ),
        (
            "db-0.db.default.svc.cluster.local. A",
            "NoError; db-0.db.default.svc.cluster.local. 5 A 10.42.0.2",
        ),
        (
            "db-0.db.default.svc.cluster.local. AAAA",
            "NoError; db-0.db.default.svc.cluster.local. 5 AAAA fd42::2",
        ),
        ("db-1.db.default.svc.cluster.local. AAAA", "NODATA"),
        (
            "10-42-0-4.db.default.svc.cluster.local. A",
            "NoError; 10-42-0-4.db.default.svc.cluster.local. 5 A 10.42.0.4",
        ),
        // A hostname takes the place of the address.
        ("10-42-0-2.db.default.svc.cluster.local. A", "NX"),
        ("db-2.db.default.svc.cluster.local. A", "NX"),
        (
            "_http._tcp.db.default.svc.cluster.local. SRV",
            "NoError; \
             _http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 8080 10-42-0-4.db.default.svc.cluster.local.; \
             _http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 8080 db-0.db.default.svc.cluster.local.; \
             _http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 8080 db-1.db.default.svc.cluster.local.; \
             more 10-42-0-4.db.default.svc.cluster.local. 5 A 10.42.0.4; \
             more db-0.db.default.svc.cluster.local. 5 A 10.42.0.2; \
             more db-0.db.default.svc.cluster.local. 5 AAAA fd42::2; \
             more db-1.db.default.svc.cluster.local. 5 A 10.42.0.3",
        ),
        (
            "portless.default.svc.cluster.local. A",
            "NoError; portless.default.svc.cluster.local. 5 A 10.42.0.20",
        ),
        ("portless.default.svc.cluster.local. SRV", "NODATA"),
        // Nobody is ready: section 2.4.1.
        ("nobody.default.svc.cluster.local. A", "NX"),
        ("_http._tcp.nobody.default.svc.cluster.local. SRV", "NX"),
        (
            "early.default.svc.cluster.local. A",
            "NoError; early.default.svc.cluster.local. 5 A 10.42.0.22",
        ),
    ]);
}

#[test]
fn external_names() {
    check(&[
        (
            "out.default.svc.cluster.local. A",
            "NoError; out.default.svc.cluster.local. 5 CNAME www.Example.com. -> www.Example.com.",
        ),
        (
            "out.default.svc.cluster.local. AAAA",
            "NoError; out.default.svc.cluster.local. 5 CNAME www.Example.com. -> www.Example.com.",
        ),
        (
            "out.default.svc.cluster.local. CNAME",
            "NoError; out.default.svc.cluster.local. 5 CNAME www.Example.com.",
        ),
        ("x.out.default.svc.cluster.local. A", "NX"),
        (
            "alias.default.svc.cluster.local. A",
            "NoError; alias.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.; \
             web.default.svc.cluster.local. 5 A 10.43.0.5",
        ),
        (
            "alias.default.svc.cluster.local. AAAA",
            "NoError; alias.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.; \
             auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 28 7200 1800 86400 5",
        ),
        (
            "dangling.default.svc.cluster.local. A",
            "NXDomain; dangling.default.svc.cluster.local. 5 CNAME none.default.svc.cluster.local.; \
             auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 28 7200 1800 86400 5",
        ),
        ("ring.default.svc.cluster.local. A", "ServFail"),
        ("digits.default.svc.cluster.local. A", "NX"),
    ]);
}

#[test]
fn names_that_only_have_names_below_exist() {
    check(&[
        ("svc.cluster.local. A", "NODATA"),
        ("pod.cluster.local. A", "NODATA"),
        ("default.svc.cluster.local. A", "NODATA"),
        ("kube-system.svc.cluster.local. SRV", "NODATA"),
        ("default.pod.cluster.local. A", "NODATA"),
        ("absent.svc.cluster.local. A", "NX"),
        ("absent.pod.cluster.local. A", "NX"),
        ("_tcp.web.default.svc.cluster.local. A", "NODATA"),
        ("_sctp.web.default.svc.cluster.local. A", "NX"),
        ("_tcp.db.default.svc.cluster.local. SRV", "NODATA"),
        ("_udp.db.default.svc.cluster.local. SRV", "NX"),
    ]);
}

#[test]
fn pods() {
    check(&[
        (
            "10-42-0-5.default.pod.cluster.local. A",
            "NoError; 10-42-0-5.default.pod.cluster.local. 5 A 10.42.0.5",
        ),
        ("10-42-0-5.default.pod.cluster.local. AAAA", "NODATA"),
        (
            "fd42--5.default.pod.cluster.local. AAAA",
            "NoError; fd42--5.default.pod.cluster.local. 5 AAAA fd42::5",
        ),
        ("10-42-0-5.absent.pod.cluster.local. A", "NX"),
        // Not a pod of this cluster: a name of the cluster leads nowhere else.
        ("192-0-2-1.default.pod.cluster.local. A", "NX"),
        ("web.default.pod.cluster.local. A", "NX"),
        ("x.10-42-0-5.default.pod.cluster.local. A", "NX"),
    ]);
}

#[test]
fn addresses_have_names() {
    let denied = |apex: &str| {
        format!(
            "NXDomain; auth {apex} 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 28 7200 1800 86400 5"
        )
    };
    check(&[
        (
            "5.0.43.10.in-addr.arpa. PTR",
            "NoError; 5.0.43.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local.",
        ),
        (
            "2.0.42.10.in-addr.arpa. PTR",
            "NoError; 2.0.42.10.in-addr.arpa. 5 PTR db-0.db.default.svc.cluster.local.",
        ),
        (
            "4.0.42.10.in-addr.arpa. PTR",
            "NoError; 4.0.42.10.in-addr.arpa. 5 PTR 10-42-0-4.db.default.svc.cluster.local.",
        ),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa. PTR",
            "NoError; 7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa. 5 PTR dual.default.svc.cluster.local.",
        ),
        // Not ready.
        (
            "8.0.42.10.in-addr.arpa. PTR",
            &denied("42.10.in-addr.arpa."),
        ),
        (
            "99.0.43.10.in-addr.arpa. PTR",
            &denied("43.10.in-addr.arpa."),
        ),
        (
            "43.10.in-addr.arpa. PTR",
            &denied("43.10.in-addr.arpa.").replace("NXDomain", "NoError"),
        ),
        (
            "5.0.43.10.in-addr.arpa. A",
            &denied("43.10.in-addr.arpa.").replace("NXDomain", "NoError"),
        ),
        ("10.in-addr.arpa. PTR", "forward"),
        ("1.2.0.192.in-addr.arpa. PTR", "forward"),
        ("x.5.0.43.10.in-addr.arpa. PTR", "forward"),
    ]);
}

#[test]
fn case_is_kept_and_does_not_matter() {
    check(&[
        (
            "wEb.DEFAULT.Svc.cluster.LOCAL. A",
            "NoError; wEb.DEFAULT.Svc.cluster.LOCAL. 5 A 10.43.0.5",
        ),
        (
            "_HTTP._Tcp.web.default.svc.cluster.local. SRV",
            "NoError; _HTTP._Tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.; \
             more web.default.svc.cluster.local. 5 A 10.43.0.5",
        ),
        (
            "DNS-Version.Cluster.Local. TXT",
            "NoError; DNS-Version.Cluster.Local. 28800 TXT 1.1.0",
        ),
        (
            "5.0.43.10.In-Addr.ARPA. PTR",
            "NoError; 5.0.43.10.In-Addr.ARPA. 5 PTR web.default.svc.cluster.local.",
        ),
    ]);
}

#[test]
fn wildcards_ask_for_what_is_called_so() {
    check(&[
        ("*.default.svc.cluster.local. A", "NX"),
        ("web.*.svc.cluster.local. A", "NX"),
        ("any.default.svc.cluster.local. A", "NX"),
        ("*.*.web.default.svc.cluster.local. SRV", "NX"),
    ]);
}

#[test]
fn what_is_not_answered() {
    check(&[
        ("web.default.svc.cluster.local. AXFR", "Refused"),
        ("example.org. IXFR", "Refused"),
        (
            "web.default.svc.cluster.local. ANY",
            "NoError; web.default.svc.cluster.local. 5 HINFO RFC8482 ",
        ),
        ("absent.default.svc.cluster.local. ANY", "NX"),
        ("example.org. ANY", "NotImp"),
        ("example.org. OPT", "FormErr"),
        ("example.org. TKEY", "NotImp"),
        ("example.org. A", "forward"),
        ("notcluster.local. A", "forward"),
        ("web. A", "forward"),
        (". NS", "forward"),
        ("localhost. A", "NoError; localhost. 5 A 127.0.0.1"),
        ("x.localhost. AAAA", "NoError; x.localhost. 5 AAAA ::1"),
    ]);
    let zone = zone();
    for class in [DNSClass::CH, DNSClass::ANY, DNSClass::Unknown(77)] {
        let said = ask_in(&zone, "web.default.svc.cluster.local. A", class, TURN);
        let Outcome::Done(answer) = said else {
            panic!("{said:?}");
        };
        assert_eq!(words(&answer), "Refused", "{class}");
        assert!(!answer.authoritative);
    }
}

#[test]
fn addresses_take_turns_and_leave_when_there_is_no_room() {
    let zone = zone();
    let firsts: Vec<String> = (0..4)
        .map(|offset| {
            let turn = Turn { offset, room: 2 };
            match ask_in(&zone, "db.default.svc.cluster.local. A", DNSClass::IN, turn) {
                Outcome::Done(answer) => {
                    assert!(answer.truncated && answer.answers.len() == 2);
                    answer.answers[0].data.to_string()
                }
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(firsts, ["10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.2"]);
}

#[test]
fn before_everything_is_known_nothing_is_denied() {
    let mut zone = Zone::new(place(), 1);
    let all = services();
    zone.service_event(Event::Init);
    zone.service_event(Event::InitApply(all[0].clone()));
    assert_eq!(
        ask(&zone, "web.default.svc.cluster.local. A"),
        "NoError; web.default.svc.cluster.local. 5 A 10.43.0.5"
    );
    for question in [
        "plain.default.svc.cluster.local. A",
        "x.default.svc.cluster.local. A",
        "6.0.43.10.in-addr.arpa. PTR",
    ] {
        assert_eq!(ask(&zone, question), "ServFail", "{question}");
    }
}

#[test]
fn names_follow_their_objects() {
    let mut zone = zone();
    let moved = service("web", json!({"clusterIP": "10.43.0.50", "ports": []}));
    zone.service_event(Event::Apply(moved.clone()));
    let name = "web.default.svc.cluster.local. A";
    assert!(ask(&zone, name).ends_with("A 10.43.0.50"));
    assert!(ask(&zone, "5.0.43.10.in-addr.arpa. PTR").starts_with("NXDomain"));
    assert!(ask(&zone, "50.0.43.10.in-addr.arpa. PTR").ends_with("web.default.svc.cluster.local."));
    // An external name that becomes a Service with an address has no alias any more.
    let inside = service(
        "out",
        json!({"type": "ClusterIP", "clusterIP": "10.43.0.8", "ports": []}),
    );
    zone.service_event(Event::Apply(inside));
    assert!(ask(&zone, "out.default.svc.cluster.local. A").ends_with("local. 5 A 10.43.0.8"));
    zone.service_event(Event::Delete(moved));
    assert!(ask(&zone, name).starts_with("NXDomain"));
    let ready = slice(
        "db-1",
        "db",
        json!([]),
        json!([endpoint("10.42.0.8", Some("db-2"), true)]),
    );
    zone.slice_event(Event::Apply(ready));
    assert!(ask(&zone, "db-2.db.default.svc.cluster.local. A").ends_with("A 10.42.0.8"));
    assert!(ask(&zone, "db-1.db.default.svc.cluster.local. A").starts_with("NXDomain"));
    assert!(ask(&zone, "3.0.42.10.in-addr.arpa. PTR").starts_with("NXDomain"));
    // A list that does not name them any more.
    list::<EndpointSlice>(Vec::new()).for_each(|event| zone.slice_event(event));
    assert!(ask(&zone, "db.default.svc.cluster.local. A").starts_with("NXDomain"));
    list::<Service>(Vec::new()).for_each(|event| zone.service_event(event));
    assert!(ask(&zone, "default.svc.cluster.local. A").starts_with("NoError"));
    list::<Namespace>(Vec::new()).for_each(|event| zone.namespace_event(event));
    assert!(ask(&zone, "default.svc.cluster.local. A").starts_with("NXDomain"));
}
