// SPDX-License-Identifier: Apache-2.0
//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::update::Update;

/// The newest version of the OCI runtime specification that is followed.
pub(super) const SPEC_VERSION: &str = "1.2.1";
/// runc's form: the program, then the specification.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.1");

#[derive(Debug, Parser)]
#[command(
    name = "podwright oci",
    about = "An OCI runtime with runc's commands",
    version = VERSION,
    disable_version_flag = true,
    args_override_self = true,
    disable_help_subcommand = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Directory of the containers' state [default: /run/podwright/oci]
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// File that messages are appended to, instead of stderr
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Form of the messages
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Also say what is being done
    #[arg(long)]
    pub debug: bool,
    /// Let systemd make the cgroups; cgroupsPath is then slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Whether errors of cgroups are ignored for want of rights: true is refused
    #[arg(long, value_enum, default_value = "auto")]
    pub rootless: Rootless,
    /// Print the version
    #[arg(long = "version", short = 'v', action = clap::ArgAction::Version)]
    pub _version: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Rootless {
    Auto,
    False,
    True,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

// What a verb takes is put together when it is the one that was typed.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(super) enum Command {
    /// Create a container that waits for start
    Create(Create),
    /// Create a container, start it, wait for it and delete it
    Run(Run),
    /// Let a created container run
    Start { id: String },
    /// Print the state of a container
    State { id: String },
    /// Send a signal to a container
    Kill {
        /// To every process of the container; succeed if there is none
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
    /// Run another process in a container
    Exec(Box<Exec>),
    /// List the containers of this root
    List {
        #[arg(long, short, value_enum, default_value = "table")]
        format: Format,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// List the processes of a container
    Ps {
        #[arg(long, short, value_enum, default_value = "table")]
        format: Format,
        id: String,
        /// Options for ps [default: -ef]
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "PS OPTION"
        )]
        options: Vec<String>,
    },
    /// Stop all processes of a container where they are
    Pause { id: String },
    /// Let all processes of a paused container run on
    Resume { id: String },
    /// Change the limits of a container
    Update(Box<Update>),
    /// Print statistics at an interval, and kills for want of memory
    Events {
        /// Print the statistics once
        #[arg(long)]
        stats: bool,
        /// Time between statistics
        #[arg(long, default_value = "5s")]
        interval: String,
        id: String,
    },
    /// Print what this runtime can do
    Features,
    /// Write a config.json to start from
    Spec {
        /// Directory to write it to
        #[arg(long, short, default_value = ".")]
        bundle: PathBuf,
        /// Not supported: refused by name
        #[arg(long)]
        rootless: bool,
    },
    /// Not supported: refused by name
    Checkpoint(Anything),
    /// Not supported: refused by name
    Restore(Anything),
}

// Arguments of a verb that is refused whatever they are. (What `///` says would become its help.)
#[derive(Debug, Args)]
pub(super) struct Anything {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true,
        value_name = "ARGUMENTS"
    )]
    pub _arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Directory with config.json
    #[arg(long, short, default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that gets the terminal's master side
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a descriptor of the process
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// File for the first process's id
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Move the root over the old one instead of pivot_root, as a ramdisk needs
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass so many descriptors after the streams and $LISTEN_FDS
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Return once the container runs
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Leave orphans of the container to init
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    /// Unix socket that gets the terminal's master side
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a descriptor of the process
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    /// Variables to add: KEY=value
    #[arg(long, short)]
    pub env: Vec<String>,
    /// With a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// uid[:gid]
    #[arg(long, short)]
    pub user: Option<String>,
    /// Further groups
    #[arg(long, short = 'g')]
    pub additional_gids: Vec<u32>,
    /// A process.json, instead of a command
    #[arg(long, short)]
    pub process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(long, short)]
    pub detach: bool,
    /// File for the process's id
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long)]
    pub process_label: Option<String>,
    /// AppArmor profile
    #[arg(long)]
    pub apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// Capabilities to add
    #[arg(long, short)]
    pub cap: Vec<String>,
    /// Pass so many descriptors after the streams
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// An existing cgroup below the container's: [controllers:]path
    #[arg(long)]
    pub cgroup: Vec<String>,
    /// Also in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Accepted: no subreaper is set for exec anyway
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
