// SPDX-License-Identifier: Apache-2.0
//! `podwright image …`.

use std::path::Path;
use std::process::ExitCode;

/// Arguments of `podwright image`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List images
    #[command(visible_alias = "list")]
    Ls,
}

/// Runs the command on the store in `data_dir`. Works on a bare directory and beside a running
/// node. Data goes to stdout, progress and errors to stderr; the exit code is 0 or 1.
pub async fn run(args: ImageArgs, _data_dir: &Path, _registries_dir: &Path) -> ExitCode {
    let Command::Ls = args.command;
    eprintln!("error: image ls is not implemented yet");
    ExitCode::FAILURE
}
