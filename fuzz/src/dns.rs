// SPDX-License-Identifier: Apache-2.0
//! DNS packets: whatever comes, what is sent back is a message, an answer to that question and no
//! other, within its limit; and what a resolver answers can be kept and served again.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use proxy::dns::answer::{Outcome, Turn, answer};
use proxy::dns::message::{Refused, Request, answers, encode, parse};
use proxy::dns::stored::Stored;
use proxy::dns::zone::{Place, Zone};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The first byte says what the others are.
pub fn check(data: &[u8]) {
    match data.split_first() {
        Some((0, text)) => config(text),
        Some((kind, packet)) => {
            question(packet, usize::from(*kind));
            resolver(packet, usize::from(*kind));
        }
        None => {}
    }
}

/// A resolv.conf.
fn config(text: &[u8]) {
    let servers = proxy::dns::resolv::servers(&String::from_utf8_lossy(text));
    assert!(servers.len() <= 15);
}

/// A packet from a client.
fn question(packet: &[u8], offset: usize) {
    let request = match parse(packet) {
        Ok(request) => request,
        Err(Refused::Drop) => return,
        Err(Refused::Reply(reply)) => {
            assert!(reply.len() <= 512);
            assert_eq!(reply[..2], packet[..2]);
            assert!(reply[2] & 0x80 != 0, "a response");
            return;
        }
    };
    let turn = Turn { offset, room: 77 };
    let said = match answer(&request.query, &zone(), turn) {
        Outcome::Done(answer) | Outcome::Follow(answer, _) => answer,
        Outcome::Forward => return,
    };
    assert!(said.answers.len() <= turn.room + 8);
    for limit in [512, request.udp_limit(), u16::MAX] {
        let reply = encode(&request, &said, limit);
        assert!(
            reply.len() <= usize::from(limit),
            "{} > {limit}",
            reply.len()
        );
        is_answer(&request, &reply);
    }
}

fn is_answer(request: &Request, reply: &[u8]) {
    let reply = Message::from_vec(reply).expect("a message");
    assert_eq!(reply.id, request.id);
    assert_eq!(reply.message_type, MessageType::Response);
    assert_eq!(reply.edns.is_some(), request.edns.is_some());
    assert_eq!(reply.queries.len(), 1);
    let query = &reply.queries[0];
    assert!(query.name().eq_case(request.query.name()), "0x20");
    assert_eq!(query.query_type(), request.query.query_type());
    assert_eq!(query.query_class(), request.query.query_class());
}

/// A packet from a resolver.
fn resolver(packet: &[u8], offset: usize) {
    let Ok(reply) = Message::from_vec(packet) else {
        return;
    };
    let Some(query) = reply.queries.first().cloned() else {
        return;
    };
    let mut asked = Message::new(reply.id, MessageType::Query, OpCode::Query);
    asked.queries = vec![query.clone()];
    if !answers(&asked, &reply) {
        return;
    }
    let Some(stored) = Stored::new(&query, reply) else {
        return;
    };
    let request = Request {
        id: 7,
        query: query_of(&query),
        recursion_desired: true,
        checking_disabled: false,
        authentic_data: false,
        edns: None,
    };
    for limit in [512, 1232, u16::MAX] {
        let reply = stored.render(&request, 3, limit, offset);
        assert!(reply.len() <= usize::from(limit));
        is_answer(&request, &reply);
    }
}

/// The same question in other letters.
fn query_of(query: &Query) -> Query {
    let mut other = query.clone();
    let upper = query.name().iter().map(|label| label.to_ascii_uppercase());
    let labels: Vec<Vec<u8>> = upper.collect();
    if let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice)) {
        other.set_name(name);
    }
    other
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

/// A cluster with one thing of each kind.
fn zone() -> Zone {
    let place = Place {
        domain: Name::from_ascii("cluster.local.").expect("a name"),
        servers: vec!["10.43.0.10".parse().expect("an address")],
        pods: vec!["10.42.0.0/16".parse().expect("a range")],
        services: vec!["10.43.0.0/16".parse().expect("a range")],
    };
    let meta = |name: &str| json!({"name": name, "namespace": "d"});
    let service = |name: &str, spec: Value| -> Service {
        object(json!({"metadata": meta(name), "spec": spec}))
    };
    let port = json!({"name": "http", "port": 80});
    let services = [
        service("w", json!({"clusterIP": "10.43.0.5", "ports": [port]})),
        service("h", json!({"clusterIP": "None", "ports": [port]})),
        service(
            "e",
            json!({"type": "ExternalName", "externalName": "w.d.svc.cluster.local"}),
        ),
        service(
            "o",
            json!({"type": "ExternalName", "externalName": "www.example"}),
        ),
    ];
    let endpoint =
        |n: u8| json!({"addresses": [format!("10.42.0.{n}")], "hostname": format!("h-{n}")});
    let endpoints: Vec<Value> = (1..=120).map(endpoint).collect();
    let mut labelled = meta("h-1");
    labelled["labels"] = json!({"kubernetes.io/service-name": "h"});
    let slice: EndpointSlice = object(json!({
        "metadata": labelled, "addressType": "IPv4", "ports": [port], "endpoints": endpoints
    }));
    let namespace: Namespace = object(json!({"metadata": {"name": "d"}}));
    let mut zone = Zone::new(place, 1);
    zone.service_event(Event::Init);
    services
        .into_iter()
        .for_each(|s| zone.service_event(Event::InitApply(s)));
    zone.service_event(Event::InitDone);
    zone.slice_event(Event::Init);
    zone.slice_event(Event::InitApply(slice));
    zone.slice_event(Event::InitDone);
    zone.namespace_event(Event::Init);
    zone.namespace_event(Event::InitApply(namespace));
    zone.namespace_event(Event::InitDone);
    zone
}
