// SPDX-License-Identifier: Apache-2.0
//! `podwright-vm`: a guest with the podwright executable in it, for a script or for a person.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use vm::GuestConfig;

/// Boots a QEMU guest with Debian's cloud kernel and cgroup v2.
#[derive(Parser)]
#[command(name = "podwright-vm")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a script, print its output, and return its exit code (125 if the guest ended before it)
    Run {
        #[command(flatten)]
        guest: Guest,

        /// Seconds until the guest is ended
        #[arg(long, default_value_t = 600)]
        deadline: u64,

        /// Print the kernel's messages afterwards, on stderr
        #[arg(long)]
        console: bool,

        /// Keep console, output and QEMU's messages in this folder
        #[arg(long, value_name = "DIR")]
        logs: Option<PathBuf>,

        /// The script, run by busybox's shell
        script: PathBuf,
    },
    /// Get a shell in the guest; it powers off when the shell ends
    Shell {
        #[command(flatten)]
        guest: Guest,
    },
}

#[derive(Args)]
struct Guest {
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
    #[arg(
        long,
        value_name = "DIR",
        env = "PODWRIGHT_CACHE",
        default_value = "target/vm"
    )]
    cache: PathBuf,

    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,

    /// Processors of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
}

impl Guest {
    fn config(self) -> Result<GuestConfig> {
        let mut config = GuestConfig::new(self.cache).file(self.binary, "usr/bin/podwright");
        config.memory_mib = self.memory;
        config.cpus = self.cpus;
        for pair in &self.file {
            let (here, there) = pair
                .split_once(':')
                .with_context(|| format!("--file {pair:?} is not HERE:THERE"))?;
            config = config.file(here, there);
        }
        Ok(config)
    }
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Run {
            guest,
            deadline,
            console,
            logs,
            script,
        } => {
            let mut config = guest.config()?;
            config.logs = logs;
            let script = std::fs::read_to_string(&script)
                .with_context(|| format!("reading {}", script.display()))?;
            let outcome = vm::run(&config, &script, Duration::from_secs(deadline))?;
            if console {
                eprint!("{}", outcome.console);
            }
            print!("{}", outcome.output);
            let code = outcome.exit_code.and_then(|code| u8::try_from(code).ok());
            Ok(ExitCode::from(code.unwrap_or(125)))
        }
        Command::Shell { guest } => {
            vm::shell(&guest.config()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
