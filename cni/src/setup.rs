// SPDX-License-Identifier: Apache-2.0
//! The pod network as podwright sets it up by itself, and its removal.

use serde_json::json;

use crate::cidr::{self, Cidr, ParseCidrError};
use crate::link::{LinkError, Route};
use crate::nft::{self, Family, NftError};

/// Why the pod network could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The rules could not be deleted.
    #[error("removing the pod network's rules")]
    Rules(#[source] NftError),
    /// The bridge could not be deleted.
    #[error("removing the pod network's bridge")]
    Link(#[source] LinkError),
}

/// What the default configuration list depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// The bridge that pods hang on.
    pub bridge: String,
    /// The rules live in table `<nft_table>-cni`.
    pub nft_table: String,
    /// Ranges of this node's pods. A pod gets an address out of each, in this order.
    pub pod_cidrs: Vec<Cidr>,
    /// Networks that hear pods by their own addresses: all pods', and whoever else routes to them.
    pub not_masqueraded: Vec<Cidr>,
    /// Largest packet of pods; `None`: the kernel's default.
    pub mtu: Option<u32>,
}

impl PodNetwork {
    /// With lists of networks separated by commas, and the kernel's MTU.
    ///
    /// # Errors
    /// When one is none.
    pub fn new(
        bridge: &str,
        nft_table: &str,
        pod_cidrs: &str,
        not_masqueraded: &str,
    ) -> Result<PodNetwork, ParseCidrError> {
        Ok(PodNetwork {
            bridge: bridge.to_owned(),
            nft_table: nft_table.to_owned(),
            pod_cidrs: cidr::list(pod_cidrs)?,
            not_masqueraded: cidr::list(not_masqueraded)?,
            mtu: None,
        })
    }
}

/// The configuration list that podwright writes when the administrator has given none: a bridge
/// with host-local addresses, masquerade of what leaves the cluster, host ports, limits of bandwidth for
/// pods that have the annotations, and a loopback.
pub fn default_conflist(network: &PodNetwork) -> String {
    let table = format!("{}-cni", network.nft_table);
    let ranges: Vec<_> = network
        .pod_cidrs
        .iter()
        .map(|cidr| json!([{ "subnet": cidr }]))
        .collect();
    let routes: Vec<_> = [(true, "0.0.0.0/0"), (false, "::/0")]
        .into_iter()
        .filter(|(ipv4, _)| network.pod_cidrs.iter().any(|c| c.is_ipv4() == *ipv4))
        .map(|(_, dst)| json!({ "dst": dst }))
        .collect();
    let mut bridge = json!({
        "type": "bridge",
        "bridge": network.bridge,
        "isGateway": true,
        "isDefaultGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
        "podwright": {
            "table": table,
            "routed": true,
            "clusterCIDRs": network.not_masqueraded,
        }
    });
    if let Some(mtu) = network.mtu {
        bridge["mtu"] = mtu.into();
    }
    let list = json!({
        "cniVersion": "1.1.0",
        "name": "podwright",
        "plugins": [
            bridge,
            {
                "type": "portmap",
                "capabilities": { "portMappings": true },
                "podwright": { "table": table }
            },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "loopback" }
        ]
    });
    format!("{list:#}\n")
}

/// Remove the bridge (and with it every pod's link) and the tables `<nft_table>-cni` from the
/// network namespace of the calling thread. Idempotent. Blocks for some milliseconds.
pub fn cleanup(bridge: &str, nft_table: &str) -> Result<(), CleanupError> {
    let mut route = Route::open().map_err(CleanupError::Socket)?;
    if let Some(link) = route.link(bridge).map_err(CleanupError::Link)? {
        route.delete(link.index).map_err(CleanupError::Link)?;
    }
    let mut socket = nft::Socket::open().map_err(CleanupError::Socket)?;
    let table = format!("{nft_table}-cni");
    // The second is there only where a network has `macspoofchk`.
    [Family::Inet, Family::Bridge]
        .into_iter()
        .try_for_each(|family| socket.delete_table(family, &table))
        .map_err(CleanupError::Rules)
}
