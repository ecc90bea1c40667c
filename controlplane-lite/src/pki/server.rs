// SPDX-License-Identifier: Apache-2.0
//! The certificates of the server's own parts.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{Authority, Identity, PkiError, authority::KeyFiles, kubeconfig};
use crate::Config;

/// Folder of the authority and the server's certificates.
pub(crate) fn pki_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server").join("pki")
}

/// Where the server's own certificates are.
#[derive(Debug, Clone)]
pub(crate) struct ServerFiles {
    /// The authority's certificate, PEM.
    pub(crate) ca_pem: String,
    /// Serving certificate of the API server.
    pub(crate) serving: KeyFiles,
    /// Client certificate with which the API server calls kubelets.
    pub(crate) kubelet_client: KeyFiles,
    admin: KeyFiles,
    scheduler: KeyFiles,
    controller_manager: KeyFiles,
    dir: PathBuf,
}

impl ServerFiles {
    /// Makes sure that every certificate of the server is there and good. Idempotent.
    pub(crate) fn ensure(config: &Config, first_service_ip: IpAddr) -> Result<Self, PkiError> {
        let dir = pki_dir(&config.data_dir);
        let authority = Authority::open(&dir)?;
        let make = |file: &str, name: &str, group| {
            let files = KeyFiles::named(&dir, file);
            authority.ensure(&files, &Identity::client(name, group))?;
            Ok::<_, PkiError>(files)
        };
        let serving = KeyFiles::named(&dir, "apiserver");
        let identity = Identity {
            name: "kube-apiserver".to_owned(),
            group: None,
            serves: served_names(config, first_service_ip),
        };
        authority.ensure(&serving, &identity)?;
        Ok(Self {
            ca_pem: authority.pem().to_owned(),
            serving,
            kubelet_client: make(
                "apiserver-kubelet-client",
                "kube-apiserver-kubelet-client",
                Some("system:masters"),
            )?,
            admin: make("admin", "kubernetes-admin", Some("system:masters"))?,
            scheduler: make("scheduler", "system:kube-scheduler", None)?,
            controller_manager: make("controller-manager", "system:kube-controller-manager", None)?,
            dir,
        })
    }

    /// Writes the kubeconfigs, now that the port is known. Returns the folder's files for the
    /// scheduler and the controllers.
    pub(crate) fn write_kubeconfigs(
        &self,
        config: &Config,
        port: u16,
    ) -> Result<ComponentFiles, PkiError> {
        let url = |host: IpAddr| format!("https://{}", std::net::SocketAddr::new(host, port));
        let reachable = if config.bind_address.is_unspecified() {
            config.advertise_address
        } else {
            config.bind_address
        };
        // The parts in this process use loopback when it is served: no route can break it.
        let inside = match config.bind_address {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let write = |path: &Path, host, user: &str, files: &KeyFiles| {
            kubeconfig::write(path, &url(host), &self.ca_pem, user, files)
        };
        let admin = config.kubeconfig_path();
        write(&admin, reachable, "kubernetes-admin", &self.admin)?;
        if let Some(copy) = &config.write_kubeconfig {
            write(copy, reachable, "kubernetes-admin", &self.admin)?;
        }
        let found = ComponentFiles {
            scheduler: self.dir.join("scheduler.kubeconfig"),
            controller_manager: self.dir.join("controller-manager.kubeconfig"),
        };
        write(
            &found.scheduler,
            inside,
            "system:kube-scheduler",
            &self.scheduler,
        )?;
        write(
            &found.controller_manager,
            inside,
            "system:kube-controller-manager",
            &self.controller_manager,
        )?;
        Ok(found)
    }
}

/// Kubeconfigs of the parts that run in the server's process.
#[derive(Debug, Clone)]
pub(crate) struct ComponentFiles {
    pub(crate) scheduler: PathBuf,
    pub(crate) controller_manager: PathBuf,
}

/// Every name under which a client may reach the API server.
fn served_names(config: &Config, first_service_ip: IpAddr) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
        "127.0.0.1",
        "::1",
    ]
    .map(str::to_owned)
    .into();
    names.insert(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.insert(first_service_ip.to_string());
    names.insert(config.advertise_address.to_string());
    if !config.bind_address.is_unspecified() {
        names.insert(config.bind_address.to_string());
    }
    names.extend(config.tls_san.iter().cloned());
    names
}
