// SPDX-License-Identifier: Apache-2.0
//! How fast and how small, beside whichever peers are installed, in one run on one machine.
//!
//! `podwright-bench [--runs N] [--only oci,cri,image,server,services,cni,policy,dns,throughput] [--json FILE]`
//! prints a table, and the same as JSON. Everything runs in test hosts and is gone afterwards. It
//! measures; it asserts nothing.

#[path = "../../proxy/tests/it/api.rs"]
mod api;
mod cni;
mod cri;
mod dns;
mod image;
mod memory;
mod oci;
mod place;
mod policy;
mod report;
mod server;
mod services;
mod throughput;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use report::Report;

#[derive(Parser)]
struct Args {
    /// Measured repetitions of each operation, after a tenth of that to warm up
    #[arg(long, default_value_t = 50)]
    runs: usize,

    /// Groups to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "oci,cri,image,server,services,cni,policy,dns,throughput"
    )]
    only: Vec<String>,

    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    if let Some(outcome) = services::child().or_else(dns::child) {
        return outcome;
    }
    let args = Args::parse();
    let mut report = Report::default();
    let outcome = args
        .only
        .iter()
        .try_for_each(|group| measure(group, args.runs, &mut report));
    // What was measured before a failure counts.
    print!("{}", report.table());
    if let Some(path) = args.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    outcome
}

fn measure(group: &str, runs: usize, report: &mut Report) -> Result<()> {
    eprintln!("measuring {group}");
    match group {
        "oci" => oci::measure(runs, report),
        "cri" => cri::measure(runs, report),
        "image" => image::measure(runs, report),
        "server" => server::measure(runs, report),
        "services" => services::measure(runs, report),
        "cni" => cni::measure(runs, report),
        "policy" => policy::measure(runs, report),
        "dns" => dns::measure(runs, report),
        "throughput" => throughput::measure(runs, report),
        other => anyhow::bail!(
            "no group is named {other}; there are oci, cri, image, server, services, cni, policy, dns and \
             throughput"
        ),
    }
}

/// Is a program on the path?
fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
