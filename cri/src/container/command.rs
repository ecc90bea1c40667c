// SPDX-License-Identifier: Apache-2.0
//! What a container runs: the image's defaults under the pod's wishes, merged as containerd merges them.

use crate::fault::{Fault, Result};
use crate::v1;

/// The part of an image's configuration that says how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// `KEY=value`.
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
    /// `user[:group]`, names or numbers.
    pub(crate) user: String,
    /// As in `SIGTERM` or `15`; empty for the default.
    pub(crate) stop_signal: String,
}

/// The PATH of a container whose image and pod name none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The argument vector: a command replaces the entrypoint *and* drops the image's cmd; arguments
/// alone replace only the cmd.
///
/// # Errors
/// When neither the pod nor the image names anything to run, or an argument holds a NUL byte.
pub(crate) fn arguments(
    command: &[String],
    args: &[String],
    image: &ImageDefaults,
) -> Result<Vec<String>> {
    let mut merged: Vec<String> = if !command.is_empty() {
        command.to_vec()
    } else if image.entrypoint.iter().all(String::is_empty) {
        // An entrypoint of one empty string is how builders spell "reset".
        Vec::new()
    } else {
        image.entrypoint.clone()
    };
    if command.is_empty() && args.is_empty() {
        merged.extend(image.cmd.iter().cloned());
    } else {
        merged.extend(args.iter().cloned());
    }
    if merged.is_empty() {
        return Err(Fault::invalid("no command specified"));
    }
    if let Some(bad) = merged.iter().find(|a| a.contains('\0')) {
        return Err(Fault::invalid(format!("argument {bad:?} holds a NUL byte")));
    }
    Ok(merged)
}

/// The environment: PATH, HOSTNAME, TERM for a terminal, the image's, then the pod's. Later wins, order kept.
///
/// # Errors
/// When a pod's variable has no name, or holds `=` in it, a NUL byte, or bytes that are not UTF-8.
pub(crate) fn environment(
    envs: &[v1::KeyValue],
    image: &ImageDefaults,
    hostname: &str,
    tty: bool,
) -> Result<Vec<String>> {
    let mut merged: Vec<String> = Vec::new();
    set(&mut merged, DEFAULT_PATH.to_owned());
    if !hostname.is_empty() {
        set(&mut merged, format!("HOSTNAME={hostname}"));
    }
    if tty {
        set(&mut merged, "TERM=xterm".to_owned());
    }
    for entry in &image.env {
        set(&mut merged, entry.clone());
    }
    for variable in envs {
        let name = &variable.key;
        let value = std::str::from_utf8(&variable.value).map_err(|source| {
            Fault::invalid(format!("value of environment variable {name:?}: {source}"))
        })?;
        if name.is_empty() || name.contains('=') || name.contains('\0') || value.contains('\0') {
            return Err(Fault::invalid(format!(
                "environment variable {name:?} cannot be set: empty name, '=' in the name, or a NUL byte"
            )));
        }
        set(&mut merged, format!("{name}={value}"));
    }
    Ok(merged)
}

fn set(list: &mut Vec<String>, entry: String) {
    let name = entry.split('=').next().unwrap_or_default();
    let same = |other: &String| other.split('=').next() == Some(name);
    match list.iter().position(same) {
        Some(at) => list[at] = entry,
        None => list.push(entry),
    }
}

/// The working directory: the pod's, else the image's, else `/`.
///
/// # Errors
/// When it is not absolute.
pub(crate) fn working_dir(wanted: &str, image: &ImageDefaults) -> Result<String> {
    let dir = [wanted, image.working_dir.as_str(), "/"]
        .into_iter()
        .find(|d| !d.is_empty())
        .unwrap_or("/");
    if !dir.starts_with('/') || dir.contains('\0') {
        return Err(Fault::invalid(format!(
            "working directory {dir:?} is not an absolute path"
        )));
    }
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["-d"]),
            env: strings(&["A=1", "PATH=/bin"]),
            working_dir: "/srv".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_four_combinations_of_command_and_args() {
        let check = |command: &[&str], args: &[&str], expected: &[&str]| {
            let merged = arguments(&strings(command), &strings(args), &image()).unwrap();
            assert_eq!(merged, strings(expected));
        };
        check(&[], &[], &["/entry", "-d"]);
        check(&[], &["x"], &["/entry", "x"]);
        check(&["/cmd"], &[], &["/cmd"]);
        check(&["/cmd"], &["x"], &["/cmd", "x"]);
    }

    #[test]
    fn nothing_to_run_is_refused_and_an_empty_entrypoint_is_none() {
        let mut bare = ImageDefaults {
            entrypoint: strings(&[""]),
            ..Default::default()
        };
        assert!(arguments(&[], &[], &bare).is_err());
        bare.cmd = strings(&["sh"]);
        assert_eq!(arguments(&[], &[], &bare).unwrap(), strings(&["sh"]));
        assert!(arguments(&strings(&["a\0b"]), &[], &bare).is_err());
    }

    #[test]
    fn the_pod_overrides_the_image_environment() {
        let envs = [v1::KeyValue {
            key: "A".into(),
            value: b"2=3".to_vec(),
        }];
        let merged = environment(&envs, &image(), "web-0", true).unwrap();
        assert_eq!(
            merged,
            strings(&["PATH=/bin", "HOSTNAME=web-0", "TERM=xterm", "A=2=3"])
        );
        let bad = [v1::KeyValue {
            key: "A=B".into(),
            value: Vec::new(),
        }];
        assert!(environment(&bad, &image(), "", false).is_err());
    }

    #[test]
    fn the_working_directory_has_an_order() {
        assert_eq!(working_dir("/w", &image()).unwrap(), "/w");
        assert_eq!(working_dir("", &image()).unwrap(), "/srv");
        assert_eq!(working_dir("", &ImageDefaults::default()).unwrap(), "/");
        assert!(working_dir("relative", &image()).is_err());
    }
}
