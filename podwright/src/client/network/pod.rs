// SPDX-License-Identifier: Apache-2.0
//! `network pod`: how a pod is connected.

use std::net::IpAddr;

use anyhow::{Context, bail};
use cni::link::{self, RouteSpec};
use cni::{Attached, Attachment, netns};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use proxy::parse::SERVICE_NAME_LABEL;

use super::super::connection::Server;
use super::super::failure::{Outcome, answer, say};
use super::{OfOne, policies};
use crate::node_config::NodeConfig;

pub(super) async fn run(args: OfOne) -> Outcome {
    let (server, node) = args.place.find().await?;
    let attached = attached(&server, &node, &args.name).await?;
    say(format!(
        "Pod {}/{} on node {}, network {}",
        server.namespace, args.name, node.node_name, attached.network
    ))?;
    let Some(result) = &attached.result else {
        say("  it is being attached just now")?;
        return Ok(());
    };
    for line in links(&node, &attached)? {
        say(line)?;
    }
    for route in routes(&attached.attachment)? {
        say(format!("  route in the pod: {route}"))?;
    }
    for port in &attached.attachment.capabilities.port_mappings {
        let on = port
            .host_ip
            .map_or("every address of the node".to_owned(), |ip| ip.to_string());
        say(format!(
            "  host port {}/{:?} on {on} -> port {} of the pod",
            port.host_port, port.protocol, port.container_port
        ))?;
    }
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr).collect();
    for line in services(&server, &addresses).await? {
        say(line)?;
    }
    for line in policies::lines(&server, &node, &args.name, &addresses).await? {
        say(line)?;
    }
    Ok(())
}

/// The attachment of a pod of this node.
///
/// # Errors
/// When it is elsewhere, or has no network of its own.
pub(super) async fn attached(
    server: &Server,
    node: &NodeConfig,
    name: &str,
) -> anyhow::Result<Attached> {
    let api: Api<Pod> = Api::namespaced(server.client.clone(), &server.namespace);
    let pod = answer(api.get(name)).await?;
    let spec = pod.spec.unwrap_or_default();
    match spec.node_name.as_deref() {
        None | Some("") => bail!("pod {name} has no node yet"),
        Some(other) if other != node.node_name => {
            bail!("pod {name} is on node {other}; run this command there")
        }
        Some(_) if spec.host_network == Some(true) => {
            bail!("pod {name} is in the node's own network: it has no way of its own")
        }
        Some(_) => {}
    }
    let uid = pod.metadata.uid.unwrap_or_default();
    let all = node.cri().network().attached().await?;
    let mut own: Vec<Attached> = all
        .into_iter()
        .filter(|a| a.attachment.pod_namespace == server.namespace)
        .filter(|a| a.attachment.pod_name == name)
        .collect();
    // A static pod's object has another uid than the pod.
    own.sort_by_key(|a| (a.attachment.pod_uid == uid, a.result.is_some()));
    own.pop().with_context(|| {
        format!(
            "pod {name} is not attached to a network by the runtime with data directory {}",
            node.data_dir.display()
        )
    })
}

/// Each interface: the pod's end with its addresses, and the host's end.
fn links(node: &NodeConfig, attached: &Attached) -> anyhow::Result<Vec<String>> {
    let result = attached.result.clone().unwrap_or_default();
    let mut route = link::Route::open().context("opening a netlink socket")?;
    let links = route.links()?;
    let mut lines = Vec::new();
    for (index, interface) in result.interfaces.iter().enumerate() {
        if interface.sandbox.is_empty() {
            let line = match links.iter().find(|l| l.name == interface.name) {
                Some(link) => {
                    let master = links.iter().find(|l| Some(l.index) == link.master);
                    let on = master.map_or(String::new(), |m| format!(", on bridge {}", m.name));
                    let state = if link.up { "up" } else { "DOWN" };
                    format!("{} {}, {state}, mtu {}{on}", link.kind, link.mac, link.mtu)
                }
                None => "MISSING".to_owned(),
            };
            lines.push(format!("  {} on the node: {line}", interface.name));
            continue;
        }
        let addresses: Vec<String> = result
            .ips
            .iter()
            .filter(|ip| ip.interface == Some(index))
            .map(|ip| ip.address.to_string())
            .collect();
        lines.push(format!(
            "  {} in the pod: {} {}",
            interface.name,
            interface.mac,
            addresses.join(" ")
        ));
    }
    lines.push(format!(
        "  namespace {}{}",
        attached.attachment.netns.display(),
        if netns::is_netns(&attached.attachment.netns) {
            ""
        } else {
            " (GONE)"
        }
    ));
    lines.push(format!(
        "  rules of the pod network: table inet {}-cni; of Services: table inet {}",
        node.nft_table, node.nft_table
    ));
    Ok(lines)
}

fn routes(attachment: &Attachment) -> anyhow::Result<Vec<String>> {
    let listed = netns::run(&attachment.netns, || -> anyhow::Result<Vec<String>> {
        let mut route = link::Route::open()?;
        let mut found = Vec::new();
        for ipv4 in [true, false] {
            let routes = route.routes(ipv4)?;
            let wanted = |r: &&RouteSpec| !r.dst.addr.is_multicast() && r.gw.is_some();
            for one in routes.iter().filter(wanted) {
                let gateway = one
                    .gw
                    .map_or(String::new(), |gw| format!(" by way of {gw}"));
                found.push(format!("{}{gateway}", one.dst));
            }
        }
        Ok(found)
    });
    listed?
}

/// Services that lead to one of these addresses.
async fn services(server: &Server, addresses: &[IpAddr]) -> anyhow::Result<Vec<String>> {
    let api: Api<EndpointSlice> = Api::namespaced(server.client.clone(), &server.namespace);
    let slices = answer(api.list(&ListParams::default())).await?.items;
    let mut lines = Vec::new();
    for slice in slices {
        let labels = slice.metadata.labels.unwrap_or_default();
        let Some(service) = labels.get(SERVICE_NAME_LABEL) else {
            continue;
        };
        let mine = slice.endpoints.iter().flatten().find(|endpoint| {
            let mut parsed = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            parsed.any(|a: IpAddr| addresses.contains(&a))
        });
        let Some(endpoint) = mine else { continue };
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
        let ports: Vec<String> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some(format!("{}/{}", p.port?, p.protocol.as_deref()?)))
            .collect();
        lines.push(format!(
            "  Service {service} leads here: port {}, {}",
            ports.join(", "),
            if ready { "ready" } else { "NOT ready" }
        ));
    }
    lines.sort();
    lines.dedup();
    Ok(lines)
}
