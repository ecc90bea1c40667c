// SPDX-License-Identifier: Apache-2.0
//! Limits as unit properties, so that systemd does not undo them when it applies its own view
//! (on daemon-reload, or when a neighbour changes). What it has no property for is in the files only.

use super::wire::Value;
use crate::cgroup::v1::devices::{self, Device};
use crate::cgroup::{CgroupError, Cpu, Limits, convert};

type Properties = Vec<(String, Value)>;

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;

/// Of a new unit, as runc sets them. A scope needs a process to begin with.
pub(super) fn of_new_unit(unit: &str, slice: &str, process: Option<u32>) -> Properties {
    let text = |name: &str, value: &str| (name.to_owned(), Value::Text(value.to_owned()));
    let yes = |name: &str| (name.to_owned(), Value::Bool(true));
    let mut all = vec![text("Description", &format!("podwright container {unit}"))];
    match process {
        Some(pid) => {
            all.push(text("Slice", slice));
            all.push(yes("Delegate"));
            all.push(("PIDs".to_owned(), Value::Uint32s(vec![pid])));
        }
        None => all.push(("Wants".to_owned(), Value::Texts(vec![slice.to_owned()]))),
    }
    for resource in ["Memory", "CPU", "IO", "Tasks"] {
        all.push(yes(&format!("{resource}Accounting")));
    }
    all.push(("DefaultDependencies".to_owned(), Value::Bool(false)));
    all
}

/// systemd keeps a quota as whole percents of one CPU. It is rounded up, here and in the file, so
/// that both say the same.
pub(super) fn round_quota(cpu: &mut Cpu) {
    const DEFAULT_PERIOD: u64 = 100_000;
    const PERCENT: u64 = 10_000;
    let period = cpu.period.unwrap_or(DEFAULT_PERIOD).max(1);
    if let Some(quota) = cpu.quota.filter(|quota| *quota > 0) {
        let per_second = quota.unsigned_abs().saturating_mul(1_000_000) / period;
        let rounded = per_second.next_multiple_of(PERCENT);
        if rounded != per_second {
            let quota = rounded.saturating_mul(period) / 1_000_000;
            cpu.quota = i64::try_from(quota).ok();
        }
    }
}

/// # Errors
/// Names a limit that contradicts itself.
pub(super) fn of_limits(
    limits: &Limits,
    v2: bool,
    version: u32,
) -> Result<Properties, CgroupError> {
    let mut all = Properties::new();
    let mut number = |name: &str, value: u64| all.push((name.to_owned(), Value::Uint64(value)));
    let or_infinity = |value: i64| u64::try_from(value).unwrap_or(INFINITY);
    if let Some(limit) = limits.memory.limit {
        number(
            if v2 { "MemoryMax" } else { "MemoryLimit" },
            or_infinity(limit),
        );
    }
    if v2 {
        if let Some(bytes) = limits.memory.reservation {
            number("MemoryLow", or_infinity(bytes));
        }
        // The sum alone is left to the file: what it means depends on the limit that holds.
        let swap = limits.memory.limit.map(|_| &limits.memory);
        let swap = swap.map(|memory| convert::swap_alone(memory.limit, memory.swap));
        if let Some(swap) = swap.transpose()?.flatten() {
            number("MemorySwapMax", swap.parse().unwrap_or(INFINITY));
        }
    }
    cpu(&limits.cpu, v2, version, &mut number);
    if let Some(pids) = limits.pids {
        number(
            "TasksMax",
            if pids > 0 {
                or_infinity(pids)
            } else {
                INFINITY
            },
        );
    }
    if let (false, Some(weight)) = (v2, limits.block_io.weight) {
        number("BlockIOWeight", u64::from(weight));
    }
    for (file, value) in &limits.unified {
        all.extend(of_file(file, value));
    }
    const CPUSET_SINCE: u32 = 244;
    if v2 && version >= CPUSET_SINCE {
        let lists = [
            ("AllowedCPUs", &limits.cpu.cpus),
            ("AllowedMemoryNodes", &limits.cpu.mems),
        ];
        for (name, list) in lists {
            if let Some(bits) = list.as_deref().and_then(bits) {
                all.push((name.to_owned(), Value::Bytes(bits)));
            }
        }
    }
    if let Some(rules) = &limits.devices {
        all.extend(of_devices(devices::list(rules).ok()));
    }
    Ok(all)
}

fn cpu(limits: &Cpu, v2: bool, version: u32, number: &mut impl FnMut(&str, u64)) {
    const IDLE_SINCE: u32 = 252;
    const PERIOD_SINCE: u32 = 242;
    if v2 && limits.idle == Some(1) && version >= IDLE_SINCE {
        // Its way to say idle.
        number("CPUWeight", 0);
    } else if let Some(shares) = limits.shares {
        match v2 {
            true => number("CPUWeight", convert::weight(shares)),
            false => number("CPUShares", shares),
        }
    }
    if let Some(period) = limits.period.filter(|_| version >= PERIOD_SINCE) {
        number("CPUQuotaPeriodUSec", period);
    }
    if let Some(quota) = limits.quota {
        let period = limits.period.unwrap_or(100_000).max(1);
        let per_second = match u64::try_from(quota) {
            Ok(quota) => quota.saturating_mul(1_000_000) / period,
            Err(_) => INFINITY,
        };
        number("CPUQuotaPerSecUSec", per_second);
    }
}

/// The property for a v2 file, where there is one.
fn of_file(file: &str, value: &str) -> Option<(String, Value)> {
    let name = match file {
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        _ => return None,
    };
    let number = match value.trim() {
        "max" => INFINITY,
        number => number.parse().ok()?,
    };
    Some((name.to_owned(), Value::Uint64(number)))
}

/// `0-1,9` as bits, lowest first: [3, 2].
fn bits(list: &str) -> Option<Vec<u8>> {
    /// Above any machine's number of CPUs.
    const MEMBERS_MAX: usize = 1 << 16;
    let mut bits = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MEMBERS_MAX {
            return None;
        }
        for member in first..=last {
            if bits.len() <= member / 8 {
                bits.resize(member / 8 + 1, 0);
            }
            bits[member / 8] |= 1 << (member % 8);
        }
    }
    Some(bits)
}

/// What systemd cannot say (a hole in a wildcard, an unknown major number) it must not forbid: then
/// it is told nothing, and the cgroup's own rules stand alone.
fn of_devices(policy: Option<(bool, Vec<(Device, String)>)>) -> Properties {
    let text = |value: &str| ("DevicePolicy".to_owned(), Value::Text(value.to_owned()));
    let allow = |pairs| ("DeviceAllow".to_owned(), Value::Pairs(pairs));
    let names = |devices: Vec<(Device, String)>| {
        let known = std::fs::read_to_string("/proc/devices").unwrap_or_default();
        let named = devices.into_iter().map(|(device, access)| {
            let name = device_name(device, &known)?;
            Some((name, access))
        });
        named.collect::<Option<Vec<_>>>()
    };
    match policy {
        Some((false, devices)) => match names(devices) {
            Some(pairs) => vec![text("strict"), allow(Vec::new()), allow(pairs)],
            None => vec![text("auto"), allow(Vec::new())],
        },
        _ => vec![text("auto"), allow(Vec::new())],
    }
}

/// `/dev/char/1:3`, or for all minors the group's name out of /proc/devices, or `char-*`.
fn device_name((kind, major, minor): Device, known: &str) -> Option<String> {
    let kind = if kind == 'b' { "block" } else { "char" };
    match (major, minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (None, None) => Some(format!("{kind}-*")),
        (None, Some(_)) => None,
        (Some(major), None) => {
            let heading = if kind == "block" {
                "Block devices:"
            } else {
                "Character devices:"
            };
            let list = known.lines().skip_while(|line| *line != heading).skip(1);
            let mut list = list.take_while(|line| !line.is_empty());
            list.find_map(|line| {
                let (number, name) = line.trim().split_once(' ')?;
                (number.parse() == Ok(major)).then(|| format!("{kind}-{name}"))
            })
        }
    }
}

/// What the annotations begin with that become properties.
pub const ANNOTATIONS: &str = "org.systemd.property.";

/// Properties out of annotations `org.systemd.property.<Name>`, whose values are in GVariant's text
/// form: `true`, `'text'`, `uint64 5`, `['a', 'b']`.
///
/// # Errors
/// Names the annotation.
pub fn systemd_properties<'a>(
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<(String, Value)>, CgroupError> {
    let mut all = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATIONS) else {
            continue;
        };
        let invalid = |reason: &str| CgroupError::Invalid {
            field: format!("annotations.{key}"),
            reason: format!("{reason}: {text}"),
        };
        if name.len() < 3 || !name.chars().all(|c| c.is_ascii_alphabetic()) {
            return Err(invalid("it names no property"));
        }
        let value = parse(text.trim()).ok_or_else(|| invalid("its value cannot be read"))?;
        // `…Sec` is how unit files say it; on the bus it is microseconds.
        all.push(match (name.strip_suffix("Sec"), seconds(&value)) {
            (Some(stem), Some(micros)) if !name.ends_with("USec") => {
                (format!("{stem}USec"), Value::Uint64(micros))
            }
            _ => (name.to_owned(), value),
        });
    }
    Ok(all)
}

fn seconds(value: &Value) -> Option<u64> {
    let seconds = match value {
        Value::Int32(n) => f64::from(*n),
        Value::Uint32(n) => f64::from(*n),
        Value::Int64(n) => *n as f64,
        Value::Uint64(n) => *n as f64,
        Value::Double(n) => *n,
        _ => return None,
    };
    (seconds >= 0.0).then_some((seconds * 1e6) as u64)
}

fn parse(text: &str) -> Option<Value> {
    if let Some(list) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let items = list
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        return items.map(quoted).collect::<Option<_>>().map(Value::Texts);
    }
    if let Some(text) = quoted(text) {
        return Some(Value::Text(text));
    }
    match text.split_once(' ') {
        Some(("byte", n)) => n.trim().parse().ok().map(Value::Byte),
        Some(("int32", n)) => n.trim().parse().ok().map(Value::Int32),
        Some(("uint32", n)) => n.trim().parse().ok().map(Value::Uint32),
        Some(("int64", n)) => n.trim().parse().ok().map(Value::Int64),
        Some(("uint64", n)) => n.trim().parse().ok().map(Value::Uint64),
        Some(("double", n)) => n.trim().parse().ok().map(Value::Double),
        Some(("boolean", word)) => word.trim().parse().ok().map(Value::Bool),
        Some(("string", word)) => quoted(word.trim()).map(Value::Text),
        Some(_) => None,
        None => {
            let bool = text.parse().ok().map(Value::Bool);
            let int = || text.parse().ok().map(Value::Int32);
            bool.or_else(int)
                .or_else(|| text.parse().ok().map(Value::Double))
        }
    }
}

fn quoted(text: &str) -> Option<String> {
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    let inner = within('\'').or_else(|| within('"'))?;
    (!inner.contains(['\\', '\'', '"'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0-1,9"), Some(vec![3, 2]));
        assert_eq!(bits("0-99999999"), None);
        assert_eq!(bits("x"), None);
    }

    #[test]
    fn quotas_are_rounded_up_to_percents() {
        let mut cpu = Cpu {
            quota: Some(15_001),
            ..Cpu::default()
        };
        round_quota(&mut cpu);
        assert_eq!(cpu.quota, Some(16_000));
        round_quota(&mut cpu);
        assert_eq!(cpu.quota, Some(16_000));
    }

    #[test]
    fn annotations_become_properties() {
        let annotations = [
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.TimeoutStopSec", "uint64 5"),
            ("org.systemd.property.After", "['a.service', 'b.service']"),
            ("other", "x"),
        ];
        let found = systemd_properties(annotations.into_iter()).expect("parses");
        assert_eq!(found[0].1, Value::Text("inactive-or-failed".into()));
        assert_eq!(
            found[1],
            ("TimeoutStopUSec".into(), Value::Uint64(5_000_000))
        );
        assert_eq!(
            found[2].1,
            Value::Texts(vec!["a.service".into(), "b.service".into()])
        );
        for bad in ["nonsense", "'a\\'b'", "uint64 x"] {
            let one = [("org.systemd.property.Name", bad)];
            assert!(systemd_properties(one.into_iter()).is_err(), "{bad}");
        }
        let name = [("org.systemd.property.A=b", "true")];
        assert!(systemd_properties(name.into_iter()).is_err());
    }

    #[test]
    fn devices_have_systemds_names() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(
            device_name(('c', Some(136), None), known),
            Some("char-pts".into())
        );
        assert_eq!(
            device_name(('b', Some(8), None), known),
            Some("block-sd".into())
        );
        assert_eq!(
            device_name(('c', Some(1), Some(3)), known),
            Some("/dev/char/1:3".into())
        );
        assert_eq!(device_name(('c', None, None), known), Some("char-*".into()));
        assert_eq!(device_name(('b', Some(77), None), known), None);
    }
}
