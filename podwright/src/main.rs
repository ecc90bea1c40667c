// SPDX-License-Identifier: Apache-2.0
//! The one binary: command line, configuration, wiring. What is done lives in the crates it wires.

mod check;
mod client;
mod cluster_dns;
mod command;
mod data_lock;
mod logging;
mod manifest;
mod node_config;
mod pod_logs;
mod pod_network;
mod supervise;
mod sys;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// A link with this name to the executable is the OCI runtime.
const OCI_RUNTIME: &str = "podwright-oci";

fn main() -> ExitCode {
    let mut args = std::env::args_os().peekable();
    // The same file under the name of a CNI plugin is that plugin, for other runtimes to execute.
    let name = args.peek().map(base_name).unwrap_or_default();
    if cni::is_plugin(&name) {
        return cni::plugin_main(&name);
    }
    let program = args.next();
    // The OCI runtime forks without exec and is timed by the millisecond: it comes before anything
    // that parses more or starts a thread. Engines that take one path call it by its own name.
    if name == OCI_RUNTIME || args.next_if(|verb| verb == "oci").is_some() {
        let name = OsString::from("podwright oci");
        return cri::oci::cli::main(std::iter::once(name).chain(args));
    }
    command::main(program.into_iter().chain(args))
}

fn base_name(path: &OsString) -> String {
    let name = Path::new(path).file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
