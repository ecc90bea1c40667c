// SPDX-License-Identifier: Apache-2.0
//! The built-in plugins as executables, for other container runtimes.

use std::env;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::builtin;
use crate::exec::{Call, Dirs};
use crate::types::{PluginError, SUPPORTED_VERSIONS, code};

/// Where `host-local` keeps leases when its configuration does not say: as the reference plugin.
const DEFAULT_LEASE_DIR: &str = "/var/lib/cni/networks";
/// Where `tuning` keeps what a link was like before, as the reference plugin.
const DEFAULT_TUNING_DIR: &str = "/run/cni/tuning";
/// Patience with an IPAM plugin: it may wait for a DHCP server. The runtime has its own deadline.
const DELEGATE_DEADLINE: Duration = Duration::from_secs(60);
/// Longest input that is read.
const LONGEST_INPUT: u64 = 16 << 20;

/// Names of the plugins that [`plugin_main`] answers for.
pub fn plugin_names() -> &'static [&'static str] {
    &builtin::NAMES
}

/// Is this the name of a plugin that [`plugin_main`] answers for?
pub fn is_plugin(name: &str) -> bool {
    builtin::NAMES.contains(&name)
}

/// Answer as the CNI plugin `name` (see [`is_plugin`]) by the protocol: environment and standard
/// input in, standard output and exit code out. An error is printed in the protocol's form.
pub fn plugin_main(name: &str) -> ExitCode {
    let (text, exit) = match answer(name) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err((version, error)) => {
            let mut value = serde_json::to_value(error).expect("plain data always encodes");
            value["cniVersion"] = version.into();
            (value, ExitCode::FAILURE)
        }
    };
    match writeln!(io::stdout(), "{text:#}") {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(name: &str) -> Result<Option<Value>, (String, PluginError)> {
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
    let early = |error| (newest.to_owned(), error);
    if !is_plugin(name) {
        return Err(early(PluginError::new(
            code::INVALID_ENVIRONMENT,
            format!("no plugin {name:?} here"),
        )));
    }
    let verb = verb().map_err(early)?;
    let mut text = Vec::new();
    io::stdin()
        .take(LONGEST_INPUT)
        .read_to_end(&mut text)
        .map_err(|e| {
            early(PluginError::new(
                code::IO,
                format!("reading standard input: {e}"),
            ))
        })?;
    if verb == "VERSION" {
        let asked = serde_json::from_slice::<Value>(&text).ok();
        let asked = asked
            .as_ref()
            .and_then(|v| v.get("cniVersion"))
            .and_then(Value::as_str);
        return Ok(Some(json!({
            "cniVersion": asked.unwrap_or(newest), "supportedVersions": SUPPORTED_VERSIONS
        })));
    }
    let conf: Value = serde_json::from_slice(&text).map_err(|e| {
        early(PluginError::new(
            code::DECODING,
            format!("standard input is not JSON: {e}"),
        ))
    })?;
    let version = conf
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or("0.1.0")
        .to_owned();
    if !SUPPORTED_VERSIONS.contains(&version.as_str()) {
        let known = SUPPORTED_VERSIONS.join(", ");
        let text = format!("cniVersion {version} is not one of {known}");
        return Err((version, PluginError::new(code::INCOMPATIBLE_VERSION, text)));
    }
    if let Err(text) = crate::conf::has_verb(&version, verb) {
        return Err((version, PluginError::new(code::INCOMPATIBLE_VERSION, text)));
    }
    let call = call(verb, conf).map_err(|e| (version.clone(), e))?;
    builtin::run(name, &call).map_err(|e| (version, e))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn verb() -> Result<&'static str, PluginError> {
    const VERBS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
    let asked = variable("CNI_COMMAND");
    VERBS.into_iter().find(|v| *v == asked).ok_or_else(|| {
        PluginError::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND {asked:?} is not known"),
        )
    })
}

fn call(verb: &'static str, conf: Value) -> Result<Call, PluginError> {
    let invalid = |name: &str, problem: String| {
        PluginError::new(
            code::INVALID_ENVIRONMENT,
            format!("environment variable {name}: {problem}"),
        )
    };
    let call = Call {
        verb,
        container_id: variable("CNI_CONTAINERID"),
        netns: PathBuf::from(variable("CNI_NETNS")),
        ifname: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
        bin_dirs: env::split_paths(&variable("CNI_PATH")).collect(),
        dirs: Dirs {
            leases: PathBuf::from(DEFAULT_LEASE_DIR),
            tuning: PathBuf::from(DEFAULT_TUNING_DIR),
            own: false,
        },
        until: Instant::now() + DELEGATE_DEADLINE,
        drops_netns: false,
        conf,
    };
    if matches!(verb, "ADD" | "DEL" | "CHECK") {
        if !crate::conf::is_name(&call.container_id) {
            return Err(invalid(
                "CNI_CONTAINERID",
                format!("{:?} is not a container id", call.container_id),
            ));
        }
        crate::attachment::check_ifname(&call.ifname).map_err(|e| invalid("CNI_IFNAME", e))?;
        if verb != "DEL" && call.netns.as_os_str().is_empty() {
            return Err(invalid("CNI_NETNS", "is missing".to_owned()));
        }
    }
    Ok(call)
}
