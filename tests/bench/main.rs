// SPDX-License-Identifier: Apache-2.0
//! How fast and how small, beside whichever peers are installed, in one run on one machine.
//!
//! `podwright-bench [--runs N] [--only oci,cri,server] [--json FILE]` prints a table, and the same
//! as JSON. Everything runs in test hosts and is gone afterwards. It measures; it asserts nothing.

mod cri;
mod memory;
mod oci;
mod report;
mod server;

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
    #[arg(long, value_delimiter = ',', default_value = "oci,cri,server")]
    only: Vec<String>,

    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    for group in &args.only {
        eprintln!("measuring {group}");
        match group.as_str() {
            "oci" => oci::measure(args.runs, &mut report)?,
            "cri" => cri::measure(args.runs, &mut report)?,
            "server" => server::measure(args.runs, &mut report)?,
            other => anyhow::bail!("no group is named {other}; there are oci, cri and server"),
        }
    }
    print!("{}", report.table());
    if let Some(path) = args.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Is a program on the path?
fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
