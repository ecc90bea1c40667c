// SPDX-License-Identifier: Apache-2.0
//! Counters of NetworkPolicies. No names are agreed on between implementations, so these are ours.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::state::Sizes;
use crate::histogram::{Histogram, short_buckets};

#[derive(Debug)]
struct Inner {
    programming: Histogram,
    sync: Histogram,
    failures: u64,
    repairs: u64,
    sizes: Sizes,
}

/// All counters of the component. Cloned handles are shared in an `Arc`.
#[derive(Debug)]
pub struct Metrics(Mutex<Inner>);

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics(Mutex::new(Inner {
            programming: Histogram::new(short_buckets()),
            sync: Histogram::new(short_buckets()),
            failures: 0,
            repairs: 0,
            sizes: Sizes::default(),
        }))
    }
}

impl Metrics {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Counters are right after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rules were written: how long it took, how long ago the first of the changes was heard of, and
    /// what there is now.
    pub(super) fn synced(&self, took: Duration, waited: Option<Duration>, sizes: Sizes) {
        let mut inner = self.inner();
        inner.sync.observe(took.as_secs_f64());
        if let Some(waited) = waited {
            inner.programming.observe(waited.as_secs_f64());
        }
        inner.sizes = sizes;
    }

    /// The kernel refused.
    pub(super) fn failed(&self) {
        self.inner().failures += 1;
    }

    /// Somebody else changed the table.
    pub(super) fn repaired(&self) {
        self.inner().repairs += 1;
    }

    /// In the text format of Prometheus.
    pub fn render(&self) -> String {
        let inner = self.inner();
        let mut page = Page(String::new());
        page.histogram(
            "programming_duration_seconds",
            "From hearing of a change to rules that follow it",
            &inner.programming,
        );
        page.histogram(
            "sync_duration_seconds",
            "Time to work out and write rules",
            &inner.sync,
        );
        let sizes = &inner.sizes;
        page.number(
            "policies",
            "gauge",
            "NetworkPolicies of the cluster",
            sizes.policies,
        );
        page.number(
            "pods",
            "gauge",
            "Pods of this node that rules know",
            sizes.pods,
        );
        page.number(
            "restricted_pods",
            "gauge",
            "Pods of this node that policies select",
            sizes.restricted,
        );
        page.head("elements", "gauge", "Elements of the table's sets and maps");
        for (set, count) in &sizes.elements {
            page.line("elements", &format!("{{set=\"{set}\"}}"), *count);
        }
        page.number(
            "sync_failures_total",
            "counter",
            "Times that the kernel refused rules",
            inner.failures,
        );
        page.number(
            "foreign_changes_total",
            "counter",
            "Times that somebody else changed the table, and it was replaced",
            inner.repairs,
        );
        page.0
    }
}

/// Text below names that begin alike.
struct Page(String);

const PREFIX: &str = "podwright_network_policy";

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {PREFIX}_{name} {help}");
        let _ = writeln!(self.0, "# TYPE {PREFIX}_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{PREFIX}_{name}{labels} {value}");
    }

    fn number(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, count) in histogram.buckets() {
            self.line(
                &format!("{name}_bucket"),
                &format!("{{le=\"{bound}\"}}"),
                count,
            );
        }
        let count = histogram.count();
        self.line(&format!("{name}_bucket"), "{le=\"+Inf\"}", count);
        self.line(&format!("{name}_sum"), "", histogram.sum());
        self.line(&format!("{name}_count"), "", count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_of_latency_and_sizes() {
        let metrics = Metrics::default();
        let sizes = Sizes {
            policies: 3,
            pods: 2,
            restricted: 1,
            elements: vec![("pods4".to_owned(), 2)],
        };
        let millis = Duration::from_millis;
        metrics.synced(millis(3), Some(millis(9)), sizes);
        metrics.failed();
        let page = metrics.render();
        for line in [
            "podwright_network_policy_programming_duration_seconds_bucket{le=\"0.008\"} 0",
            "podwright_network_policy_programming_duration_seconds_bucket{le=\"0.016\"} 1",
            "podwright_network_policy_sync_duration_seconds_count 1",
            "podwright_network_policy_policies 3",
            "podwright_network_policy_restricted_pods 1",
            "podwright_network_policy_elements{set=\"pods4\"} 2",
            "podwright_network_policy_sync_failures_total 1",
            "podwright_network_policy_foreign_changes_total 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
