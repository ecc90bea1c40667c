// SPDX-License-Identifier: Apache-2.0
//! `/stats/summary`, `/metrics` and `/metrics/resource` from what the runtime and the kernel say.
//! Pure but for [`node_cpu`]; what isn't measured is left out rather than invented.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::cri_v1::{
    self, ContainerStats, CpuUsage, MemoryUsage, NetworkUsage, PodSandboxStats, UInt64Value,
};
use crate::node::{Filesystem, Room};

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
/// proc_stat(5) counts in USER_HZ, which is 100 on every Linux that runs containers.
const NANOS_PER_TICK: u64 = 10_000_000;

/// The node's own measurements.
pub(super) struct NodeSample {
    pub(super) room: Room,
    pub(super) cpu_nanos: u64,
    /// Since an earlier sample, when there was one.
    pub(super) nano_cores: Option<u64>,
    pub(super) boot: Timestamp,
    pub(super) now: Timestamp,
}

/// Busy time of all CPUs since the machine started.
pub(super) fn node_cpu(root: &Path) -> std::io::Result<u64> {
    let stat = std::fs::read_to_string(root.join("proc/stat"))?;
    Ok(busy_nanos(&stat))
}

/// When the machine started.
pub(super) fn boot_time(root: &Path) -> std::io::Result<Timestamp> {
    let stat = std::fs::read_to_string(root.join("proc/stat"))?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds = seconds.and_then(|text| text.trim().parse().ok());
    Ok(Timestamp::from_second(seconds.unwrap_or_default()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Everything of proc_stat(5)'s first line but idle and iowait; guest time is in user time.
fn busy_nanos(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks = line.unwrap_or_default().split_whitespace();
    let ticks = ticks.map(|text| text.parse::<u64>().unwrap_or_default());
    let busy: u64 = ticks
        .take(8)
        .enumerate()
        .filter(|(field, _)| *field != 3 && *field != 4)
        .map(|(_, ticks)| ticks)
        .sum();
    busy.saturating_mul(NANOS_PER_TICK)
}

/// The average between two samples.
pub(super) fn nano_cores(before: u64, now: u64, elapsed: Duration) -> Option<u64> {
    let elapsed = elapsed.as_nanos();
    let used = u128::from(now.checked_sub(before)?);
    u64::try_from((used * 1_000_000_000).checked_div(elapsed)?).ok()
}

/// Containers of a runtime without pod stats, put into pods by their labels.
pub(super) fn group(containers: Vec<ContainerStats>) -> Vec<PodSandboxStats> {
    let mut pods: BTreeMap<String, PodSandboxStats> = BTreeMap::new();
    for container in containers {
        let labels = container.attributes.as_ref().map(|a| a.labels.clone());
        let labels = labels.unwrap_or_default();
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let pod = pods
            .entry(label(POD_UID))
            .or_insert_with(|| PodSandboxStats {
                attributes: Some(cri_v1::PodSandboxAttributes {
                    metadata: Some(cri_v1::PodSandboxMetadata {
                        name: label(POD_NAME),
                        namespace: label(POD_NAMESPACE),
                        uid: label(POD_UID),
                        attempt: 0,
                    }),
                    ..cri_v1::PodSandboxAttributes::default()
                }),
                linux: Some(cri_v1::LinuxPodSandboxStats::default()),
                windows: None,
            });
        if let Some(linux) = &mut pod.linux {
            linux.containers.push(container);
        }
    }
    pods.into_values().collect()
}

/// The document of `stats.k8s.io/v1alpha1`.
pub(super) fn summary(
    node_name: &str,
    node: &NodeSample,
    pods: &[PodSandboxStats],
    only_cpu_and_memory: bool,
) -> Value {
    let room = &node.room;
    let used = room
        .memory_bytes
        .saturating_sub(room.memory_available_bytes);
    let time = node.now.to_string();
    let mut cpu = json!({"time": time, "usageCoreNanoSeconds": node.cpu_nanos});
    if let Some(cores) = node.nano_cores {
        cpu["usageNanoCores"] = json!(cores);
    }
    let mut document = json!({
        "nodeName": node_name,
        "startTime": node.boot.to_string(),
        "cpu": cpu,
        "memory": {"time": time, "availableBytes": room.memory_available_bytes,
            "usageBytes": used, "workingSetBytes": used},
    });
    if !only_cpu_and_memory {
        document["fs"] = filesystem(&time, &room.nodefs);
        document["runtime"] = json!({"imageFs": filesystem(&time, &room.imagefs)});
        document["rlimit"] =
            json!({"time": time, "maxpid": room.pids_max, "curproc": room.pids_used});
    }
    let pods: Vec<Value> = pods.iter().map(|p| pod(p, only_cpu_and_memory)).collect();
    json!({"node": document, "pods": pods})
}

fn filesystem(time: &str, fs: &Filesystem) -> Value {
    json!({"time": time, "availableBytes": fs.available_bytes, "capacityBytes": fs.capacity_bytes,
        "usedBytes": fs.used_bytes, "inodesFree": fs.inodes_free, "inodes": fs.inodes,
        "inodesUsed": fs.inodes.saturating_sub(fs.inodes_free)})
}

fn pod(stats: &PodSandboxStats, only_cpu_and_memory: bool) -> Value {
    let metadata = stats.attributes.as_ref().and_then(|a| a.metadata.clone());
    let metadata = metadata.unwrap_or_default();
    let linux = stats.linux.clone().unwrap_or_default();
    let containers: Vec<Value> = linux
        .containers
        .iter()
        .map(|c| container(c, only_cpu_and_memory))
        .collect();
    let mut pod = Map::new();
    pod.insert(
        "podRef".to_owned(),
        json!({"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid}),
    );
    pod.insert("containers".to_owned(), Value::Array(containers));
    insert(&mut pod, "cpu", linux.cpu.as_ref().map(cpu));
    insert(&mut pod, "memory", linux.memory.as_ref().map(memory));
    if !only_cpu_and_memory {
        insert(&mut pod, "network", linux.network.as_ref().map(network));
        let count = linux.process.as_ref().and_then(|p| value(&p.process_count));
        let count = count.map(|count| json!({"process_count": count}));
        insert(&mut pod, "process_stats", count);
    }
    Value::Object(pod)
}

fn container(stats: &ContainerStats, only_cpu_and_memory: bool) -> Value {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(container_name(stats)));
    insert(&mut out, "cpu", stats.cpu.as_ref().map(cpu));
    insert(&mut out, "memory", stats.memory.as_ref().map(memory));
    if !only_cpu_and_memory {
        let layer = stats.writable_layer.as_ref().map(|layer| {
            let mut fs = timed(layer.timestamp);
            put(&mut fs, "usedBytes", &layer.used_bytes);
            put(&mut fs, "inodesUsed", &layer.inodes_used);
            Value::Object(fs)
        });
        insert(&mut out, "rootfs", layer);
    }
    Value::Object(out)
}

fn cpu(usage: &CpuUsage) -> Value {
    let mut out = timed(usage.timestamp);
    put(&mut out, "usageNanoCores", &usage.usage_nano_cores);
    put(
        &mut out,
        "usageCoreNanoSeconds",
        &usage.usage_core_nano_seconds,
    );
    Value::Object(out)
}

fn memory(usage: &MemoryUsage) -> Value {
    let mut out = timed(usage.timestamp);
    put(&mut out, "availableBytes", &usage.available_bytes);
    put(&mut out, "usageBytes", &usage.usage_bytes);
    put(&mut out, "workingSetBytes", &usage.working_set_bytes);
    put(&mut out, "rssBytes", &usage.rss_bytes);
    put(&mut out, "pageFaults", &usage.page_faults);
    put(&mut out, "majorPageFaults", &usage.major_page_faults);
    Value::Object(out)
}

fn network(usage: &NetworkUsage) -> Value {
    let mut out = timed(usage.timestamp);
    let default = usage.default_interface.as_ref();
    let interface = |i: &cri_v1::NetworkInterfaceUsage| {
        let mut out = Map::new();
        out.insert("name".to_owned(), json!(i.name));
        put(&mut out, "rxBytes", &i.rx_bytes);
        put(&mut out, "rxErrors", &i.rx_errors);
        put(&mut out, "txBytes", &i.tx_bytes);
        put(&mut out, "txErrors", &i.tx_errors);
        out
    };
    if let Some(default) = default {
        out.extend(interface(default));
    }
    let all = default.into_iter().chain(&usage.interfaces);
    let all = all.map(|i| Value::Object(interface(i))).collect();
    out.insert("interfaces".to_owned(), Value::Array(all));
    Value::Object(out)
}

fn timed(nanos: i64) -> Map<String, Value> {
    let time = Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH);
    Map::from_iter([("time".to_owned(), json!(time.to_string()))])
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value);
    }
}

fn put(map: &mut Map<String, Value>, key: &str, number: &Option<UInt64Value>) {
    insert(map, key, value(number).map(Value::from));
}

fn value(number: &Option<UInt64Value>) -> Option<u64> {
    number.as_ref().map(|number| number.value)
}

fn container_name(stats: &ContainerStats) -> &str {
    let metadata = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref());
    metadata.map(|m| m.name.as_str()).unwrap_or_default()
}

/// `/metrics/resource`, with upstream's names.
pub(super) fn resource_metrics(node: &NodeSample, pods: &[PodSandboxStats]) -> String {
    let mut out = Exposition::default();
    let used =
        node.room.memory_bytes - node.room.memory_available_bytes.min(node.room.memory_bytes);
    out.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    out.sample(&[], seconds(node.cpu_nanos));
    out.family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    out.sample(&[], used.to_string());
    let all: Vec<(&PodSandboxStats, cri_v1::PodSandboxMetadata)> = pods
        .iter()
        .filter_map(|pod| Some((pod, pod.attributes.as_ref()?.metadata.clone()?)))
        .collect();
    let cpu_of = |usage: &Option<CpuUsage>| {
        let nanos = usage
            .as_ref()
            .and_then(|u| value(&u.usage_core_nano_seconds));
        nanos.map(seconds)
    };
    let memory_of = |usage: &Option<MemoryUsage>| {
        let bytes = usage.as_ref().and_then(|u| value(&u.working_set_bytes));
        bytes.map(|bytes| bytes.to_string())
    };
    let mut containers =
        |name: &str, kind: &str, help: &str, of: &dyn Fn(&ContainerStats) -> Option<String>| {
            out.family(name, kind, help);
            for (pod, id) in &all {
                for container in pod.linux.iter().flat_map(|linux| &linux.containers) {
                    if let Some(value) = of(container) {
                        let labels = [
                            ("container", container_name(container)),
                            ("namespace", &id.namespace),
                            ("pod", &id.name),
                        ];
                        out.sample(&labels, value);
                    }
                }
            }
        };
    containers(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &|c| cpu_of(&c.cpu),
    );
    containers(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &|c| memory_of(&c.memory),
    );
    out.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    for (pod, id) in &all {
        if let Some(value) = pod.linux.as_ref().and_then(|linux| cpu_of(&linux.cpu)) {
            out.sample(&[("namespace", &id.namespace), ("pod", &id.name)], value);
        }
    }
    out.family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
    );
    for (pod, id) in &all {
        if let Some(value) = pod
            .linux
            .as_ref()
            .and_then(|linux| memory_of(&linux.memory))
        {
            out.sample(&[("namespace", &id.namespace), ("pod", &id.name)], value);
        }
    }
    out.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    out.sample(&[], "0".to_owned());
    out.text
}

/// `/metrics`: how much runs here.
pub(super) fn kubelet_metrics(
    node_name: &str,
    sandboxes: usize,
    states: &BTreeMap<&str, usize>,
) -> String {
    let mut out = Exposition::default();
    out.family(
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    out.sample(&[("node", node_name)], "1".to_owned());
    out.family(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
    );
    out.sample(&[], sandboxes.to_string());
    out.family(
        "kubelet_running_containers",
        "gauge",
        "Number of containers currently running",
    );
    for (state, count) in states {
        out.sample(&[("container_state", state)], count.to_string());
    }
    out.text
}

fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

/// The text format of metrics.
#[derive(Default)]
struct Exposition {
    text: String,
    name: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.name);
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: String) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u64) -> Option<UInt64Value> {
        Some(UInt64Value { value })
    }

    fn container_stats() -> ContainerStats {
        let labels = [(POD_NAME, "web"), (POD_NAMESPACE, "ns"), (POD_UID, "u")];
        ContainerStats {
            attributes: Some(cri_v1::ContainerAttributes {
                id: "id".into(),
                metadata: Some(cri_v1::ContainerMetadata {
                    name: "app".into(),
                    attempt: 0,
                }),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..cri_v1::ContainerAttributes::default()
            }),
            cpu: Some(CpuUsage {
                timestamp: 0,
                usage_core_nano_seconds: number(1_500_000_000),
                ..CpuUsage::default()
            }),
            memory: Some(MemoryUsage {
                working_set_bytes: number(42),
                ..MemoryUsage::default()
            }),
            ..ContainerStats::default()
        }
    }

    fn sample() -> NodeSample {
        NodeSample {
            room: Room {
                memory_bytes: 100,
                memory_available_bytes: 60,
                ..Room::default()
            },
            cpu_nanos: 2_000_000_000,
            nano_cores: None,
            boot: Timestamp::UNIX_EPOCH,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn cpu_time_is_everything_but_idle() {
        assert_eq!(
            busy_nanos("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1\n"),
            27 * NANOS_PER_TICK
        );
        assert_eq!(busy_nanos(""), 0);
        assert_eq!(
            nano_cores(0, 500_000_000, Duration::from_secs(1)),
            Some(500_000_000)
        );
        assert_eq!(nano_cores(5, 1, Duration::from_secs(1)), None);
        assert_eq!(nano_cores(0, 1, Duration::ZERO), None);
    }

    #[test]
    fn the_summary_holds_what_was_measured_and_nothing_else() {
        let pods = group(vec![container_stats()]);
        let document = summary("n1", &sample(), &pods, true);
        assert_eq!(document["node"]["memory"]["workingSetBytes"], 40);
        assert!(document["node"]["cpu"].get("usageNanoCores").is_none());
        assert!(document["node"].get("fs").is_none());
        let pod = &document["pods"][0];
        assert_eq!(
            pod["podRef"],
            json!({"name": "web", "namespace": "ns", "uid": "u"})
        );
        assert_eq!(pod["containers"][0]["name"], "app");
        assert_eq!(
            pod["containers"][0]["cpu"]["usageCoreNanoSeconds"],
            1_500_000_000
        );
        assert!(summary("n1", &sample(), &pods, false)["node"]["fs"].is_object());
    }

    #[test]
    fn metrics_have_upstreams_names_and_labels() {
        let text = resource_metrics(&sample(), &group(vec![container_stats()]));
        for line in [
            "node_cpu_usage_seconds_total 2.000000000",
            "node_memory_working_set_bytes 40",
            "container_cpu_usage_seconds_total{container=\"app\",namespace=\"ns\",pod=\"web\"} 1.500000000",
            "container_memory_working_set_bytes{container=\"app\",namespace=\"ns\",pod=\"web\"} 42",
            "# TYPE pod_cpu_usage_seconds_total counter",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line} is not in\n{text}"
            );
        }
        assert_eq!(escape("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
