// SPDX-License-Identifier: Apache-2.0
//! Who is asking, and may they: x509 clients, and the one group that is let in.

use http::Method;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::route;

/// The group of cluster administrators; the API server's own client is in it.
const ADMINISTRATORS: &str = "system:masters";

/// A verified client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
}

impl Identity {
    /// Reads common name and organisations from a certificate that TLS has verified.
    pub(super) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization();
        let groups = groups.filter_map(|group| Some(group.as_str().ok()?.to_owned()));
        Some(Self {
            user,
            groups: groups.collect(),
        })
    }
}

/// A refusal: 401 or 403, with upstream's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Unauthorized,
    Forbidden(String),
}

/// Lets administrators pass.
pub(super) fn authorize(
    identity: Option<&Identity>,
    method: &Method,
    path: &str,
) -> Result<(), Refusal> {
    let identity = identity.ok_or(Refusal::Unauthorized)?;
    if identity.groups.iter().any(|group| group == ADMINISTRATORS) {
        return Ok(());
    }
    Err(Refusal::Forbidden(format!(
        "Forbidden (user={}, verb={}, resource=nodes, subresource(s)={})",
        identity.user,
        route::verb(method),
        route::subresources(path)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_administrators_pass() {
        let client = |group: &str| Identity {
            user: "eve".into(),
            groups: vec![group.into()],
        };
        let check = |who: Option<Identity>| authorize(who.as_ref(), &Method::GET, "/exec/a/b/c");
        assert_eq!(check(None), Err(Refusal::Unauthorized));
        assert_eq!(check(Some(client("system:masters"))), Ok(()));
        let text = "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[proxy])";
        assert_eq!(
            check(Some(client("system:nodes"))),
            Err(Refusal::Forbidden(text.to_owned()))
        );
    }
}
