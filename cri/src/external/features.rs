// SPDX-License-Identifier: Apache-2.0
//! What external runtimes can do, as `features` of their command line says (features.md of the OCI
//! runtime specification). Asked once for each version of a program.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::sandbox::userns;
use crate::v1;

const DEADLINE: Duration = Duration::from_secs(5);

/// What a program that has no such command can do: that command is younger than user namespaces,
/// which every OCI runtime for Linux has had since version 1.0 of the specification.
fn silent() -> Value {
    serde_json::json!({"linux": {"namespaces": ["user"]}})
}

/// Answers by program and the time of its last change. Only programs that are configured get here.
type Known = HashMap<PathBuf, (Option<SystemTime>, v1::RuntimeHandlerFeatures)>;

fn known() -> std::sync::MutexGuard<'static, Known> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The features of a runtime; none where it does not answer.
pub(crate) async fn of(program: &Path) -> v1::RuntimeHandlerFeatures {
    let changed = std::fs::metadata(program).and_then(|m| m.modified()).ok();
    if let Some((at, features)) = known().get(program)
        && *at == changed
    {
        return *features;
    }
    let features = ask(program).await.as_ref().map(read).unwrap_or_default();
    known().insert(program.to_owned(), (changed, features));
    features
}

async fn ask(program: &Path) -> Option<Value> {
    let mut command = tokio::process::Command::new(program);
    command
        .arg("features")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.ok()?.ok()?;
    match output.status.success() {
        true => serde_json::from_slice(&output.stdout).ok(),
        false => Some(silent()),
    }
}

/// Of a pod with ids of its own a runtime only has to join the user namespace: we map the ids of its
/// root and volumes.
fn read(said: &Value) -> v1::RuntimeHandlerFeatures {
    let namespaces = said.pointer("/linux/namespaces").and_then(Value::as_array);
    let users = namespaces.is_some_and(|all| all.iter().any(|kind| kind == "user"));
    let options = said.get("mountOptions").and_then(Value::as_array);
    let has = |word: &str| options.is_some_and(|all| all.iter().any(|option| option == word));
    v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: has("rro"),
        user_namespaces: users && userns::supported(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursive_read_only_mounts_are_a_mount_option() {
        let said = serde_json::json!({"mountOptions": ["ro", "rro"]});
        assert!(read(&said).recursive_read_only_mounts);
        assert!(!read(&serde_json::json!({})).recursive_read_only_mounts);
        assert!(
            !read(&said).user_namespaces,
            "they are not among its namespaces"
        );
        assert_eq!(read(&silent()).user_namespaces, userns::supported());
    }
}
