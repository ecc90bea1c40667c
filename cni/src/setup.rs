// SPDX-License-Identifier: Apache-2.0
//! The pod network as podwright sets it up by itself, and its removal.

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

/// The configuration list that podwright writes when the administrator has given none: a bridge
/// with host-local addresses out of `pod_cidr`, masquerade of what leaves `cluster_cidr`, host
/// ports, and a loopback. The rules live in table `<nft_table>-cni`.
pub fn default_conflist(
    bridge: &str,
    pod_cidr: &str,
    cluster_cidr: &str,
    nft_table: &str,
) -> String {
    let table = format!("{nft_table}-cni");
    let any = if pod_cidr.contains(':') {
        "::/0"
    } else {
        "0.0.0.0/0"
    };
    let list = serde_json::json!({
        "cniVersion": "1.1.0",
        "name": "podwright",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "isDefaultGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pod_cidr }]],
                    "routes": [{ "dst": any }]
                },
                "podwright": { "table": table, "routed": true, "clusterCIDRs": [cluster_cidr] }
            },
            {
                "type": "portmap",
                "capabilities": { "portMappings": true },
                "podwright": { "table": table }
            },
            { "type": "loopback" }
        ]
    });
    format!("{list:#}\n")
}

/// Remove the bridge (and with it every pod's link) and the table `<nft_table>-cni` from the
/// network namespace of the calling thread. Idempotent. Blocks for some milliseconds.
pub fn cleanup(bridge: &str, nft_table: &str) -> Result<(), CleanupError> {
    let mut route = Route::open().map_err(CleanupError::Socket)?;
    if let Some(link) = route.link(bridge).map_err(CleanupError::Link)? {
        route.delete(link.index).map_err(CleanupError::Link)?;
    }
    let mut socket = nft::Socket::open().map_err(CleanupError::Socket)?;
    let table = format!("{nft_table}-cni");
    socket
        .delete_table(Family::Inet, &table)
        .map_err(CleanupError::Rules)
}
