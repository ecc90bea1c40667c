// SPDX-License-Identifier: Apache-2.0
//! The kinds that a manifest may hold.

use k8s_openapi::api::{apps, coordination, core, discovery, networking, node};
use k8s_openapi::{Resource, serde::de::DeserializeOwned};
use serde_json::Value;

use super::strict::{self, Fault};

type Check = fn(&Value) -> Vec<Fault>;

fn row<K: Resource + DeserializeOwned>() -> (&'static str, &'static str, Check) {
    (K::API_VERSION, K::KIND, strict::faults::<K>)
}

/// The faults of an object of a known kind; `None` if there is no such kind.
pub(crate) fn check(api_version: &str, kind: &str, value: &Value) -> Option<Vec<Fault>> {
    let known = [
        row::<core::v1::Pod>(),
        row::<core::v1::Service>(),
        row::<core::v1::ConfigMap>(),
        row::<core::v1::Secret>(),
        row::<core::v1::Namespace>(),
        row::<core::v1::Node>(),
        row::<core::v1::ServiceAccount>(),
        row::<core::v1::Endpoints>(),
        row::<core::v1::Event>(),
        row::<apps::v1::Deployment>(),
        row::<apps::v1::ReplicaSet>(),
        row::<coordination::v1::Lease>(),
        row::<discovery::v1::EndpointSlice>(),
        row::<networking::v1::NetworkPolicy>(),
        row::<node::v1::RuntimeClass>(),
    ];
    known
        .iter()
        .find(|(version, name, _)| *version == api_version && *name == kind)
        .map(|(_, _, check)| check(value))
}
