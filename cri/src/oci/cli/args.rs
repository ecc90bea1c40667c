// SPDX-License-Identifier: Apache-2.0
//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "podwright oci",
    about = "An OCI runtime with runc's commands",
    version
)]
pub(super) struct Cli {
    /// Directory of the containers' state
    #[arg(long, default_value = "/run/podwright/oci")]
    pub root: PathBuf,
    /// File that errors are appended to
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Form of the lines in that file
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Not supported: refused by name
    #[arg(long)]
    pub systemd_cgroup: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a container that waits for start
    Create(Create),
    /// Create a container, start it, wait for it and delete it
    Run(Create),
    /// Let a created container run
    Start { id: String },
    /// Print the state of a container
    State { id: String },
    /// Send a signal to a container
    Kill {
        /// To every process of the container
        #[arg(long, short)]
        all: bool,
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Delete what is left of a container
    Delete {
        /// Kill it first if it runs; succeed if there is none
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// List the containers of this root
    List {
        #[arg(long, short, value_enum, default_value = "table")]
        format: ListFormat,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Run another process in a container
    Exec(Exec),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Directory with config.json
    #[arg(long, short, default_value = ".")]
    pub bundle: PathBuf,
    /// File for the first process's id
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal's master side
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// (run) Return once the container runs
    #[arg(long, short)]
    pub detach: bool,
    /// Accepted: the root is changed without pivot_root where the kernel demands it anyway
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted: no keyring is ever made
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Not supported unless 0
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    #[arg(long, short)]
    pub env: Vec<String>,
    #[arg(long, short)]
    pub tty: bool,
    /// uid[:gid]
    #[arg(long, short)]
    pub user: Option<String>,
    #[arg(long, short = 'g')]
    pub additional_gids: Vec<u32>,
    /// A process.json, instead of a command
    #[arg(long, short)]
    pub process: Option<PathBuf>,
    #[arg(long, short)]
    pub detach: bool,
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    #[arg(long)]
    pub no_new_privs: bool,
    #[arg(long, short)]
    pub cap: Vec<String>,
    /// Not supported unless 0
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
