// SPDX-License-Identifier: Apache-2.0
//! `podwright-vm`: runs a script in a guest with the podwright executable in it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use vm::GuestConfig;

/// Boots a QEMU guest with Debian's cloud kernel and cgroup v2, runs a script in it, and returns
/// the script's exit code (125 if the guest ended before it).
#[derive(Parser)]
#[command(name = "podwright-vm")]
struct Args {
    /// The podwright executable, which becomes /usr/bin/podwright
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/x86_64-unknown-linux-gnu/release/podwright"
    )]
    binary: PathBuf,

    /// A further file, as HERE:THERE; can be given several times
    #[arg(long, value_name = "HERE:THERE")]
    file: Vec<String>,

    /// Where the kernel is kept between runs
    #[arg(long, value_name = "DIR", default_value = "target/vm")]
    cache: PathBuf,

    /// Seconds until the guest is ended
    #[arg(long, default_value_t = 600)]
    deadline: u64,

    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,

    /// Print the kernel's messages afterwards, on stderr
    #[arg(long)]
    console: bool,

    /// The script, run by busybox's shell
    script: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut config = GuestConfig::new(args.cache).file(args.binary, "usr/bin/podwright");
    config.memory_mib = args.memory;
    for pair in &args.file {
        let (here, there) = pair
            .split_once(':')
            .with_context(|| format!("--file {pair:?} is not HERE:THERE"))?;
        config = config.file(here, there);
    }
    let script = std::fs::read_to_string(&args.script)
        .with_context(|| format!("reading {}", args.script.display()))?;
    let outcome = vm::run(&config, &script, Duration::from_secs(args.deadline))?;
    if args.console {
        eprint!("{}", outcome.console);
    }
    print!("{}", outcome.output);
    let code = outcome.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(125)))
}
