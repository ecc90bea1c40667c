// SPDX-License-Identifier: Apache-2.0
//! What the operator may say about a node, from defaults < file < environment < flags.
//!
//! Two stages: [`NodeFlags`] is what was typed (every field optional, the same names in a flag, in
//! `PODWRIGHT_*` and in the file), [`NodeConfig`] is what is meant (every field there, checked).
//! The components' own `Config`s are built from the second and from nothing else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use cni::cidr::{self, Cidr};
use cni::overlay;
use cri::settings::CgroupDriver;
use kubelet::node::Thresholds;
use serde::{Deserialize, Serialize};

use crate::client::duration;

/// Addresses of pods when nothing else is said.
const DEFAULT_CLUSTER_CIDR: &str = "10.42.0.0/16";
/// kube-proxy's ports.
const PROXY_HEALTHZ_PORT: u16 = 10256;
const PROXY_METRICS_PORT: u16 = 10249;
/// The others hear of a key some seconds before it is used.
const LEAST_KEY_AGE: Duration = Duration::from_secs(60);

/// Flags that every long-running command takes.
#[derive(Args, Serialize, Deserialize, Debug, Default, Clone)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct NodeFlags {
    /// YAML file with any of these flags by name, without the dashes in front
    #[arg(long, value_name = "FILE", env = "PODWRIGHT_CONFIG")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// State that survives a reboot [default: /var/lib/podwright]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Sockets, network namespaces and the state of what runs now [default: /run/podwright]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_RUN_DIR")]
    pub(crate) run_dir: Option<PathBuf>,

    /// error, warn, info, debug, trace, or a tracing filter such as kubelet=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "PODWRIGHT_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "PODWRIGHT_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// Name of this node in the API [default: the host name in lower case]
    #[arg(long, value_name = "NAME", env = "PODWRIGHT_NODE_NAME")]
    pub(crate) node_name: Option<String>,

    /// Address of this node, or one of each family, separated by a comma; the first is the one that
    /// other nodes send pods' packets to [default: the one that the default route uses]
    #[arg(long, value_name = "IP", env = "PODWRIGHT_NODE_IP")]
    pub(crate) node_ip: Option<String>,

    /// Labels put on the node when it registers, as key=value,key=value
    #[arg(long, value_name = "LABELS", env = "PODWRIGHT_NODE_LABELS")]
    pub(crate) node_labels: Option<String>,

    /// cgroup below which everything of this node is made [default: /podwright]
    #[arg(long, value_name = "CGROUP", env = "PODWRIGHT_CGROUP_PARENT")]
    pub(crate) cgroup_parent: Option<String>,

    /// Addresses of pods, the same on every node: a range, or one of each family, separated by a
    /// comma; each node gets a part [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDRS", env = "PODWRIGHT_CLUSTER_CIDR")]
    pub(crate) cluster_cidr: Option<String>,

    /// How pods reach those of other nodes, the same on every node: vxlan, wireguard (encrypted),
    /// host-gw or none [default: vxlan]
    #[arg(
        long,
        value_name = "NAME",
        env = "PODWRIGHT_NETWORK_BACKEND",
        alias = "flannel-backend"
    )]
    pub(crate) network_backend: Option<String>,

    /// VXLAN network identifier [default: 1]
    #[arg(long, value_name = "NUMBER", env = "PODWRIGHT_VXLAN_VNI")]
    pub(crate) vxlan_vni: Option<u32>,

    /// UDP port of VXLAN [default: 8472]
    #[arg(long, value_name = "PORT", env = "PODWRIGHT_VXLAN_PORT")]
    pub(crate) vxlan_port: Option<u16>,

    /// Name of the VXLAN link [default: pw-vxlan]
    #[arg(long, value_name = "LINK", env = "PODWRIGHT_VXLAN_LINK")]
    pub(crate) vxlan_link: Option<String>,

    /// UDP port of WireGuard on this node [default: 51820]
    #[arg(long, value_name = "PORT", env = "PODWRIGHT_WIREGUARD_PORT")]
    pub(crate) wireguard_port: Option<u16>,

    /// Name of the WireGuard link [default: pw-wg]
    #[arg(long, value_name = "LINK", env = "PODWRIGHT_WIREGUARD_LINK")]
    pub(crate) wireguard_link: Option<String>,

    /// Age at which this node's WireGuard key is replaced, such as 12h; 0: never [default: 24h]
    #[arg(
        long,
        value_name = "DURATION",
        env = "PODWRIGHT_WIREGUARD_KEY_ROTATION"
    )]
    pub(crate) wireguard_key_rotation: Option<String>,

    /// Networks outside the cluster that see pods by their own addresses, separated by commas
    /// [default: none; pods leave the cluster with the node's address]
    #[arg(long, value_name = "CIDRS", env = "PODWRIGHT_NON_MASQUERADE_CIDRS")]
    pub(crate) non_masquerade_cidrs: Option<String>,

    /// Address of the cluster's DNS server, given to pods, or one of each family, separated by a comma
    /// [default: the tenth of each range of --service-cidr with server and agent; elsewhere none, and
    /// pods use the node's resolv.conf]
    #[arg(long, value_name = "IP", env = "PODWRIGHT_CLUSTER_DNS")]
    pub(crate) cluster_dns: Option<String>,

    /// Domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", env = "PODWRIGHT_CLUSTER_DOMAIN")]
    pub(crate) cluster_domain: Option<String>,

    /// Name of the bridge that pods hang on [default: pw0]
    #[arg(long, value_name = "LINK", env = "PODWRIGHT_BRIDGE")]
    pub(crate) bridge: Option<String>,

    /// Name of the nftables table for Services [default: podwright]
    #[arg(long, value_name = "TABLE", env = "PODWRIGHT_NFT_TABLE")]
    pub(crate) nft_table: Option<String>,

    /// Directory of CNI configuration lists [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_CNI_CONF_DIR")]
    pub(crate) cni_conf_dir: Option<PathBuf>,

    /// Directory of CNI plugins that are not built in [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_CNI_BIN_DIR")]
    pub(crate) cni_bin_dir: Option<PathBuf>,

    /// Directory of registry configuration, a folder with a hosts.toml per registry
    /// [default: /etc/podwright/registries.d]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_REGISTRIES_DIR")]
    pub(crate) registries_dir: Option<PathBuf>,

    /// Directory of container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_POD_LOGS_DIR")]
    pub(crate) pod_logs_dir: Option<PathBuf>,

    /// Directory of static pod manifests [default: <data-dir>/agent/manifests]
    #[arg(long, value_name = "DIR", env = "PODWRIGHT_POD_MANIFEST_PATH")]
    pub(crate) pod_manifest_path: Option<PathBuf>,

    /// Port of the node API (logs, exec) [default: 10250]
    #[arg(long, value_name = "PORT", env = "PODWRIGHT_KUBELET_PORT")]
    pub(crate) kubelet_port: Option<u16>,

    /// Port on loopback that answers /healthz for the kubelet, 0 for none [default: 10248]
    #[arg(long, value_name = "PORT", env = "PODWRIGHT_HEALTHZ_PORT")]
    pub(crate) healthz_port: Option<u16>,

    /// Pods this node takes [default: 110]
    #[arg(long, value_name = "COUNT", env = "PODWRIGHT_MAX_PODS")]
    pub(crate) max_pods: Option<u32>,

    /// Ids that each pod with hostUsers: false gets, a multiple of 65536. They come out of the range
    /// of user kubelet in /etc/subuid and /etc/subgid, else from 65536 on [default: 65536]
    #[arg(
        long,
        value_name = "COUNT",
        env = "PODWRIGHT_USER_NAMESPACES_IDS_PER_POD"
    )]
    pub(crate) user_namespaces_ids_per_pod: Option<u32>,

    /// Below what the node is under pressure and takes no more pods
    /// [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%]
    #[arg(long, value_name = "LIMITS", env = "PODWRIGHT_EVICTION_HARD")]
    pub(crate) eviction_hard: Option<String>,

    /// Socket of the container runtime [default: <run-dir>/cri.sock]
    #[arg(long, value_name = "PATH", env = "PODWRIGHT_CRI_SOCKET")]
    pub(crate) cri_socket: Option<PathBuf>,

    /// Where exec, attach and port-forward are served; in the file it is cri.streaming.address
    /// [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "IP:PORT", env = "PODWRIGHT_STREAMING_ADDRESS")]
    #[serde(skip)]
    pub(crate) streaming_address: Option<SocketAddr>,

    /// Who makes cgroups, cgroupfs or systemd; in the file it is cri.cgroup-driver [default: cgroupfs]
    #[arg(long, value_name = "DRIVER", env = "PODWRIGHT_CGROUP_DRIVER", value_parser = cgroup_driver)]
    #[serde(skip)]
    pub(crate) cgroup_driver: Option<CgroupDriver>,

    /// The runtime's own section. It has too much shape for flags.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cri: Option<cri::Settings>,
}

/// How log lines are written to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A checked node configuration.
#[derive(Debug, Clone)]
pub(crate) struct NodeConfig {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    pub(crate) node_name: String,
    /// Empty: to be found.
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) node_labels: Vec<(String, String)>,
    pub(crate) cgroup_parent: String,
    pub(crate) cluster_cidr: String,
    pub(crate) overlay: cni::overlay::Settings,
    pub(crate) non_masquerade_cidrs: Vec<Cidr>,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    pub(crate) bridge: String,
    pub(crate) nft_table: String,
    pub(crate) cni_conf_dir: PathBuf,
    pub(crate) cni_bin_dir: PathBuf,
    pub(crate) registries_dir: PathBuf,
    pub(crate) pod_logs_dir: PathBuf,
    pub(crate) pod_manifest_path: PathBuf,
    pub(crate) kubelet_port: u16,
    pub(crate) healthz_port: u16,
    pub(crate) max_pods: u32,
    pub(crate) user_namespaces_ids_per_pod: u32,
    pub(crate) eviction_hard: Thresholds,
    pub(crate) cri_socket: PathBuf,
    pub(crate) cri: cri::Settings,
    pub(crate) shared: Shared,
}

/// What components of one process tell each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    /// Which pods the rules of NetworkPolicies know: the runtime waits for that.
    known: cni::Known,
    /// Counters of NetworkPolicies: the proxy shows them.
    policies: Arc<proxy::policy::Metrics>,
}

impl NodeFlags {
    /// Reads the file named by `--config`, if any, and lays the flags over it.
    pub(crate) fn resolve(self) -> anyhow::Result<NodeConfig> {
        let merged = match &self.config {
            Some(path) => self.clone().over(read_file(path)?),
            None => self,
        };
        merged.check()
    }

    /// `self` where it says something, `below` elsewhere.
    fn over(self, below: Self) -> Self {
        macro_rules! lay {
            ($($field:ident),* $(,)?) => { Self { $($field: self.$field.or(below.$field)),* } };
        }
        lay!(
            config,
            data_dir,
            run_dir,
            log_level,
            log_format,
            node_name,
            node_ip,
            node_labels,
            cgroup_parent,
            cluster_cidr,
            network_backend,
            vxlan_vni,
            vxlan_port,
            vxlan_link,
            wireguard_port,
            wireguard_link,
            wireguard_key_rotation,
            non_masquerade_cidrs,
            cluster_dns,
            cluster_domain,
            bridge,
            nft_table,
            cni_conf_dir,
            cni_bin_dir,
            registries_dir,
            pod_logs_dir,
            pod_manifest_path,
            kubelet_port,
            healthz_port,
            max_pods,
            user_namespaces_ids_per_pod,
            eviction_hard,
            cri_socket,
            streaming_address,
            cgroup_driver,
            cri,
        )
    }

    /// The runtime's section, with what flags say laid over it.
    fn cri_settings(&self) -> anyhow::Result<cri::Settings> {
        let mut settings = self.cri.clone().unwrap_or_default();
        if let Some(address) = self.streaming_address {
            settings.streaming.address = address;
        }
        if let Some(driver) = self.cgroup_driver {
            settings.cgroup_driver = driver;
        }
        settings.check()?;
        Ok(settings)
    }

    /// What the network between nodes goes by.
    fn overlay(&self, data_dir: &Path) -> anyhow::Result<overlay::Settings> {
        let backend = self.network_backend.as_deref().unwrap_or("vxlan");
        let link = |name: &str, given: &Option<String>, default: &str| {
            let link = given.clone().unwrap_or_else(|| default.to_owned());
            ensure!(
                !link.is_empty() && link.len() <= 15 && !link.contains(['/', ' ']),
                "{name}: {link:?} is not a link name: 1 to 15 characters without '/' and spaces"
            );
            Ok(link)
        };
        let vni = self.vxlan_vni.unwrap_or(overlay::Settings::VNI);
        ensure!(
            (1..1 << 24).contains(&vni),
            "vxlan-vni: {vni} is not between 1 and 16777215"
        );
        let port = self.vxlan_port.unwrap_or(overlay::Settings::PORT);
        ensure!(port != 0, "vxlan-port: 0 is no port");
        let cluster = self.cluster_cidr.as_deref().unwrap_or(DEFAULT_CLUSTER_CIDR);
        Ok(overlay::Settings {
            backend: backend
                .parse()
                .map_err(|why: String| anyhow!("network-backend: {why}"))?,
            link: link("vxlan-link", &self.vxlan_link, overlay::Settings::LINK)?,
            vni,
            port,
            wireguard: overlay::WireGuard {
                link: link(
                    "wireguard-link",
                    &self.wireguard_link,
                    overlay::WireGuard::LINK,
                )?,
                ..self.wireguard(data_dir)?
            },
            cluster: cidr::list(cluster).context("cluster-cidr")?,
            bridge: link("bridge", &self.bridge, "pw0")?,
            nft_table: self.nft_table.clone().unwrap_or_else(|| "podwright".into()),
        })
    }

    /// What is particular to WireGuard, but for the link's name.
    fn wireguard(&self, data_dir: &Path) -> anyhow::Result<overlay::WireGuard> {
        let mut settings = overlay::WireGuard::usual(data_dir.join("overlay"));
        if let Some(port) = self.wireguard_port {
            ensure!(port != 0, "wireguard-port: 0 is no port");
            settings.port = port;
        }
        if let Some(text) = &self.wireguard_key_rotation {
            let age = duration(text).context("wireguard-key-rotation")?;
            ensure!(
                age.is_zero() || age >= LEAST_KEY_AGE,
                "wireguard-key-rotation: {text:?} is less than a minute; 0 is never"
            );
            settings.rotation = Some(age).filter(|age| !age.is_zero());
        }
        Ok(settings)
    }

    fn check(self) -> anyhow::Result<NodeConfig> {
        let cri = self.cri_settings()?;
        let data_dir = absolute("data-dir", self.data_dir.clone(), "/var/lib/podwright")?;
        let overlay = self.overlay(&data_dir)?;
        let run_dir = absolute("run-dir", self.run_dir, "/run/podwright")?;
        let node_name = match self.node_name {
            Some(name) => name,
            None => host_name()?,
        };
        ensure!(
            is_dns_subdomain(&node_name),
            "node-name: {node_name:?} is not a DNS name: lower case letters, digits, '-' and '.'"
        );
        let cgroup_parent = self.cgroup_parent.unwrap_or_else(|| "/podwright".into());
        ensure!(
            cgroup_parent.starts_with('/')
                && cgroup_parent.len() > 1
                && !cgroup_parent
                    .split('/')
                    .any(|part| part == ".." || part == "."),
            "cgroup-parent: {cgroup_parent:?} must be an absolute cgroup path such as /podwright"
        );
        Ok(NodeConfig {
            log_level: self.log_level.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
            node_ips: parse_ips("node-ip", self.node_ip.as_deref().unwrap_or(""))?,
            node_labels: parse_labels(self.node_labels.as_deref().unwrap_or(""))?,
            cgroup_parent,
            cluster_cidr: self
                .cluster_cidr
                .unwrap_or_else(|| DEFAULT_CLUSTER_CIDR.into()),
            non_masquerade_cidrs: cidr::list(self.non_masquerade_cidrs.as_deref().unwrap_or(""))
                .context("non-masquerade-cidrs")?,
            cluster_dns: parse_ips("cluster-dns", self.cluster_dns.as_deref().unwrap_or(""))?,
            cluster_domain: self
                .cluster_domain
                .unwrap_or_else(|| "cluster.local".into()),
            bridge: overlay.bridge.clone(),
            nft_table: overlay.nft_table.clone(),
            cni_conf_dir: absolute("cni-conf-dir", self.cni_conf_dir, "/etc/cni/net.d")?,
            cni_bin_dir: absolute("cni-bin-dir", self.cni_bin_dir, "/opt/cni/bin")?,
            registries_dir: absolute(
                "registries-dir",
                self.registries_dir,
                "/etc/podwright/registries.d",
            )?,
            pod_logs_dir: absolute("pod-logs-dir", self.pod_logs_dir, "/var/log/pods")?,
            pod_manifest_path: absolute(
                "pod-manifest-path",
                self.pod_manifest_path,
                data_dir.join("agent/manifests"),
            )?,
            kubelet_port: self.kubelet_port.unwrap_or(10250),
            healthz_port: self.healthz_port.unwrap_or(10248),
            max_pods: self.max_pods.unwrap_or(110),
            user_namespaces_ids_per_pod: self.user_namespaces_ids_per_pod.unwrap_or(65536),
            eviction_hard: match self.eviction_hard {
                Some(limits) => limits.parse().context("eviction-hard")?,
                None => Thresholds::default(),
            },
            cri_socket: absolute("cri-socket", self.cri_socket, run_dir.join("cri.sock"))?,
            cri,
            overlay,
            node_name,
            data_dir,
            run_dir,
            shared: Shared::default(),
        })
    }
}

impl NodeConfig {
    /// The addresses given, or the one that the default route uses. A node cannot be reached without
    /// one, so its absence is an error that says what to do.
    pub(crate) fn node_ips(&self) -> anyhow::Result<Vec<IpAddr>> {
        if !self.node_ips.is_empty() {
            return Ok(self.node_ips.clone());
        }
        let found = address_of_default_route().context(
            "finding this node's address: there is no default route; give one with --node-ip",
        )?;
        Ok(vec![found])
    }

    /// The first of [`NodeConfig::node_ips`].
    pub(crate) fn node_ip(&self) -> anyhow::Result<IpAddr> {
        let all = self.node_ips()?;
        Ok(all[0])
    }

    /// Can this kernel do what the network between nodes needs? Asked before anything is started.
    pub(crate) fn check_backend(&self) -> anyhow::Result<()> {
        let backend = self.overlay.backend;
        overlay::supported(backend).with_context(|| format!("--network-backend {backend}"))
    }

    /// The network between nodes, as this node takes part in it.
    pub(crate) fn overlay(&self, kubeconfig: PathBuf) -> anyhow::Result<proxy::overlay::Config> {
        Ok(proxy::overlay::Config {
            kubeconfig,
            node_name: self.node_name.clone(),
            node_ips: self.node_ips()?,
            settings: self.overlay.clone(),
        })
    }

    /// The pod network of this node, but for its pods' ranges and the MTU.
    pub(crate) fn pod_network(&self) -> cni::PodNetwork {
        let inside = self.overlay.cluster.iter();
        cni::PodNetwork {
            bridge: self.bridge.clone(),
            nft_table: self.nft_table.clone(),
            pod_cidrs: Vec::new(),
            not_masqueraded: inside.chain(&self.non_masquerade_cidrs).copied().collect(),
            mtu: None,
        }
    }

    /// The runtime's configuration on this node.
    pub(crate) fn cri(&self) -> cri::Config {
        cri::Config {
            listen: self.cri_socket.clone(),
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
            registries_dir: self.registries_dir.clone(),
            known: self.shared.known.clone(),
            settings: cri::Live::new(self.cri.clone()),
        }
    }

    /// What the runtime alone goes by, as a file that `--config` takes.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub(crate) fn cri_file(&self) -> anyhow::Result<String> {
        let flags = NodeFlags {
            data_dir: Some(self.data_dir.clone()),
            run_dir: Some(self.run_dir.clone()),
            log_level: Some(self.log_level.clone()),
            log_format: Some(self.log_format),
            cgroup_parent: Some(self.cgroup_parent.clone()),
            cni_conf_dir: Some(self.cni_conf_dir.clone()),
            cni_bin_dir: Some(self.cni_bin_dir.clone()),
            registries_dir: Some(self.registries_dir.clone()),
            cri_socket: Some(self.cri_socket.clone()),
            cri: Some(self.cri.clone()),
            ..NodeFlags::default()
        };
        let value = without_nulls(serde_json::to_value(flags)?);
        serde_saphyr::to_string(&value).context("writing the configuration as YAML")
    }

    /// The kubelet's configuration on this node; without a kubeconfig it runs static pods only.
    pub(crate) fn kubelet(&self, kubeconfig: Option<PathBuf>) -> anyhow::Result<kubelet::Config> {
        Ok(kubelet::Config {
            kubeconfig,
            container_runtime_endpoint: format!("unix://{}", self.cri_socket.display()),
            pod_manifest_path: Some(self.pod_manifest_path.clone()),
            node_name: self.node_name.clone(),
            node_ips: self.node_ips()?,
            node_labels: self.node_labels.iter().cloned().collect(),
            register_with_taints: Vec::new(),
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            pod_logs_dir: self.pod_logs_dir.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            resolv_conf: "/etc/resolv.conf".into(),
            address: match self.node_ip()? {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            },
            port: self.kubelet_port,
            healthz_port: self.healthz_port,
            client_ca_file: None,
            tls_cert_file: None,
            tls_private_key_file: None,
            max_pods: self.max_pods,
            allowed_unsafe_sysctls: BTreeSet::new(),
            register_node: true,
            periods: kubelet::config::Periods::default(),
            eviction_hard: self.eviction_hard,
            user_namespaces: kubelet::config::UserNamespaceSettings {
                ids_per_pod: self.user_namespaces_ids_per_pod,
                subuid_file: "/etc/subuid".into(),
                subgid_file: "/etc/subgid".into(),
                passwd_file: "/etc/passwd".into(),
            },
        })
    }

    /// The configuration of NetworkPolicies on this node. With `attachments`, pods are attached to
    /// the network by this node's own runtime.
    pub(crate) fn policy(&self, kubeconfig: PathBuf, attachments: bool) -> proxy::policy::Config {
        proxy::policy::Config {
            kubeconfig,
            node_name: self.node_name.clone(),
            nft_table: self.nft_table.clone(),
            bridge: self.bridge.clone(),
            network_state: attachments.then(|| cri::network_state(&self.cri())),
            known: self.shared.known.clone(),
            metrics: self.shared.policies.clone(),
        }
    }

    /// The service proxy's configuration on this node. With `policies` it shows their counters, too.
    pub(crate) fn proxy(
        &self,
        kubeconfig: PathBuf,
        policies: bool,
    ) -> anyhow::Result<proxy::Config> {
        Ok(proxy::Config {
            kubeconfig,
            node_name: self.node_name.clone(),
            node_ips: self.node_ips()?,
            cluster_cidr: self.cluster_cidr.clone(),
            nft_table: self.nft_table.clone(),
            bridge: self.bridge.clone(),
            options: proxy::Options {
                healthz: Some((Ipv4Addr::UNSPECIFIED, PROXY_HEALTHZ_PORT).into()),
                metrics: Some((Ipv4Addr::LOCALHOST, PROXY_METRICS_PORT).into()),
                ..proxy::Options::default()
            },
            policies: policies.then(|| self.shared.policies.clone()),
        })
    }
}

fn cgroup_driver(text: &str) -> Result<CgroupDriver, String> {
    match text {
        "cgroupfs" => Ok(CgroupDriver::Cgroupfs),
        "systemd" => Ok(CgroupDriver::Systemd),
        _ => Err("it is cgroupfs or systemd".to_owned()),
    }
}

/// A file says nothing about what is not set.
fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        other => other,
    }
}

fn read_file(path: &Path) -> anyhow::Result<NodeFlags> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration file {}", path.display()))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("in the configuration file {}", path.display()))
}

fn absolute(
    name: &str,
    given: Option<PathBuf>,
    default: impl Into<PathBuf>,
) -> anyhow::Result<PathBuf> {
    let path = given.unwrap_or_else(|| default.into());
    if path.is_absolute() {
        return Ok(path);
    }
    let here = std::env::current_dir().with_context(|| {
        format!(
            "{name}: {} is relative to the current directory",
            path.display()
        )
    })?;
    Ok(here.join(path))
}

fn parse_labels(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("node-labels: {part:?} is not key=value"),
        })
        .collect()
}

/// One address, or one of each family.
fn parse_ips(flag: &str, text: &str) -> anyhow::Result<Vec<IpAddr>> {
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    let found: Vec<IpAddr> = parts
        .map(|part| part.parse().with_context(|| format!("{flag}: {part:?}")))
        .collect::<anyhow::Result<_>>()?;
    let of = |ipv4: bool| found.iter().filter(|ip| ip.is_ipv4() == ipv4).count();
    ensure!(
        of(true) <= 1 && of(false) <= 1,
        "{flag}: {text:?} has two addresses of one family"
    );
    Ok(found)
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("reading the host name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// RFC 1123 subdomain, at most 253 characters: what the API accepts as a node name.
fn is_dns_subdomain(name: &str) -> bool {
    let label = |part: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The source address the kernel would choose towards a far address. Connecting a UDP socket sends
/// nothing; it only makes the kernel look up the route (ip(7), udp(7)).
fn address_of_default_route() -> std::io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(yaml: &str) -> NodeFlags {
        serde_saphyr::from_str(yaml).expect("a valid file")
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let typed = NodeFlags {
            bridge: Some("br7".into()),
            node_name: Some("n".into()),
            ..NodeFlags::default()
        };
        let config = typed.over(flags("bridge: br1\nnft-table: t1\n")).check();
        let config = config.expect("a valid configuration");
        assert_eq!(config.bridge, "br7");
        assert_eq!(config.nft_table, "t1");
        assert_eq!(config.cgroup_parent, "/podwright");
    }

    #[test]
    fn the_runtimes_section_is_printed_as_it_is_read() {
        let typed = NodeFlags {
            streaming_address: Some(([127, 0, 0, 1], 4444).into()),
            node_name: Some("n".into()),
            ..NodeFlags::default()
        };
        let file = "cri:\n  runtimes:\n    crun:\n      path: /usr/bin/crun\n  streaming:\n    idle-timeout: 90s\n";
        let config = typed.over(flags(file)).check();
        let printed = config.expect("a valid configuration").cri_file();
        let again = flags(&printed.expect("YAML")).cri.expect("the section");
        assert_eq!(again.streaming.address.port(), 4444);
        assert_eq!(again.streaming.idle_timeout.as_secs(), 90);
        assert_eq!(again.runtimes["crun"].path, Path::new("/usr/bin/crun"));
        let wrong = flags("cri:\n  runtimes:\n    crun:\n      path: crun\n");
        let error = wrong.check().expect_err("a relative path").to_string();
        assert!(error.starts_with("cri.runtimes.crun.path:"), "{error}");
    }

    #[test]
    fn the_file_in_the_documentation_is_one() {
        let page = include_str!("../../docs/cri.md");
        let file = page.split("```yaml\n").nth(1).expect("an example");
        let file = file.split("```").next().expect("its end");
        let section = flags(file).cri.expect("the section");
        assert_eq!(section.check(), Ok(()));
        assert!(section.runtimes.contains_key("crun"));
    }

    #[test]
    fn an_unknown_field_in_the_file_is_named() {
        let error = serde_saphyr::from_str::<NodeFlags>("bridgee: br1\n").unwrap_err();
        assert!(error.to_string().contains("bridgee"), "{error}");
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_flag() {
        let refused = |flags: NodeFlags| flags.check().unwrap_err().to_string();
        let named = |node_name: &str| NodeFlags {
            node_name: Some(node_name.into()),
            ..NodeFlags::default()
        };
        assert!(refused(named("Node_1")).starts_with("node-name:"));
        let parent = |cgroup: &str| NodeFlags {
            cgroup_parent: Some(cgroup.into()),
            ..named("n")
        };
        assert!(refused(parent("relative")).starts_with("cgroup-parent:"));
        assert!(refused(parent("/a/../b")).starts_with("cgroup-parent:"));
        let labels = NodeFlags {
            node_labels: Some("a=b,c".into()),
            ..named("n")
        };
        assert!(refused(labels).starts_with("node-labels:"));
        for (name, yaml) in [
            ("node-ip:", "node-ip: 10.0.0.1,10.0.0.2"),
            ("node-ip:", "node-ip: here"),
            ("network-backend:", "network-backend: ipsec"),
            ("vxlan-vni:", "vxlan-vni: 16777216"),
            ("vxlan-link:", "vxlan-link: a-name-that-is-long"),
            ("wireguard-link:", "wireguard-link: a-name-that-is-long"),
            ("wireguard-port:", "wireguard-port: 0"),
            ("wireguard-key-rotation", "wireguard-key-rotation: 1s"),
            ("wireguard-key-rotation", "wireguard-key-rotation: often"),
            ("bridge:", "bridge: a/b"),
            ("cluster-cidr", "cluster-cidr: 10.42.0.0"),
            ("non-masquerade-cidrs", "non-masquerade-cidrs: here"),
        ] {
            let text = refused(flags(&format!("node-name: n\n{yaml}\n")));
            assert!(text.starts_with(name), "{text}");
        }
    }
}
