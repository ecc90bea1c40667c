// SPDX-License-Identifier: Apache-2.0
//! Name resolution without NSS: a static glibc program can't load its modules, so names are looked
//! up by hickory-resolver, from `/etc/hosts` and the servers of `/etc/resolv.conf`.
//!
//! Addresses never come here, they are connected to as they are. Without a readable `resolv.conf`
//! resolution fails and says so; no public server is asked instead.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

#[derive(Clone, Default)]
pub(super) struct SystemResolver {
    /// Made at the first name, so that pulls by address need no configuration at all.
    resolver: Arc<OnceCell<TokioResolver>>,
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let cell = self.resolver.clone();
        Box::pin(async move {
            // RFC 6761, section 6.3: localhost is this machine, whatever a server says.
            if name
                .as_str()
                .trim_end_matches('.')
                .eq_ignore_ascii_case("localhost")
            {
                let both: [SocketAddr; 2] = [
                    (std::net::Ipv4Addr::LOCALHOST, 0).into(),
                    (std::net::Ipv6Addr::LOCALHOST, 0).into(),
                ];
                let addresses: Addrs = Box::new(both.into_iter());
                return Ok(addresses);
            }
            let resolver = cell
                .get_or_try_init(async || TokioResolver::builder_tokio()?.build())
                .await?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| (ip, 0).into()).collect();
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}
