// SPDX-License-Identifier: Apache-2.0
//! CRI's resource limits in the terms of [`crate::cgroup`]. Zero means "not said", as proto3 has it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::cgroup::{Cpu, Limits, Memory};
use crate::fault::{Fault, Result};
use crate::v1;

/// The limits of a container or a pod.
///
/// # Errors
/// Names a value that cannot be.
pub(crate) fn limits(wanted: &v1::LinuxContainerResources) -> Result<Limits> {
    let said = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64, field: &str| {
        said(value)
            .map(|v| {
                u64::try_from(v)
                    .map_err(|_| Fault::invalid(format!("resources.{field} {v} is negative")))
            })
            .transpose()
    };
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Ok(Limits {
        memory: Memory {
            limit: said(wanted.memory_limit_in_bytes),
            swap: said(wanted.memory_swap_limit_in_bytes),
            ..Memory::default()
        },
        cpu: Cpu {
            shares: unsigned(wanted.cpu_shares, "cpu_shares")?,
            quota: said(wanted.cpu_quota),
            period: unsigned(wanted.cpu_period, "cpu_period")?,
            cpus: text(&wanted.cpuset_cpus),
            mems: text(&wanted.cpuset_mems),
            ..Cpu::default()
        },
        hugepages: hugepages(&wanted.hugepage_limits),
        unified: unified(&wanted.unified)?,
        ..Limits::default()
    })
}

/// The kubelet lists every page size of the machine, with zero for those that a pod may not use.
/// Where the host cannot limit huge pages, such zeros alone must not fail every container, so they
/// are said only beside a real limit.
fn hugepages(wanted: &[v1::HugepageLimit]) -> Vec<(String, u64)> {
    if wanted.iter().all(|limit| limit.limit == 0) {
        return Vec::new();
    }
    let said = wanted
        .iter()
        .map(|limit| (limit.page_size.clone(), limit.limit));
    said.collect()
}

fn unified(wanted: &HashMap<String, String>) -> Result<Vec<(String, String)>> {
    if let Some(name) = wanted
        .keys()
        .find(|n| n.contains('/') || !n.contains('.') || n.starts_with('.'))
    {
        return Err(Fault::invalid(format!(
            "resources.unified {name:?} is not a cgroup v2 file name"
        )));
    }
    let mut all: Vec<_> = wanted.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    all.sort();
    Ok(all)
}

/// The limits as a container's OCI specification has them (config-linux.md). What is not said is left out.
pub(crate) fn oci(wanted: &v1::LinuxContainerResources) -> Map<String, Value> {
    let number = |value: i64| (value != 0).then(|| Value::from(value));
    let text = |value: &String| (!value.is_empty()).then(|| Value::from(value.as_str()));
    let part = |fields: &[(&str, Option<Value>)]| {
        let said = fields.iter().filter_map(|(name, value)| {
            let value = value.clone()?;
            Some(((*name).to_owned(), value))
        });
        let part: Map<String, Value> = said.collect();
        (!part.is_empty()).then_some(Value::Object(part))
    };
    let memory = part(&[
        ("limit", number(wanted.memory_limit_in_bytes)),
        ("swap", number(wanted.memory_swap_limit_in_bytes)),
    ]);
    let cpu = part(&[
        ("shares", number(wanted.cpu_shares)),
        ("quota", number(wanted.cpu_quota)),
        ("period", number(wanted.cpu_period)),
        ("cpus", text(&wanted.cpuset_cpus)),
        ("mems", text(&wanted.cpuset_mems)),
    ]);
    let pages = wanted.hugepage_limits.iter().filter(|page| page.limit > 0);
    let pages: Vec<Value> = pages
        .map(|page| json!({"pageSize": page.page_size, "limit": page.limit}))
        .collect();
    let all = [
        ("memory", memory),
        ("cpu", cpu),
        ("hugepageLimits", (!pages.is_empty()).then(|| pages.into())),
        (
            "unified",
            (!wanted.unified.is_empty()).then(|| json!(wanted.unified)),
        ),
    ];
    all.into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// The limits of a pod: what its containers need and its overhead, added up.
///
/// # Errors
/// As [`limits`].
pub(crate) fn pod_limits(config: &v1::LinuxPodSandboxConfig) -> Result<Option<Limits>> {
    let Some(wanted) = &config.resources else {
        return Ok(None);
    };
    let overhead = config.overhead.clone().unwrap_or_default();
    // An overhead adds to a limit, and makes none where there was none.
    let add = |a: i64, b: i64| if a > 0 { a.saturating_add(b.max(0)) } else { a };
    let mut sum = wanted.clone();
    sum.memory_limit_in_bytes = add(wanted.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    sum.cpu_quota = add(wanted.cpu_quota, overhead.cpu_quota);
    sum.cpu_shares = add(wanted.cpu_shares, overhead.cpu_shares);
    limits(&sum).map(Some)
}

/// What a container has after an update: fields that are said replace, the others stay.
pub(crate) fn updated(
    old: &v1::LinuxContainerResources,
    new: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let mut merged = old.clone();
    let number = |into: &mut i64, from: i64| {
        if from != 0 {
            *into = from;
        }
    };
    number(&mut merged.cpu_period, new.cpu_period);
    number(&mut merged.cpu_quota, new.cpu_quota);
    number(&mut merged.cpu_shares, new.cpu_shares);
    number(&mut merged.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(
        &mut merged.memory_swap_limit_in_bytes,
        new.memory_swap_limit_in_bytes,
    );
    number(&mut merged.oom_score_adj, new.oom_score_adj);
    for (into, from) in [
        (&mut merged.cpuset_cpus, &new.cpuset_cpus),
        (&mut merged.cpuset_mems, &new.cpuset_mems),
    ] {
        if !from.is_empty() {
            into.clone_from(from);
        }
    }
    for limit in &new.hugepage_limits {
        let same = |known: &&mut v1::HugepageLimit| known.page_size == limit.page_size;
        match merged.hugepage_limits.iter_mut().find(same) {
            Some(known) => known.limit = limit.limit,
            None => merged.hugepage_limits.push(limit.clone()),
        }
    }
    merged.unified.extend(new.unified.clone());
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_not_a_limit() {
        assert_eq!(
            limits(&v1::LinuxContainerResources::default()).unwrap(),
            Limits::default()
        );
        let some = limits(&v1::LinuxContainerResources {
            memory_limit_in_bytes: 5,
            cpu_quota: -1,
            cpu_shares: 2,
            ..Default::default()
        })
        .unwrap();
        assert_eq!(
            (some.memory.limit, some.cpu.quota, some.cpu.shares),
            (Some(5), Some(-1), Some(2))
        );
    }

    #[test]
    fn the_oci_form_has_what_is_said() {
        assert!(oci(&v1::LinuxContainerResources::default()).is_empty());
        let some = oci(&v1::LinuxContainerResources {
            memory_limit_in_bytes: 5,
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            ..Default::default()
        });
        let expected = json!({"memory": {"limit": 5}, "cpu": {"quota": -1, "cpus": "0-1"}});
        assert_eq!(Value::Object(some), expected);
    }

    #[test]
    fn huge_pages_are_limited_when_one_size_is() {
        let with = |limit| v1::LinuxContainerResources {
            hugepage_limits: vec![
                v1::HugepageLimit {
                    page_size: "2MB".into(),
                    limit,
                },
                v1::HugepageLimit {
                    page_size: "1GB".into(),
                    limit: 0,
                },
            ],
            ..Default::default()
        };
        assert_eq!(limits(&with(0)).unwrap().hugepages, []);
        let some = limits(&with(4 << 20)).unwrap().hugepages;
        assert_eq!(some, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)]);
        let merged = updated(&with(5), &with(6));
        assert_eq!(
            (
                merged.hugepage_limits.len(),
                merged.hugepage_limits[0].limit
            ),
            (2, 6)
        );
    }

    #[test]
    fn an_update_keeps_what_it_does_not_say() {
        let old = v1::LinuxContainerResources {
            cpu_shares: 10,
            memory_limit_in_bytes: 20,
            ..Default::default()
        };
        let new = v1::LinuxContainerResources {
            cpu_shares: 11,
            ..Default::default()
        };
        let merged = updated(&old, &new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (11, 20));
    }

    #[test]
    fn overhead_widens_limits_only() {
        let config = v1::LinuxPodSandboxConfig {
            resources: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 100,
                ..Default::default()
            }),
            overhead: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 7,
                cpu_quota: 9,
                ..Default::default()
            }),
            ..Default::default()
        };
        let sum = pod_limits(&config).unwrap().unwrap();
        assert_eq!((sum.memory.limit, sum.cpu.quota), (Some(107), None));
    }
}
