// SPDX-License-Identifier: Apache-2.0
//! Counters with kube-proxy's names, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::histogram::{Histogram, short_buckets};

/// Label values, in the order of every pair in here.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// To five minutes, as the scalability objective for network programming counts.
fn long_buckets() -> Vec<f64> {
    let linear =
        |start: f64, step: f64, count: u32| (0..count).map(move |n| start + step * f64::from(n));
    [0.0]
        .into_iter()
        .chain(linear(0.25, 0.25, 2))
        .chain(linear(1.0, 1.0, 59))
        .chain(linear(60.0, 5.0, 12))
        .chain(linear(120.0, 30.0, 7))
        .collect()
}

#[derive(Debug)]
struct Inner {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    conntrack: Histogram,
    conntrack_deleted: [u64; 2],
    last_sync: f64,
    last_queued: f64,
    pending: [u64; 2],
    changes: [u64; 2],
    failures: u64,
    repairs: u64,
    no_local: [[u64; 2]; 2],
    probes: BTreeMap<(&'static str, u16), u64>,
}

/// All counters of a proxy.
#[derive(Debug)]
pub struct Metrics {
    /// Is the family served? Both families are written in one transaction.
    families: [bool; 2],
    inner: Mutex<Inner>,
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |d| d.as_secs_f64())
}

impl Metrics {
    /// All zero, for IPv4 and IPv6 as served.
    pub fn new(families: [bool; 2]) -> Metrics {
        Metrics {
            families,
            inner: Mutex::new(Inner {
                sync: Histogram::new(short_buckets()),
                full: Histogram::new(short_buckets()),
                partial: Histogram::new(short_buckets()),
                programming: Histogram::new(long_buckets()),
                conntrack: Histogram::new(short_buckets()),
                conntrack_deleted: [0; 2],
                last_sync: 0.0,
                last_queued: 0.0,
                pending: [0; 2],
                changes: [0; 2],
                failures: 0,
                repairs: 0,
                no_local: [[0; 2]; 2],
                probes: BTreeMap::new(),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Counters are right after any panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of Services and EndpointSlices were heard of, and wait.
    pub fn queued(&self, services: u64, slices: u64) {
        let mut inner = self.inner();
        for (kind, count) in [services, slices].into_iter().enumerate() {
            inner.pending[kind] += count;
            inner.changes[kind] += count;
        }
        inner.last_queued = now();
    }

    /// Rules were written: how long it took, whether all of them were, and how long ago the
    /// endpoints in them had changed.
    pub fn synced(&self, took: Duration, full: bool, ages: &[Duration]) {
        let mut inner = self.inner();
        let seconds = took.as_secs_f64();
        inner.sync.observe(seconds);
        if full {
            inner.full.observe(seconds);
        } else {
            inner.partial.observe(seconds);
        }
        for age in ages {
            inner.programming.observe(age.as_secs_f64());
        }
        inner.pending = [0; 2];
        inner.last_sync = now();
    }

    /// The kernel refused.
    pub fn failed(&self) {
        self.inner().failures += 1;
    }

    /// Somebody changed our table.
    pub fn repaired(&self) {
        self.inner().repairs += 1;
    }

    /// Flows were looked through, and so many forgotten.
    pub fn forgot(&self, took: Duration, flows: [u64; 2]) {
        let mut inner = self.inner();
        inner.conntrack.observe(took.as_secs_f64());
        for (total, flows) in inner.conntrack_deleted.iter_mut().zip(flows) {
            *total += flows;
        }
    }

    /// Ports whose `Local` policy finds no endpoint here, by family; internal and external.
    pub fn set_no_local(&self, counts: [[u64; 2]; 2]) {
        self.inner().no_local = counts;
    }

    /// `healthz` or `livez` was asked, and answered with a status.
    pub fn probed(&self, what: &'static str, status: u16) {
        *self.inner().probes.entry((what, status)).or_default() += 1;
    }

    /// In the text format of Prometheus.
    pub fn render(&self) -> String {
        let inner = self.inner();
        let mut page = Page {
            families: self.families,
            text: String::new(),
        };
        page.durations(&inner);
        page.changes(&inner);
        page.failures(&inner);
        for what in ["healthz", "livez"] {
            let name = format!("proxy_{what}_total");
            page.head(
                &name,
                "counter",
                &format!("Cumulative proxy {what} HTTP status"),
            );
            for ((_, status), count) in inner.probes.iter().filter(|((w, _), _)| *w == what) {
                page.line(&name, &format!("code=\"{status}\""), *count);
            }
        }
        page.text
    }
}

struct Page {
    families: [bool; 2],
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP kubeproxy_{name} [ALPHA] {help}");
        let _ = writeln!(self.text, "# TYPE kubeproxy_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let (open, close) = if labels.is_empty() {
            ("", "")
        } else {
            ("{", "}")
        };
        let _ = writeln!(self.text, "kubeproxy_{name}{open}{labels}{close} {value}");
    }

    /// The same value for each family, because one transaction serves both.
    fn by_family(&mut self, name: &str, more: &str, value: impl Fn(usize) -> f64) {
        for (index, family) in FAMILIES.iter().enumerate() {
            if self.families[index] {
                let labels = format!("ip_family=\"{family}\"{more}");
                self.line(name, &labels, value(index));
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (index, family) in FAMILIES.iter().enumerate() {
            if !self.families[index] {
                continue;
            }
            let label = format!("ip_family=\"{family}\"");
            let bucket = format!("{name}_bucket");
            for (bound, count) in histogram.buckets() {
                self.line(&bucket, &format!("{label},le=\"{bound}\""), count);
            }
            let count = histogram.count();
            self.line(&bucket, &format!("{label},le=\"+Inf\""), count);
            self.line(&format!("{name}_sum"), &label, histogram.sum());
            self.line(&format!("{name}_count"), &label, count);
        }
    }

    fn durations(&mut self, inner: &Inner) {
        for (name, help, histogram) in [
            (
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                &inner.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &inner.full,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &inner.partial,
            ),
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &inner.programming,
            ),
            (
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &inner.conntrack,
            ),
        ] {
            self.histogram(name, help, histogram);
        }
    }

    fn changes(&mut self, inner: &Inner) {
        for (kind, word) in ["service", "endpoint"].into_iter().enumerate() {
            let capital = if kind == 0 { "Service" } else { "Endpoint" };
            let pending = format!("sync_proxy_rules_{word}_changes_pending");
            self.head(
                &pending,
                "gauge",
                &format!("Pending proxy rules {capital} changes"),
            );
            self.line(&pending, "", inner.pending[kind]);
            let total = format!("sync_proxy_rules_{word}_changes_total");
            self.head(
                &total,
                "counter",
                &format!("Cumulative proxy rules {capital} changes"),
            );
            self.line(&total, "", inner.changes[kind]);
        }
        let last = "sync_proxy_rules_last_timestamp_seconds";
        self.head(
            last,
            "gauge",
            "The last time proxy rules were successfully synced",
        );
        self.by_family(last, "", |_| inner.last_sync);
        let queued = "sync_proxy_rules_last_queued_timestamp_seconds";
        self.head(
            queued,
            "gauge",
            "The last time a sync of proxy rules was queued",
        );
        self.by_family(queued, "", |_| inner.last_queued);
    }

    #[expect(clippy::cast_precision_loss, reason = "counters stay far below 2^52")]
    fn failures(&mut self, inner: &Inner) {
        let failed = "sync_proxy_rules_nftables_sync_failures_total";
        self.head(failed, "counter", "Cumulative proxy nftables sync failures");
        self.by_family(failed, "", |_| inner.failures as f64);
        let repaired = "nftables_foreign_changes_total";
        self.head(
            repaired,
            "counter",
            "Times that somebody else changed the table, and it was replaced",
        );
        self.line(repaired, "", inner.repairs);
        let flows = "conntrack_reconciler_deleted_entries_total";
        self.head(
            flows,
            "counter",
            "Cumulative conntrack flows deleted by conntrack reconciler",
        );
        self.by_family(flows, "", |family| inner.conntrack_deleted[family] as f64);
        let none = "sync_proxy_rules_no_local_endpoints_total";
        self.head(
            none,
            "gauge",
            "Number of services with a Local traffic policy and no endpoints",
        );
        for (policy, name) in ["internal", "external"].into_iter().enumerate() {
            let label = format!(",traffic_policy=\"{name}\"");
            self.by_family(none, &label, |family| inner.no_local[family][policy] as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_kube_proxys_names_and_buckets() {
        let metrics = Metrics::new([true, false]);
        metrics.queued(2, 3);
        metrics.synced(Duration::from_micros(1500), true, &[Duration::from_secs(2)]);
        metrics.failed();
        metrics.probed("healthz", 200);
        metrics.set_no_local([[4, 5], [6, 7]]);
        let page = metrics.render();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"1\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"2\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 5",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(!page.contains("IPv6"));
        assert_eq!(long_buckets().len(), 81);
    }
}
