// SPDX-License-Identifier: Apache-2.0
//! The figures of ListPodSandboxMetrics: cAdvisor's names, labels and units, as CRI-O has them. Pure.
//!
//! A kubelet with `PodAndContainerStatsFromCRI` serves them at `/metrics/cadvisor` as they are. CRI
//! carries whole numbers only, so seconds are cut off (api.proto, `Metric.value`).

mod container;
mod descriptors;
mod network;

pub(crate) use container::{Disk, Processes, Seen, of_container};
pub(crate) use descriptors::all as descriptors;
pub(crate) use network::of_sandbox;

use crate::metrics::descriptors::Row;
use crate::v1;

/// The labels that every metric has: id, image, namespace, pod, container.
pub(crate) const BASE_LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

/// Collects the metrics of one object.
struct Collector {
    labels: [String; 5],
    timestamp: i64,
    metrics: Vec<v1::Metric>,
}

impl Collector {
    fn new(labels: [String; 5], timestamp: i64) -> Self {
        Self {
            labels,
            timestamp,
            metrics: Vec::new(),
        }
    }

    fn add(&mut self, row: &Row, value: u64) {
        self.add_with(row, &[], value);
    }

    /// `extra` are the values of the row's own labels, in their order.
    fn add_with(&mut self, row: &Row, extra: &[&str], value: u64) {
        debug_assert_eq!(row.labels.len(), extra.len(), "{}", row.name);
        let base = self.labels.iter().cloned();
        self.metrics.push(v1::Metric {
            name: row.name.to_owned(),
            timestamp: self.timestamp,
            metric_type: row.kind as i32,
            label_values: base.chain(extra.iter().map(|l| (*l).to_owned())).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}
