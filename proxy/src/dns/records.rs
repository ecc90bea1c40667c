// SPDX-License-Identifier: Apache-2.0
//! What is kept of Services and EndpointSlices to answer questions about them.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::parse::{self, PortInfo, SERVICE_NAME_LABEL};
use crate::service::Protocol;

/// A Service as names show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// What its name stands for.
    pub kind: Kind,
    /// Its ports, unnamed ones too.
    pub ports: Box<[PortInfo]>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
}

/// What the name of a Service stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Its own addresses; none while they have not been allocated.
    Cluster(Box<[IpAddr]>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(Name),
}

/// Endpoints of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceRecord {
    /// Name of the Service, in the slice's namespace.
    pub service: Box<str>,
    /// Ports that every endpoint of the slice has: name, protocol, number.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// In the order of the slice.
    pub endpoints: Box<[EndpointRecord]>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Where it is.
    pub addr: IpAddr,
    /// The first label of its name, in lower case. Without a hostname, its address with dashes.
    pub label: Box<str>,
    /// Does it take connections?
    pub ready: bool,
}

/// Of a Service; `None`: it has no name, because it stands for an address that is called a name.
pub fn service(service: &Service) -> Option<ServiceRecord> {
    let spec = service.spec.as_ref()?;
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let kind = if spec.type_.as_deref() == Some("ExternalName") {
        Kind::External(external_name(spec.external_name.as_deref()?)?)
    } else if headless {
        Kind::Headless
    } else {
        Kind::Cluster(parse::cluster_ips(spec))
    };
    Some(ServiceRecord {
        kind,
        ports: parse::ports(spec, &mut Vec::new()),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
    })
}

/// An address is no name: CoreDNS has no record for it either.
fn external_name(text: &str) -> Option<Name> {
    if text.parse::<IpAddr>().is_ok() {
        return None;
    }
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

/// Of a slice; `None`: it is nobody's.
pub fn slice(slice: &EndpointSlice) -> Option<SliceRecord> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME_LABEL)?.as_str().into();
    let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
        // Only the first address counts, as the API says. Names (addressType FQDN) are none.
        let addr: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        let conditions = endpoint.conditions.as_ref();
        Some(EndpointRecord {
            addr,
            label: hostname.map_or_else(|| dashed(addr), |name| name.to_ascii_lowercase().into()),
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        })
    });
    Some(SliceRecord {
        service,
        ports: parse::slice_ports(slice),
        endpoints: endpoints.collect(),
    })
}

/// An address as a label, as CoreDNS writes it: `10-42-0-5`, `2001-db8--1`.
pub(crate) fn dashed(addr: IpAddr) -> Box<str> {
    let text = addr.to_string().replace(['.', ':'], "-");
    match text.ends_with('-') {
        // A label must not end so.
        true => format!("{text}0").into(),
        false => text.into(),
    }
}

/// The address that such a label stands for.
pub(crate) fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    if text.contains(['.', ':']) {
        return None;
    }
    let octets = text.split('-').filter(|part| !part.is_empty()).count() == 4;
    let separator = if octets && !text.contains("--") && text.matches('-').count() == 3 {
        "."
    } else {
        ":"
    };
    text.replace('-', separator).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_label_and_back() {
        for (addr, label) in [
            ("10.42.0.5", "10-42-0-5"),
            ("2001:db8::1", "2001-db8--1"),
            ("2001:db8::", "2001-db8--0"),
            ("fd00:1:2:3:4:5:6:7", "fd00-1-2-3-4-5-6-7"),
        ] {
            let addr: IpAddr = addr.parse().expect("an address");
            assert_eq!(&*dashed(addr), label);
            assert_eq!(undashed(label.as_bytes()), Some(addr), "{label}");
        }
        for bad in [
            "",
            "-",
            "10-42-0",
            "10-42-0-256",
            "10.42.0.5",
            "a",
            "010-1-1-1",
            "\u{e9}",
        ] {
            assert_eq!(undashed(bad.as_bytes()), None, "{bad}");
        }
    }
}
