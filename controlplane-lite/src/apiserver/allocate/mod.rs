// SPDX-License-Identifier: Apache-2.0
//! Cluster addresses and node ports of Services.
//!
//! There is no record of what is in use besides the stored Services, so nothing can leak and
//! nothing has to be repaired. A choice is made from a snapshot of them, and the change is only
//! committed if no Service changed since: two changes cannot take the same address or port.

mod addresses;
mod families;
mod node_ports;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::{
    cidr::Cidr,
    error::ApiError,
    json::{int, list, text},
    resource::Resource,
    strategy::{field::FieldErrors, service_health::HEALTH_CHECK},
};
use crate::store::{Guard, Store};

/// The ranges that addresses are taken from: one, or one of each family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranges {
    primary: Cidr,
    secondary: Option<Cidr>,
}

struct InUse {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<(i64, String)>,
}

impl Ranges {
    /// Parses `10.43.0.0/16`, or two of different families, `10.43.0.0/16,fd43::/108`: Services have
    /// addresses of the first unless they want otherwise.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let all: Option<Vec<Cidr>> = text.split(',').map(|t| Cidr::parse(t.trim())).collect();
        let (primary, secondary) = match *all? {
            [one] => (one, None),
            [one, two] if one.family() != two.family() => (one, Some(two)),
            _ => return None,
        };
        Some(Self { primary, secondary })
    }

    /// The range of those that do not say what they want.
    pub(crate) fn primary(&self) -> Cidr {
        self.primary
    }

    fn of(&self, family: &str) -> Option<Cidr> {
        let mut all = [Some(self.primary), self.secondary].into_iter().flatten();
        all.find(|range| range.family() == family)
    }

    fn are_two(&self) -> bool {
        self.secondary.is_some()
    }

    /// Can a Service have this address?
    pub(crate) fn have_usable(&self, ip: IpAddr) -> bool {
        self.of(family(ip))
            .is_some_and(|range| range.has_usable(ip))
    }

    /// Chooses what a Service needs and does not have, and says what must hold at the commit.
    /// Other kinds need nothing. `old` is the stored Service on update.
    pub(crate) fn allocate(
        &self,
        store: &dyn Store,
        row: &Resource,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Vec<Guard>, ApiError> {
        if row.stored != "services" || old.is_some_and(|old| old["spec"] == service["spec"]) {
            return Ok(Vec::new());
        }
        let name = text(service, "/metadata/name").to_owned();
        let key = row.key(text(service, "/metadata/namespace"), &name);
        let snapshot = store.range(&row.prefix(""), None);
        let snapshot = snapshot.map_err(|e| ApiError::internal(&e))?;
        let others = snapshot.objects.iter().filter(|o| o.key() != key);
        let in_use = InUse::of(others.map(|o| o.value()));
        let mut errors = FieldErrors::default();
        self.complete(service, old, in_use, &mut errors)?;
        if !errors.0.is_empty() {
            return Err(ApiError::invalid(row, &name, &errors.0));
        }
        Ok(vec![Guard::Resource {
            resource: row.stored.to_owned(),
            revision: snapshot.revision,
        }])
    }

    fn complete(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        mut in_use: InUse,
        errors: &mut FieldErrors,
    ) -> Result<(), ApiError> {
        families::complete(service, old, self, errors);
        if errors.0.is_empty() {
            addresses::choose(service, old, self, &in_use, errors)?;
        }
        node_ports::choose(service, &mut in_use, errors)
    }
}

/// `IPv4` or `IPv6`.
fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl InUse {
    fn of(services: impl Iterator<Item = Value>) -> Self {
        let mut found = Self {
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
        };
        for service in services {
            let listed = list(&service, "/spec/clusterIPs").iter();
            let listed = listed.filter_map(Value::as_str);
            let ips = listed.chain([text(&service, "/spec/clusterIP")]);
            found
                .addresses
                .extend(ips.filter_map(|ip| ip.parse::<IpAddr>().ok()));
            if let Some(number) = int(&service, HEALTH_CHECK) {
                found.ports.insert((number, "TCP".to_owned()));
            }
            for port in list(&service, "/spec/ports") {
                if let Some(number) = int(port, "/nodePort").filter(|n| *n != 0) {
                    let protocol = text(port, "/protocol").to_owned();
                    found.ports.insert((number, protocol));
                }
            }
        }
        found
    }
}
