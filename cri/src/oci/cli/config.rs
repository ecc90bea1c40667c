// SPDX-License-Identifier: Apache-2.0
//! Reading config.json and process.json. What is wrong in them is said in one line that names the
//! file, the field and the reason.

use std::io::ErrorKind;
use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Attempt, Failure, Outcome, names};
use crate::oci::capability;

pub(super) const CONFIG: &str = "config.json";

/// The specification in a file, and the file's text. `notes` are for the log.
pub(super) fn read_spec(path: &Path, notes: &mut Vec<String>) -> Outcome<(Spec, Vec<u8>)> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let message = format!("JSON specification file {} not found", path.display());
            return Err(Failure::new(message));
        }
        other => other.attempt(format_args!("reading {}", path.display()))?,
    };
    let spec: Spec = parse(&text, |value| {
        complete_process(&mut value["process"], notes)
    })
    .map_err(|reason| Failure::new(format!("{CONFIG}: {reason}")))?;
    check_version(spec.version())?;
    Ok((spec, text))
}

pub(super) fn read_process(path: &Path, notes: &mut Vec<String>) -> Outcome<Process> {
    let text = std::fs::read(path).attempt(format_args!("reading {}", path.display()))?;
    parse(&text, |value| complete_process(value, notes))
        .map_err(|reason| Failure::new(format!("{}: {reason}", path.display())))
}

/// Go's decoder, which wrote the custom, takes an absent user for uid 0. And our types do not have
/// all names of scheduling flags as the specification has them.
fn complete_process(process: &mut Value, notes: &mut Vec<String>) {
    let Some(process) = process.as_object_mut() else {
        return;
    };
    process.entry("user").or_insert_with(|| json!({}));
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags")?.as_array_mut());
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!("SCHED_RESET_ON_FORK"),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!("SCHED_FLAG_D_L_OVERRUN"),
            _ => {}
        }
    }
    let unknown = drop_unknown_capabilities(process.get_mut("capabilities"));
    if !unknown.is_empty() {
        notes.push(without_capabilities(&unknown));
    }
}

/// What is said of capabilities that a process does without.
pub(super) fn without_capabilities(names: &[String]) -> String {
    let names = names.join(" ");
    format!("ignoring unknown or unavailable capabilities: [{names}]")
}

/// As runc: a capability that is newer than we are is one that the container does without.
fn drop_unknown_capabilities(capabilities: Option<&mut Value>) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = capabilities.and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let name = name.as_str().filter(|name| capability::bit(name).is_none());
            let new = name.filter(|name| !unknown.iter().any(|known| known == name));
            unknown.extend(new.map(str::to_owned));
            name.is_none()
        });
    }
    unknown
}

/// The usual file is parsed once. Only what cannot be read is looked at again, for the field's path.
pub(super) fn parse<T: DeserializeOwned>(
    text: &[u8],
    complete: impl FnOnce(&mut Value),
) -> Result<T, String> {
    if !names::has_another_case(text) {
        match serde_json::from_slice(text) {
            Ok(parsed) => return Ok(parsed),
            Err(error) if !error.is_data() => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    let mut value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !value.is_object() {
        return Err("it is not a JSON object".to_owned());
    }
    names::restore(&mut value);
    complete(&mut value);
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, reason) = (error.path().to_string(), error.inner().to_string());
        let path = if path == "." { String::new() } else { path };
        let missing = reason
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next());
        let (path, reason) = match missing {
            Some(field) if path.is_empty() => (field.to_owned(), "it is missing"),
            Some(field) => (format!("{path}.{field}"), "it is missing"),
            None => (path, &*reason),
        };
        format!("{path}: {}{reason}", runcs_words(&path))
    })
}

/// What runc begins its message with, where it has words of its own for a field.
fn runcs_words(path: &str) -> &'static str {
    match path.strip_prefix("linux.memoryPolicy.") {
        Some("mode") => "invalid memory policy mode: ",
        Some(flags) if flags.starts_with("flags") => "invalid memory policy flag: ",
        _ => "",
    }
}

/// Minor versions add fields only.
fn check_version(version: &str) -> Outcome<()> {
    let major = version.split('.').next();
    match major {
        Some("1") => Ok(()),
        _ if version.is_empty() => {
            Err(Failure::new(format!("{CONFIG}: ociVersion: it is missing")))
        }
        _ => Err(Failure::new(format!(
            "{CONFIG}: ociVersion: {version:?} is not supported: this runtime does 1.x"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        let complete = |value: &mut Value| complete_process(&mut value["process"], &mut Vec::new());
        parse::<Spec>(text.as_bytes(), complete).expect_err("refused")
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, expected) in [
            ("{\n  \"ociVersion\": \"1.2.0\",,\n}", "at line 2 column"),
            ("", "EOF while parsing a value at line 1 column 0"),
            ("null", "it is not a JSON object"),
            (
                r#"{"process": {"cwd": 5}}"#,
                "process.cwd: invalid type: integer `5`",
            ),
            (r#"{"process": {}}"#, "process.cwd: it is missing"),
            (
                r#"{"mounts": [{"destination": "/x", "options": "ro"}]}"#,
                "mounts[0].options: invalid type: string",
            ),
            (
                r#"{"linux": {"namespaces": [{"type": "nosuch"}]}}"#,
                "linux.namespaces[0].type: unknown variant `nosuch`",
            ),
            (
                r#"{"linux": {"memoryPolicy": {"nodes": "0"}}}"#,
                "linux.memoryPolicy.mode: invalid memory policy mode: it is missing",
            ),
            (
                r#"{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "flags": ["x"]}}}"#,
                "linux.memoryPolicy.flags[0]: invalid memory policy flag: unknown variant `x`",
            ),
        ] {
            let said = complaint(text);
            assert!(said.contains(expected), "{said:?} for {text}");
        }
    }

    #[test]
    fn unknown_fields_and_an_absent_user_are_tolerated() {
        let text = br#"{"ociVersion": "1.1.0", "nosuch": {"a": 1}, "process": {"cwd": "/"}}"#;
        let complete = |value: &mut Value| complete_process(&mut value["process"], &mut Vec::new());
        let spec: Spec = parse(text, complete).expect("parses");
        assert_eq!(spec.process().as_ref().map(|p| p.user().uid()), Some(0));
    }

    #[test]
    fn unknown_capabilities_are_left_out_and_noted_once() {
        let text = br#"{"ociVersion": "1.1.0", "process": {"cwd": "/", "user": {}, "capabilities":
            {"bounding": ["CAP_NEWER", "CAP_KILL"], "permitted": ["CAP_NEWER"]}}}"#;
        let mut notes = Vec::new();
        let spec: Spec = parse(text, |value| {
            complete_process(&mut value["process"], &mut notes);
        })
        .expect("parses");
        let process = spec.process().as_ref().expect("there");
        let sets = process.capabilities().as_ref().expect("there");
        assert_eq!(sets.bounding().as_ref().map(|set| set.len()), Some(1));
        assert_eq!(
            notes,
            ["ignoring unknown or unavailable capabilities: [CAP_NEWER]"]
        );
    }

    #[test]
    fn versions_of_the_first_major_are_taken() {
        assert!(check_version("1.0.2-dev").is_ok());
        for bad in ["", "2.0.0", "x", "0.9"] {
            assert!(check_version(bad).is_err(), "{bad:?}");
        }
    }
}
