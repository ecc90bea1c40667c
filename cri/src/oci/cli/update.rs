// SPDX-License-Identifier: Apache-2.0
//! `update`: other limits for a container that is there.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::cgroups::Cgroup;
use super::config;
use super::store::Status;
use super::{Attempt, Context, Failure, Outcome, outside};
use crate::oci;

#[derive(Debug, Args)]
pub(super) struct Update {
    /// File with linux.resources as in config.json, or - for stdin; the other flags are ignored then
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Microseconds per period
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// Microseconds of CPU time in a period; -1 for no limit
    #[arg(long, allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds of CPU time that may be saved up
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    /// CPU shares, 2 to 262144
    #[arg(long)]
    pub cpu_share: Option<u64>,
    /// Microseconds per period of realtime scheduling
    #[arg(long)]
    pub cpu_rt_period: Option<u64>,
    /// Microseconds of realtime scheduling in a period
    #[arg(long, allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1: run only when nobody else wants to; 0: as usual
    #[arg(long)]
    pub cpu_idle: Option<i64>,
    /// CPUs to use: 0-3,8
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Bytes, or with a suffix k, m, g, t; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// What is left to it when memory is short
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Accepted and ignored: no kernel has it any more
    #[arg(long, allow_hyphen_values = true, hide = true)]
    pub kernel_memory: Option<String>,
    /// Accepted and ignored: no kernel has it any more
    #[arg(long, allow_hyphen_values = true, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Processes and threads; -1 for no limit
    #[arg(long, allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Schema of Intel RDT's L3 cache
    #[arg(long)]
    pub l3_cache_schema: Option<String>,
    /// Schema of Intel RDT's memory bandwidth
    #[arg(long)]
    pub mem_bw_schema: Option<String>,
    pub id: String,
}

pub(super) fn update(context: &Context, options: &Update) -> Outcome {
    let record = context.store.load(&options.id)?;
    if context.store.status(&record) == Status::Stopped {
        return Err(Failure::new("container not running"));
    }
    let schemata = schemata(options);
    if !schemata.is_empty() {
        let spec = context.store.spec(&options.id)?;
        outside::update_schemata(&spec, &options.id, &schemata)?;
    }
    let resources = match &options.resources {
        Some(path) => from_file(path)?,
        None => serde_json::from_value(from_flags(options)?).attempt("reading the flags")?,
    };
    let mut limits = oci::update_limits(&resources).attempt("resources")?;
    // As runc: what others have changed about devices stays.
    limits.devices = None;
    for note in &limits.notes {
        context.log.warn(note);
    }
    let Cgroup { manager, path } = Cgroup::of_record(&record)?;
    manager.apply(&path, &limits).attempt("setting limits")?;
    Ok(ExitCode::SUCCESS)
}

/// What of Intel RDT is to change.
fn schemata(options: &Update) -> Vec<(&'static str, &str)> {
    let flags = [
        ("--l3-cache-schema", &options.l3_cache_schema),
        ("--mem-bw-schema", &options.mem_bw_schema),
    ];
    let given = flags.into_iter().filter_map(|(flag, schema)| {
        let schema = schema.as_deref().filter(|schema| !schema.is_empty())?;
        Some((flag, schema))
    });
    given.collect()
}

fn from_file(path: &std::path::Path) -> Outcome<LinuxResources> {
    let name = path.display().to_string();
    let mut text = Vec::new();
    match name.as_str() {
        "-" => std::io::stdin().read_to_end(&mut text).map(drop),
        _ => std::fs::read(path).map(|read| text = read),
    }
    .attempt(format_args!("reading {name}"))?;
    config::parse(&text, |_| ()).map_err(|reason| Failure::new(format!("{name}: {reason}")))
}

fn from_flags(options: &Update) -> Outcome<Value> {
    let mut resources = json!({
        "memory": {
            "limit": bytes("memory", options.memory.as_deref())?,
            "reservation": bytes("memory-reservation", options.memory_reservation.as_deref())?,
            "swap": bytes("memory-swap", options.memory_swap.as_deref())?,
            "kernel": bytes("kernel-memory", options.kernel_memory.as_deref())?,
            "kernelTCP": bytes("kernel-memory-tcp", options.kernel_memory_tcp.as_deref())?,
        },
        "cpu": {
            "shares": options.cpu_share,
            "quota": options.cpu_quota,
            "burst": options.cpu_burst,
            "period": options.cpu_period,
            "realtimeRuntime": options.cpu_rt_runtime,
            "realtimePeriod": options.cpu_rt_period,
            "cpus": options.cpuset_cpus,
            "mems": options.cpuset_mems,
            "idle": options.cpu_idle,
        },
        "blockIO": {"weight": options.blkio_weight},
    });
    if let Some(limit) = options.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    Ok(resources)
}

/// A number of bytes as docker writes it: digits, perhaps a fraction, a unit of 1024s.
fn bytes(flag: &str, text: Option<&str>) -> Outcome<Option<i64>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text == "-1" {
        return Ok(Some(-1));
    }
    let invalid = || Failure::new(format!("invalid value for {flag}: invalid size: '{text}'"));
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => lower.split_at(at),
        None => (lower.as_str(), ""),
    };
    let unit = unit.trim_start();
    let power = match unit.strip_suffix('b').unwrap_or(unit) {
        "" => 0,
        "k" | "ki" => 1,
        "m" | "mi" => 2,
        "g" | "gi" => 3,
        "t" | "ti" => 4,
        "p" | "pi" => 5,
        _ => return Err(invalid()),
    };
    let size = 1024i64.pow(power);
    let bytes = match number.parse::<i64>() {
        Ok(whole) => whole.checked_mul(size),
        Err(_) => {
            let fraction = number.parse::<f64>().map_err(|_| invalid())?;
            let bytes = fraction * size as f64;
            (bytes < i64::MAX as f64).then_some(bytes as i64)
        }
    };
    bytes.map(Some).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, expected) in [
            ("-1", -1),
            ("1048576", 1 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 KB", 2048),
        ] {
            assert_eq!(bytes("memory", Some(text)).ok().flatten(), Some(expected));
        }
        for bad in ["x", "1x", "-2", "1.2.3m", "9999999p", "m"] {
            assert!(bytes("memory", Some(bad)).is_err(), "{bad}");
        }
    }
}
