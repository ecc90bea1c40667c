// SPDX-License-Identifier: Apache-2.0
//! Cluster DNS on this node: its address, and the component that serves it.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use cni::cidr::{self, Cidr, from_bits, to_bits};

use crate::node_config::NodeConfig;
use crate::supervise::Supervisor;

/// Addresses of Services, where nothing else is said.
pub(crate) const DEFAULT_SERVICE_CIDR: &str = "10.43.0.0/16";
/// The name of this part for `--disable`.
pub(crate) const PART: &str = "dns";
/// Which address of the Services' range cluster DNS has, as everywhere else.
const TENTH: u128 = 10;

/// The tenth address of each of the Services' ranges.
///
/// # Errors
/// When they cannot be read, are not one or one of each family, or one has no tenth address.
fn default_addresses(service_cidr: &str) -> anyhow::Result<Vec<IpAddr>> {
    let ranges = cidr::list(service_cidr).context("service-cidr")?;
    let understood = match ranges.as_slice() {
        [_] => true,
        [one, two] => one.is_ipv4() != two.is_ipv4(),
        _ => false,
    };
    ensure!(
        understood,
        "service-cidr: expected a range such as {DEFAULT_SERVICE_CIDR}, or one of each family, got {service_cidr:?}"
    );
    ranges.into_iter().map(tenth).collect()
}

fn tenth(range: Cidr) -> anyhow::Result<IpAddr> {
    let first = to_bits(range.addr);
    ensure!(
        to_bits(range.last()) - first > TENTH,
        "service-cidr: {range} has no tenth address for cluster DNS; give one with --cluster-dns"
    );
    Ok(from_bits(first + TENTH, range.is_ipv4()))
}

/// Gives cluster DNS its addresses in `node`, unless the operator has.
pub(crate) fn complete(node: &mut NodeConfig, service_cidr: &str) -> anyhow::Result<()> {
    if node.cluster_dns.is_empty() {
        node.cluster_dns = default_addresses(service_cidr)?;
    }
    Ok(())
}

/// Where it is kept which addresses were put on `lo`.
pub(crate) fn state_file(node: &NodeConfig) -> PathBuf {
    node.run_dir.join("dns-addresses")
}

/// Starts the component. It is not waited for: a node whose port 53 is taken works otherwise.
pub(crate) async fn start(
    supervisor: &mut Supervisor,
    node: &NodeConfig,
    kubeconfig: PathBuf,
    service_cidr: &str,
) -> anyhow::Result<()> {
    let config = proxy::dns::Config {
        kubeconfig,
        addresses: node.cluster_dns.clone(),
        domain: node.cluster_domain.clone(),
        cluster_cidr: node.cluster_cidr.clone(),
        service_cidr: service_cidr.to_owned(),
        resolv_conf: "/etc/resolv.conf".into(),
        state_file: state_file(node),
    };
    supervisor
        .start(PART, move |ready, stop| {
            proxy::dns::run(config.clone(), ready, stop)
        })
        .await
}

/// Leave the address to others.
pub(crate) fn remove(node: &NodeConfig) -> anyhow::Result<()> {
    Ok(proxy::dns::cleanup(&state_file(node))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_dns_has_the_tenth_address_of_each_range() {
        for (ranges, addresses) in [
            ("10.43.0.0/16", "10.43.0.10"),
            ("10.96.0.128/26", "10.96.0.138"),
            ("fd43::/108", "fd43::a"),
            ("10.43.0.0/16,fd43::/108", "10.43.0.10 fd43::a"),
            ("fd43::/108, 10.43.0.0/16", "fd43::a 10.43.0.10"),
        ] {
            let found = default_addresses(ranges).expect("addresses");
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), addresses);
        }
        let two_of_one = "10.43.0.0/16,10.44.0.0/16";
        for bad in ["10.43.0.0/29", "10.43.0.0", "x", "", two_of_one] {
            let error = default_addresses(bad).expect_err(bad).to_string();
            assert!(error.starts_with("service-cidr"), "{error}");
        }
    }
}
