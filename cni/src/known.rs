// SPDX-License-Identifier: Apache-2.0
//! Which pods' addresses the rules of this node know: told by who writes rules, waited for by who
//! starts pods. Rules that drop what they don't know lose the first packet of a pod that is faster
//! than they are, and TCP tries again a second later.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Cheap to clone; all clones are the same. At first nobody judges, and nobody waits.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<watch::Sender<Option<BTreeSet<IpAddr>>>>);

impl Known {
    /// The rules in the kernel know these addresses, and no others.
    pub fn tell(&self, addresses: &BTreeSet<IpAddr>) {
        self.0.send_if_modified(|known| {
            let changed = known.as_ref() != Some(addresses);
            if changed {
                *known = Some(addresses.clone());
            }
            changed
        });
    }

    /// Nobody says any more what the rules know.
    pub fn nobody_tells(&self) {
        self.0.send_replace(None);
    }

    /// Waits until all these addresses are known, or nobody tells. False: they are not within
    /// `patience`. Cancel-safe.
    pub async fn wait(&self, addresses: &[IpAddr], patience: Duration) -> bool {
        let mut told = self.0.subscribe();
        let all = told.wait_for(|known| {
            let Some(known) = known else { return true };
            addresses.iter().all(|address| known.contains(address))
        });
        tokio::time::timeout(patience, all).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn one_waits_until_all_addresses_are_known() {
        let known = Known::default();
        let ips =
            ["198.51.100.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
        assert!(known.wait(&ips, LONG).await, "nobody judges");
        known.tell(&BTreeSet::from([ips[0]]));
        assert!(!known.wait(&ips, SHORT).await);
        assert!(known.wait(&ips[..1], LONG).await);
        let waiting = known.clone();
        let waits = tokio::spawn(async move { waiting.wait(&ips, LONG).await });
        known.tell(&BTreeSet::from(ips));
        assert!(waits.await.expect("it ends"));
        known.nobody_tells();
        assert!(
            known
                .wait(&["198.51.100.9".parse().expect("an address")], LONG)
                .await
        );
    }
}
