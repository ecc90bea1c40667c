// SPDX-License-Identifier: Apache-2.0
//! Metrics of a pod: those of its network, which its containers share.

use super::{Collector, descriptors as d};
use crate::cgroup::InterfaceStats;
use crate::v1;

/// `id`, `namespace` and `name` are the sandbox's. The container label is `POD`, as cAdvisor has it.
pub(crate) fn of_sandbox(
    [id, namespace, name]: [&str; 3],
    now: i64,
    interfaces: &[InterfaceStats],
) -> Vec<v1::Metric> {
    let labels = [id, "", namespace, name, "POD"].map(str::to_owned);
    let mut metrics = Collector::new(labels, now);
    for one in interfaces {
        let at = [one.name.as_str()];
        metrics.add_with(&d::RECEIVE_BYTES, &at, one.rx_bytes);
        metrics.add_with(&d::RECEIVE_PACKETS, &at, one.rx_packets);
        metrics.add_with(&d::RECEIVE_DROPPED, &at, one.rx_dropped);
        metrics.add_with(&d::RECEIVE_ERRORS, &at, one.rx_errors);
        metrics.add_with(&d::TRANSMIT_BYTES, &at, one.tx_bytes);
        metrics.add_with(&d::TRANSMIT_PACKETS, &at, one.tx_packets);
        metrics.add_with(&d::TRANSMIT_DROPPED, &at, one.tx_dropped);
        metrics.add_with(&d::TRANSMIT_ERRORS, &at, one.tx_errors);
    }
    metrics.metrics
}
