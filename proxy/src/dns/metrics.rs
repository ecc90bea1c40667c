// SPDX-License-Identifier: Apache-2.0
//! Counters with CoreDNS's names, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::stored::Kind;

/// Types that have a counter of their own; the last one is for the rest, as in CoreDNS.
const TYPES: [&str; 12] = [
    "A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT", "ANY", "other",
];
/// Response codes, likewise.
const CODES: [&str; 7] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other",
];
/// CoreDNS's buckets begin here and double; in seconds.
const BUCKET: f64 = 0.000_25;
const BUCKETS: usize = 16;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Who knew the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The cluster's zone, or rules about questions.
    Zone,
    /// The cache.
    Cache,
    /// The node's resolvers.
    Forward,
}

const SOURCES: [&str; 3] = ["kubernetes", "cache", "forward"];

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    count: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let mut bound = BUCKET;
        let seconds = took.as_secs_f64();
        for count in &self.counts {
            if seconds <= bound {
                // Summed up when it is written down.
                count.fetch_add(1, Ordering::Relaxed);
                break;
            }
            bound *= 2.0;
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut bound = BUCKET;
        let mut total = 0;
        for count in &self.counts {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
            bound *= 2.0;
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}");
        let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
    }
}

/// All counters of a server. Those of each question are atomic, so nobody waits.
#[derive(Debug)]
pub(crate) struct Metrics {
    server: String,
    zone: String,
    /// By transport, family and type; for the zone and for the rest.
    requests: [[[[AtomicU64; TYPES.len()]; 2]; 2]; 2],
    /// By code and who knew.
    responses: [[AtomicU64; SOURCES.len()]; CODES.len()],
    durations: [Histogram; 2],
    hits: [AtomicU64; 2],
    misses: AtomicU64,
    rejects: AtomicU64,
    refused: AtomicU64,
    upstreams: Mutex<BTreeMap<(SocketAddr, &'static str), Histogram>>,
}

fn type_index(kind: RecordType) -> usize {
    let name = match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::ANY => "ANY",
        _ => "other",
    };
    let known = TYPES.iter().position(|known| *known == name);
    known.unwrap_or(TYPES.len() - 1)
}

fn code_index(code: ResponseCode) -> usize {
    match code {
        ResponseCode::NoError => 0,
        ResponseCode::FormErr => 1,
        ResponseCode::ServFail => 2,
        ResponseCode::NXDomain => 3,
        ResponseCode::NotImp => 4,
        ResponseCode::Refused => 5,
        _ => 6,
    }
}

/// What was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) transport: Transport,
    pub(crate) ipv4: bool,
    pub(crate) kind: RecordType,
    /// Is the name the cluster's?
    pub(crate) own: bool,
}

impl Metrics {
    pub(crate) fn new(server: &str, zone: &str) -> Metrics {
        Metrics {
            server: server.to_owned(),
            zone: zone.to_owned(),
            requests: Default::default(),
            responses: Default::default(),
            durations: Default::default(),
            hits: Default::default(),
            misses: AtomicU64::new(0),
            rejects: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            upstreams: Mutex::default(),
        }
    }

    fn upstreams(&self) -> MutexGuard<'_, BTreeMap<(SocketAddr, &'static str), Histogram>> {
        self.upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A question came.
    pub(crate) fn request(&self, asked: Asked) {
        let transport = usize::from(asked.transport == Transport::Tcp);
        let family = &self.requests[usize::from(!asked.own)][transport][usize::from(!asked.ipv4)];
        family[type_index(asked.kind)].fetch_add(1, Ordering::Relaxed);
    }

    /// It was answered.
    pub(crate) fn response(&self, own: bool, code: ResponseCode, source: Source, took: Duration) {
        self.responses[code_index(code)][source as usize].fetch_add(1, Ordering::Relaxed);
        self.durations[usize::from(!own)].observe(took);
    }

    /// A packet was no question.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The cache was asked, and had an answer of a kind.
    pub(crate) fn cache_asked(&self, found: Option<Kind>) {
        match found {
            Some(kind) => &self.hits[usize::from(kind != Kind::Success)],
            None => &self.misses,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    /// Too many questions were under way.
    pub(crate) fn rejected(&self) {
        self.rejects.fetch_add(1, Ordering::Relaxed);
    }

    /// A resolver was asked; no code: it did not answer.
    pub(crate) fn asked(&self, server: SocketAddr, code: Option<ResponseCode>, took: Duration) {
        let code = code.map_or("TIMEOUT", |code| CODES[code_index(code)]);
        let mut upstreams = self.upstreams();
        // A resolv.conf that changes all the time must not make this grow.
        if upstreams.len() < 256 || upstreams.contains_key(&(server, code)) {
            upstreams.entry((server, code)).or_default().observe(took);
        }
    }

    /// In the text format of Prometheus, with how many answers are cached.
    pub(crate) fn render(&self, cached: [usize; 2]) -> String {
        let mut text = String::new();
        self.write_requests(&mut text);
        self.write_cache(&mut text, cached);
        self.write_forward(&mut text);
        text
    }

    fn labels(&self, own: bool) -> String {
        let zone = if own { &self.zone } else { "." };
        format!("server=\"{}\",zone=\"{zone}\",view=\"\"", self.server)
    }

    fn write_requests(&self, text: &mut String) {
        let name = "coredns_dns_requests_total";
        let help = "Counter of DNS requests made per zone, protocol and family.";
        head(text, name, "counter", help);
        for (own, zone) in [true, false].into_iter().zip(&self.requests) {
            let labels = self.labels(own);
            for (transport, families) in ["udp", "tcp"].into_iter().zip(zone) {
                for (family, types) in ["1", "2"].into_iter().zip(families) {
                    for (kind, count) in TYPES.iter().zip(types) {
                        let more =
                            format!("proto=\"{transport}\",family=\"{family}\",type=\"{kind}\"");
                        line(text, name, &format!("{labels},{more}"), count);
                    }
                }
            }
        }
        let name = "coredns_dns_request_duration_seconds";
        let help = "Histogram of the time (in seconds) each request took per zone.";
        head(text, name, "histogram", help);
        for (own, histogram) in [true, false].into_iter().zip(&self.durations) {
            histogram.write(text, name, &self.labels(own));
        }
        let name = "coredns_dns_responses_total";
        head(text, name, "counter", "Counter of response status codes.");
        for (code, sources) in CODES.iter().zip(&self.responses) {
            for (source, count) in SOURCES.iter().zip(sources) {
                let labels = self.labels(*source == "kubernetes");
                line(
                    text,
                    name,
                    &format!("{labels},rcode=\"{code}\",plugin=\"{source}\""),
                    count,
                );
            }
        }
        let name = "podwright_dns_packets_refused_total";
        head(text, name, "counter", "Packets that were no question.");
        line(
            text,
            name,
            &format!("server=\"{}\"", self.server),
            &self.refused,
        );
    }

    fn write_cache(&self, text: &mut String, cached: [usize; 2]) {
        let labels = format!("server=\"{}\",zones=\".\",view=\"\"", self.server);
        let kinds = ["success", "denial"];
        let name = "coredns_cache_entries";
        head(text, name, "gauge", "The number of elements in the cache.");
        for (kind, count) in kinds.into_iter().zip(cached) {
            let _ = writeln!(text, "{name}{{{labels},type=\"{kind}\"}} {count}");
        }
        let name = "coredns_cache_hits_total";
        head(text, name, "counter", "The count of cache hits.");
        for (kind, count) in kinds.into_iter().zip(&self.hits) {
            line(text, name, &format!("{labels},type=\"{kind}\""), count);
        }
        let hits: u64 = self.hits.iter().map(|h| h.load(Ordering::Relaxed)).sum();
        let misses = self.misses.load(Ordering::Relaxed);
        for (name, help, count) in [
            (
                "coredns_cache_requests_total",
                "The count of cache requests.",
                hits + misses,
            ),
            (
                "coredns_cache_misses_total",
                "The count of cache misses.",
                misses,
            ),
        ] {
            head(text, name, "counter", help);
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }

    fn write_forward(&self, text: &mut String) {
        let name = "coredns_forward_max_concurrent_rejects_total";
        let help = "Counter of the number of queries rejected because the concurrent queries were at maximum.";
        head(text, name, "counter", help);
        let _ = writeln!(text, "{name} {}", self.rejects.load(Ordering::Relaxed));
        let name = "coredns_proxy_request_duration_seconds";
        let help = "Histogram of the time each proxied request took.";
        head(text, name, "histogram", help);
        for ((server, code), histogram) in self.upstreams().iter() {
            let labels = format!("proxy_name=\"forward\",rcode=\"{code}\",to=\"{server}\"");
            histogram.write(text, name, &labels);
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A counter that has counted something.
fn line(text: &mut String, name: &str, labels: &str, count: &AtomicU64) {
    let count = count.load(Ordering::Relaxed);
    if count > 0 {
        let _ = writeln!(text, "{name}{{{labels}}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_corednss_names_and_labels() {
        let metrics = Metrics::new("dns://10.43.0.10:53", "cluster.local.");
        metrics.request(Asked {
            transport: Transport::Udp,
            ipv4: true,
            kind: RecordType::A,
            own: true,
        });
        let took = Duration::from_micros(300);
        metrics.response(true, ResponseCode::NXDomain, Source::Zone, took);
        metrics.cache_asked(Some(Kind::Success));
        metrics.cache_asked(None);
        let server = SocketAddr::from(([192, 0, 2, 1], 53));
        metrics.asked(server, None, Duration::from_secs(2));
        let page = metrics.render([3, 1]);
        let own = "server=\"dns://10.43.0.10:53\",zone=\"cluster.local.\",view=\"\"";
        for expected in [
            format!("coredns_dns_requests_total{{{own},proto=\"udp\",family=\"1\",type=\"A\"}} 1"),
            format!(
                "coredns_dns_responses_total{{{own},rcode=\"NXDOMAIN\",plugin=\"kubernetes\"}} 1"
            ),
            format!("coredns_dns_request_duration_seconds_bucket{{{own},le=\"0.00025\"}} 0"),
            format!("coredns_dns_request_duration_seconds_bucket{{{own},le=\"0.0005\"}} 1"),
            format!("coredns_dns_request_duration_seconds_bucket{{{own},le=\"8.192\"}} 1"),
            "type=\"success\"} 3".to_owned(),
            "coredns_cache_requests_total{server=\"dns://10.43.0.10:53\",zones=\".\",view=\"\"} 2"
                .to_owned(),
            "rcode=\"TIMEOUT\",to=\"192.0.2.1:53\"} 1".to_owned(),
        ] {
            assert!(page.contains(&expected), "no {expected} in\n{page}");
        }
    }
}
