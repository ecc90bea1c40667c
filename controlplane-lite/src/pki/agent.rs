// SPDX-License-Identifier: Apache-2.0
//! Credentials of a node that runs beside the server and may therefore use its authority.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    Authority, Identity, PkiError, authority::KeyFiles, files, kubeconfig, server::pki_dir,
};

/// The files that a node's parts are configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFiles {
    /// For the kubelet: user `system:node:<name>`, group `system:nodes`.
    pub kubelet_kubeconfig: PathBuf,
    /// For the service proxy: user `system:kube-proxy`.
    pub proxy_kubeconfig: PathBuf,
    /// The authority whose client certificates the kubelet's own server accepts.
    pub client_ca: PathBuf,
    /// Serving certificate of the kubelet.
    pub kubelet_cert: PathBuf,
    /// Key of the serving certificate.
    pub kubelet_key: PathBuf,
}

/// Writes the credentials of a node under `<data_dir>/agent/`, signed by the authority in
/// `<data_dir>/server/`, and says where they are.
///
/// Idempotent: what is still good is kept. Makes the authority if the server never ran.
///
/// # Errors
/// When a file cannot be read or written, or the authority's files are damaged.
pub fn agent_credentials(
    data_dir: &Path,
    node_name: &str,
    node_ips: &[IpAddr],
    server_url: &str,
) -> Result<AgentFiles, PkiError> {
    let authority = Authority::open(&pki_dir(data_dir))?;
    let dir = data_dir.join("agent");
    files::private_dir(&dir)?;

    let user = format!("system:node:{node_name}");
    let kubelet = KeyFiles::named(&dir, "kubelet-client");
    authority.ensure(&kubelet, &Identity::client(&user, Some("system:nodes")))?;
    let proxy = KeyFiles::named(&dir, "kube-proxy");
    authority.ensure(&proxy, &Identity::client("system:kube-proxy", None))?;

    let serving = KeyFiles::named(&dir, "kubelet-serving");
    let mut identity = Identity::client(&user, Some("system:nodes"));
    identity.serves.insert(node_name.to_owned());
    identity
        .serves
        .extend(node_ips.iter().map(IpAddr::to_string));
    authority.ensure(&serving, &identity)?;

    let found = AgentFiles {
        kubelet_kubeconfig: dir.join("kubelet.kubeconfig"),
        proxy_kubeconfig: dir.join("kube-proxy.kubeconfig"),
        client_ca: dir.join("client-ca.crt"),
        kubelet_cert: serving.cert,
        kubelet_key: serving.key,
    };
    let ca = authority.pem();
    kubeconfig::write(&found.kubelet_kubeconfig, server_url, ca, &user, &kubelet)?;
    kubeconfig::write(
        &found.proxy_kubeconfig,
        server_url,
        ca,
        "system:kube-proxy",
        &proxy,
    )?;
    files::write(&found.client_ca, ca, 0o644)?;
    Ok(found)
}
