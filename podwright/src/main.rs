// SPDX-License-Identifier: Apache-2.0
//! The one binary: command line, configuration, wiring. What is done lives in the crates it wires.

mod check;
mod client;
mod command;
mod data_lock;
mod logging;
mod manifest;
mod node_config;
mod pod_network;
mod supervise;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().peekable();
    // The same file under the name of a CNI plugin is that plugin, for other runtimes to execute.
    let name = args.peek().map(base_name).unwrap_or_default();
    if cni::is_plugin(&name) {
        return cni::plugin_main(&name);
    }
    command::main(args)
}

fn base_name(path: &OsString) -> String {
    let name = Path::new(path).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
