// SPDX-License-Identifier: Apache-2.0
//! What a pod asks a node for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::amount::millis;

/// Amounts by resource name, in thousandths.
pub(crate) type Amounts = BTreeMap<String, i128>;

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let requests = resources.and_then(|r| r.requests.as_ref());
    amounts(requests)
}

pub(crate) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities
        .into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((name.clone(), millis(quantity)?)))
        .collect()
}

pub(crate) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += amount;
    }
}

fn at_least(to: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        let own = to.entry(name.clone()).or_default();
        *own = (*own).max(*amount);
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The sum of the containers, or what an init container needs at its time if that is more. Sidecars
/// run beside everything that starts after them (KEP-753). Requests of the pod as a whole (KEP-2837)
/// replace the sum where they are given; overhead comes on top.
pub(crate) fn of(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let mut total = of_containers(spec);
    if let Some(whole) = &spec.resources {
        total.extend(requests(Some(whole)));
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

fn of_containers(spec: &PodSpec) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &requests(container.resources.as_ref()));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            at_least(&mut peak, &sidecars);
        } else {
            let mut now = sidecars.clone();
            add(&mut now, &own);
            at_least(&mut peak, &now);
        }
    }
    at_least(&mut total, &peak);
    total
}

/// A port of the node that the pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) address: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
}

impl HostPort {
    /// Two pods cannot have the same port unless protocol or address differ; all addresses
    /// (`0.0.0.0`) include each one.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |p: &Self| matches!(p.address.as_str(), "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (any(self) || any(other) || self.address == other.address)
    }
}

/// The host ports of all containers; with `hostNetwork` the API server makes every port one.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let network = spec.host_network == Some(true);
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port
                .host_port
                .or_else(|| network.then_some(port.container_port));
            Some(HostPort {
                address: port.host_ip.clone().unwrap_or_else(|| "0.0.0.0".into()),
                port: number.filter(|n| *n > 0)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: &str, sidecar: bool) -> Container {
        let requests = BTreeMap::from([("cpu".to_owned(), Quantity(cpu.into()))]);
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(requests),
                ..ResourceRequirements::default()
            }),
            restart_policy: sidecar.then(|| "Always".into()),
            ..Container::default()
        }
    }

    fn check(init: &[(&str, bool)], main: &[&str]) -> i128 {
        let pod = Pod {
            spec: Some(PodSpec {
                init_containers: Some(init.iter().map(|(c, s)| container(c, *s)).collect()),
                containers: main.iter().map(|c| container(c, false)).collect(),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        of(&pod).get("cpu").copied().unwrap_or(0)
    }

    #[test]
    fn init_containers_count_by_their_maximum() {
        assert_eq!(check(&[], &["1", "500m"]), 1500);
        assert_eq!(check(&[("2", false), ("1", false)], &["1"]), 2000);
        assert_eq!(check(&[("100m", false)], &["1"]), 1000);
    }

    #[test]
    fn sidecars_run_beside_what_follows() {
        assert_eq!(check(&[("1", true)], &["1"]), 2000);
        assert_eq!(check(&[("1", true), ("3", false)], &["1"]), 4000);
        assert_eq!(check(&[("3", false), ("1", true)], &["1"]), 3000);
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let port = |address: &str, protocol: &str| HostPort {
            address: address.into(),
            port: 80,
            protocol: protocol.into(),
        };
        assert!(port("0.0.0.0", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("10.0.0.2", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("10.0.0.1", "UDP").conflicts(&port("10.0.0.1", "TCP")));
    }
}
