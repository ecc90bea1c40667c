// SPDX-License-Identifier: Apache-2.0
//! The NetworkPolicies of a pod: what the API asks for, and what the kernel has of it.

use std::fmt::Debug;
use std::net::IpAddr;

use cni::nft::{Family, Socket};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use proxy::policy::explain::{self, Scene};
use proxy::policy::parse;
use serde::de::DeserializeOwned;

use super::super::connection::Server;
use super::super::failure::answer;
use crate::node_config::NodeConfig;

/// Lines for a person. With several policies it lists all pods of the cluster.
pub(super) async fn lines(
    server: &Server,
    node: &NodeConfig,
    pod: &str,
    addresses: &[IpAddr],
) -> anyhow::Result<Vec<String>> {
    let table = format!("{}-policy", node.nft_table);
    let mut socket = Socket::open()?;
    if socket.rules(Family::Inet, &table)?.is_empty() {
        let text = format!("  policies: not enforced here, there is no table inet {table}");
        return Ok(vec![text]);
    }
    let scene = scene(server).await?;
    let key = (server.namespace.clone(), pod.to_owned());
    let said = scene.words(&key);
    let mut lines: Vec<String> = said.into_iter().map(|line| format!("  {line}")).collect();
    for ip in addresses {
        let found = explain::classes(&mut socket, &table, *ip)?;
        let kernel = match found {
            None => "MISSING in the kernel: whatever comes or goes is dropped".to_owned(),
            Some(classes) => {
                let word = |at: usize| match (classes[at], scene.restricted(&key)[at]) {
                    (0, false) => "not restricted".to_owned(),
                    (0, true) => "not restricted, but it should be (DIFFERS)".to_owned(),
                    (class, true) => format!("class {class}"),
                    (class, false) => format!("class {class}, but it should be free (DIFFERS)"),
                };
                format!("ingress {}, egress {}", word(1), word(0))
            }
        };
        lines.push(format!(
            "  in the kernel (table inet {table}), {ip}: {kernel}"
        ));
    }
    Ok(lines)
}

async fn scene(server: &Server) -> anyhow::Result<Scene> {
    let own = Api::<NetworkPolicy>::namespaced(server.client.clone(), &server.namespace);
    let policies = answer(own.list(&ListParams::default())).await?.items;
    let pods: Vec<Pod> = all(server).await?;
    let namespaces: Vec<Namespace> = all(server).await?;
    Ok(Scene {
        pods: pods
            .iter()
            .filter_map(|pod| {
                let key = (pod.namespace().unwrap_or_default(), pod.name_any());
                Some((key, parse::pod(pod)?))
            })
            .collect(),
        namespaces: namespaces
            .iter()
            .map(|namespace| (namespace.name_any(), parse::namespace(namespace)))
            .collect(),
        policies: policies
            .iter()
            .filter_map(|policy| Some((policy.name_any(), parse::policy(policy)?)))
            .collect(),
    })
}

async fn all<K>(server: &Server) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api = Api::<K>::all(server.client.clone());
    Ok(answer(api.list(&ListParams::default())).await?.items)
}
