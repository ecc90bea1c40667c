// SPDX-License-Identifier: Apache-2.0
//! `network service`: where its addresses lead on this node.

use std::collections::HashMap;
use std::net::IpAddr;

use cni::nft::{Family, Socket};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use proxy::parse::{self, SERVICE_NAME_LABEL};
use proxy::service::{Backend, ServiceRules};

use super::super::connection::Server;
use super::super::failure::{Outcome, answer, say};
use super::OfOne;
use super::way::{self, Rules};
use crate::node_config::NodeConfig;

/// Chains that every packet to a Service passes, in order, beside the one that picks an endpoint.
const BEFORE: [&str; 2] = ["guard", "prerouting"];
const AFTER: [&str; 2] = ["forward", "postrouting"];

pub(super) async fn run(args: OfOne) -> Outcome {
    let (server, node) = args.place.find().await?;
    let namespaced = |name: &str| format!("{}/{name}", server.namespace);
    let api: Api<Service> = Api::namespaced(server.client.clone(), &server.namespace);
    let service = answer(api.get(&args.name)).await?;
    let Some(info) = parse::service(&service) else {
        say(format!(
            "Service {}: {}",
            namespaced(&args.name),
            not_served(&service)
        ))?;
        return Ok(());
    };
    let slices = slices_of(&server, &args.name).await?;
    let (about_node, settings) = node_info(&server, &node).await?;
    let parsed: Vec<_> = slices
        .iter()
        .filter_map(|slice| parse::slice(slice, &node.node_name))
        .collect();
    let rules = proxy::compile::compile(&info, &parsed, &about_node);
    say(format!(
        "Service {} on node {}, table inet {}",
        namespaced(&args.name),
        node.node_name,
        node.nft_table
    ))?;
    let names = names(&slices);
    let mut chains = Vec::new();
    let mut socket = Socket::open()?;
    for (frontend, target) in &rules.frontends {
        let found = proxy::explain::find(&mut socket, &node.nft_table, frontend)?;
        let name = |backend: &Backend| named(backend, &names);
        let found = found.as_ref();
        for line in proxy::explain::words(frontend, target, found, &settings.local, name) {
            say(line)?;
        }
        chains.extend(found.map(|f| f.chain.clone()).filter(|c| !c.is_empty()));
    }
    for problem in &rules.problems {
        say(format!("not served: {problem}"))?;
    }
    chains.sort();
    chains.dedup();
    say_way(&node, &rules, &chains)
}

/// The rules that packets to the Service meet, chain by chain.
fn say_way(node: &NodeConfig, service: &ServiceRules, chains: &[String]) -> Outcome {
    if service.frontends.is_empty() {
        return Ok(());
    }
    let mut rules = Rules::default();
    let known = rules.of(Family::Inet, &node.nft_table)?;
    if known.is_empty() {
        say(format!(
            "There is no table inet {} here: no proxy has served in this network namespace.",
            node.nft_table
        ))?;
        return Ok(());
    }
    say("The way of a packet:")?;
    let picks = chains.iter().map(String::as_str);
    for chain in BEFORE.into_iter().chain(picks).chain(AFTER) {
        say(format!("  {chain}"))?;
        // Most rules are there once for each family.
        let mut said = Vec::new();
        for rule in known.iter().filter(|rule| rule.chain == chain) {
            let words = way::words(rule);
            if !said.contains(&words) {
                say(format!("    {words}"))?;
                said.push(words);
            }
        }
    }
    Ok(())
}

fn not_served(service: &Service) -> &'static str {
    let spec = service.spec.as_ref();
    let text = |field: fn(&k8s_openapi::api::core::v1::ServiceSpec) -> Option<&String>| {
        spec.and_then(field).map(String::as_str)
    };
    if text(|s| s.type_.as_ref()) == Some("ExternalName") {
        "an external name; the cluster's DNS answers with it, no rule has a part in that"
    } else if text(|s| s.cluster_ip.as_ref()) == Some("None") {
        "headless: clients find the pods' own addresses in DNS, no rule has a part in that"
    } else {
        "left to another proxy, or without an address yet"
    }
}

async fn slices_of(server: &Server, service: &str) -> anyhow::Result<Vec<EndpointSlice>> {
    let api: Api<EndpointSlice> = Api::namespaced(server.client.clone(), &server.namespace);
    let of_it = ListParams::default().labels(&format!("{SERVICE_NAME_LABEL}={service}"));
    Ok(answer(api.list(&of_it)).await?.items)
}

async fn node_info(
    server: &Server,
    config: &NodeConfig,
) -> anyhow::Result<(proxy::service::Node, proxy::rules::Settings)> {
    let api: Api<Node> = Api::all(server.client.clone());
    let info = parse::node(&answer(api.get(&config.node_name)).await?);
    let proxy = config.proxy("/nonexistent".into(), false)?;
    let mut node = proxy::service::Node::named(&config.node_name, &proxy.node_ips);
    node.zone.clone_from(&info.zone);
    Ok((node, proxy.settings(&info)?))
}

/// Who has an address, and where.
fn names(slices: &[EndpointSlice]) -> HashMap<IpAddr, String> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .flat_map(|endpoint| {
            let pod = endpoint.target_ref.as_ref().and_then(|r| r.name.as_deref());
            let place = endpoint.node_name.as_deref();
            let words = match (pod, place) {
                (Some(pod), Some(node)) => format!("pod {pod} on {node}"),
                (Some(pod), None) => format!("pod {pod}"),
                (None, Some(node)) => format!("on {node}"),
                (None, None) => String::new(),
            };
            let addresses = endpoint.addresses.iter();
            addresses.filter_map(move |a| Some((a.parse().ok()?, words.clone())))
        })
        .collect()
}

fn named(backend: &Backend, names: &HashMap<IpAddr, String>) -> String {
    let address = std::net::SocketAddr::new(backend.addr, backend.port);
    match names.get(&backend.addr) {
        Some(name) if !name.is_empty() => format!("{address}   {name}"),
        _ => address.to_string(),
    }
}
