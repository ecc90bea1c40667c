// SPDX-License-Identifier: Apache-2.0
//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every quarter of its duration.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;

/// Where the API server keeps node leases.
const NAMESPACE: &str = "kube-node-lease";
/// How long one request may take: well under the default lease.
const DEADLINE: Duration = Duration::from_secs(10);

/// A request with a deadline, which counts as an unreachable service.
pub(super) async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

/// Renews until `stop`. Failures are retried quickly, because a missed lease costs the node.
pub(super) async fn run(
    client: Client,
    node: String,
    node_uid: String,
    duration: Duration,
    stop: CancellationToken,
) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut latest: Option<Lease> = None;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
    loop {
        let wanted = renewed(latest.take(), &node, &node_uid, duration, Timestamp::now());
        let wait = match write(&leases, &node, &wanted).await {
            Ok(lease) => {
                latest = Some(lease);
                backoff.reset();
                duration / 4
            }
            Err(error) => {
                let wait = backoff.next();
                tracing::warn!(
                    node,
                    error = &error as &dyn std::error::Error,
                    "lease not renewed"
                );
                // Somebody else wrote it, or it is gone: look at it afresh.
                latest = within(leases.get_opt(&node)).await.ok().flatten();
                wait
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn write(leases: &Api<Lease>, name: &str, lease: &Lease) -> Result<Lease, kube::Error> {
    let params = PostParams::default();
    if lease.metadata.resource_version.is_some() {
        return within(leases.replace(name, &params, lease)).await;
    }
    within(leases.create(&params, lease)).await
}

/// The lease to write now: the known one with a new time, or a first one that the node owns.
fn renewed(
    latest: Option<Lease>,
    node: &str,
    node_uid: &str,
    duration: Duration,
    now: Timestamp,
) -> Lease {
    let mut lease = latest.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_owned());
    spec.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_lease_is_owned_by_the_node_and_a_renewal_keeps_the_rest() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let forty = Duration::from_secs(40);
        let mut first = renewed(None, "n1", "u", forty, at(1));
        let owners = first.metadata.owner_references.as_ref().expect("owned");
        assert_eq!(
            (owners[0].kind.as_str(), owners[0].uid.as_str()),
            ("Node", "u")
        );
        let spec = first.spec.as_ref().expect("a spec");
        assert_eq!(spec.lease_duration_seconds, Some(40));
        assert_eq!(spec.holder_identity.as_deref(), Some("n1"));
        first.metadata.resource_version = Some("7".into());
        let second = renewed(Some(first), "n1", "other", forty, at(11));
        assert_eq!(second.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(
            second.spec.and_then(|s| s.renew_time).map(|t| t.0),
            Some(at(11))
        );
    }
}
