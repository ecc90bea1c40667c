// SPDX-License-Identifier: Apache-2.0
//! `podwright check`: one line per finding; exit code 1 if any of them forbids a node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::check::{Verdict, findings};

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Where cgroups are mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    cgroup_root: PathBuf,
}

pub(crate) fn main(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = findings(&args.cgroup_root);
    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        print!("{mark}  {:<20} {}", finding.name, finding.seen);
        if finding.advice.is_empty() {
            println!();
        } else {
            println!("; {}", finding.advice);
        }
    }
    let unfit = findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Fail);
    Ok(if unfit {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
