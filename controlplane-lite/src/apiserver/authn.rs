// SPDX-License-Identifier: Apache-2.0
//! Who a client is: the subject of its certificate (common name: user, organisations: groups).

use rustls::pki_types::CertificateDer;

/// Group of everybody who showed a certificate.
const AUTHENTICATED: &str = "system:authenticated";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    /// The holder of a certificate that the TLS layer has verified.
    pub(crate) fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<_> = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(str::to_owned)
            .collect();
        groups.push(AUTHENTICATED.to_owned());
        (!name.is_empty()).then_some(Self { name, groups })
    }

    /// Whether the user is in a group.
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, for a kubelet.
    pub(crate) fn node(&self) -> Option<&str> {
        if !self.is_in("system:nodes") {
            return None;
        }
        self.name.strip_prefix("system:node:")
    }
}
