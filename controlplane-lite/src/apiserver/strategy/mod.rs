// SPDX-License-Identifier: Apache-2.0
//! What single kinds need beyond the generic engine: defaults, validation, what a client may not
//! set. All of it is plain functions over JSON: an object in, an object or errors out.

mod cluster;
mod container;
mod data;
mod events;
pub(crate) mod field;
mod labels;
pub(crate) mod names;
mod network_policy;
mod pod;
mod pod_update;
mod quantity;
mod runtime_class;
mod service;
pub(crate) mod service_health;
pub(crate) mod service_ips;
mod workload;

pub(crate) use self::{
    cluster::{NAMESPACE, NODE},
    data::{CONFIG_MAP, SECRET},
    events::EVENTS_VIEW,
    network_policy::NETWORK_POLICY,
    pod::POD,
    runtime_class::{RUNTIME_CLASS, admit as admit_runtime_class},
    service::{ENDPOINT_SLICE, ENDPOINTS, SERVICE},
    workload::{DEPLOYMENT, REPLICA_SET},
};
