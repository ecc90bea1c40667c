// SPDX-License-Identifier: Apache-2.0
//! Runtime handlers: pods whose pause and containers another OCI runtime makes, by its command line.
//!
//! The pod's shim runs the runtime's commands and owns what they leave (see `shim::daemon::external`),
//! so logs, exits, signals, attaching and restarts are those of every pod. Here is the rest: which
//! handlers there are and what they can do ([`features`]), the bundle that they are given
//! ([`bundle`]), where they find what we mount ([`place`]), and forgetting a container
//! ([`Handler::delete`]).
//!
//! The runtime keeps its state below the pod's own run directory, so that nothing of it outlives the pod.

pub(crate) mod bundle;
pub(crate) mod features;
mod place;

use std::path::{Path, PathBuf};
use std::time::Duration;

use shim::plan::External;

use crate::blocking;
use crate::fault::{Fault, Result};
use crate::lifecycle::remove_dir;
use crate::runtime::Runtime;
use crate::sandbox::{SandboxRecord, cgroup, userns};
use crate::settings::Settings;

/// The runtime's `delete` kills what is left and removes cgroups.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// How far below a pod's cgroup runtimes make others.
const STRAY_DEPTH: usize = 3;
/// In a pod's run directory: the runtime's state, unless the operator says where it is.
const STATE_DIR: &str = "runtime";
/// In a pod's run directory: the bundle of its sandbox process.
const PAUSE_DIR: &str = "pause";
const SYSTEMD_FLAG: &str = "--systemd-cgroup";

/// An external runtime, for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    path: PathBuf,
    state: PathBuf,
    /// The run directory of the pod.
    pod: PathBuf,
    /// Whether it has systemd make its cgroups.
    systemd: bool,
    /// Of a pod with ids of its own.
    ids: Option<Mapped>,
}

/// What a runtime has to do with a pod that has ids of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapped {
    ids: userns::Ids,
    /// Where the roots of its containers are shown, and the node's directory that this is in.
    roots: PathBuf,
    run: PathBuf,
}

/// Whether this handler is served by podwright itself.
pub(crate) fn is_built_in(handler: &str) -> bool {
    matches!(handler, "" | "podwright")
}

/// Checks the name of a handler.
///
/// # Errors
/// When there is no such handler, in containerd's words.
pub(crate) fn check(settings: &Settings, handler: &str) -> Result<()> {
    if is_built_in(handler) || settings.runtimes.contains_key(handler) {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "no runtime for {handler:?} is configured"
    )))
}

/// Checks that a handler can give a pod ids of its own. Ours can where the kernel can, which says so.
///
/// # Errors
/// When there is no such handler, or it says that it cannot.
pub(crate) async fn check_users(settings: &Settings, handler: &str) -> Result<()> {
    check(settings, handler)?;
    let Some(external) = settings.runtimes.get(handler) else {
        return Ok(());
    };
    match features::of(&external.path).await.user_namespaces {
        true => Ok(()),
        false => Err(Fault::invalid(format!(
            "userns_options: runtime handler {handler:?} does not support user namespaces"
        ))),
    }
}

impl Runtime {
    /// The external runtime of a sandbox; none when podwright itself is its runtime.
    ///
    /// # Errors
    /// When its handler is not configured any more.
    pub(crate) fn handler_of(&self, sandbox: &SandboxRecord) -> Result<Option<Handler>> {
        let name = &sandbox.runtime_handler;
        if is_built_in(name) {
            return Ok(None);
        }
        let settings = self.config.settings.get();
        check(&settings, name)?;
        let pod = self.paths.shim(&sandbox.id);
        let ids = userns::Ids::of(&sandbox.namespaces())?;
        let ids = ids.map(|ids| Mapped {
            ids,
            roots: self.paths.roots(&sandbox.id),
            run: self.config.run_dir.clone(),
        });
        Ok(settings.runtimes.get(name).map(|handler| Handler {
            path: handler.path.clone(),
            state: handler.root.clone().unwrap_or_else(|| pod.join(STATE_DIR)),
            pod,
            systemd: cgroup::is_systemds(&sandbox.cgroup),
            ids,
        }))
    }

    /// Has the external runtime of a sandbox forget a container, or the sandbox's own process, if it
    /// has one. What it leaves is found by other means: processes by their cgroup, files by the pod's
    /// directory, so a failure is only logged.
    pub(crate) async fn forget_external(&self, sandbox: &SandboxRecord, id: &str) {
        match self.handler_of(sandbox) {
            Ok(None) => {}
            Ok(Some(handler)) => handler.delete(id).await,
            Err(fault) => {
                tracing::warn!(container.id = %id, error = %fault.chain(), "a container's runtime cannot be asked to forget it");
            }
        }
    }
}

impl Handler {
    /// The program with its global flags. Errors go to `log`.
    fn command(&self, log: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let flags = ["--root".to_owned(), text(&self.state), "--log".to_owned()];
        let mut command = vec![text(&self.path)];
        command.extend(flags);
        command.extend([text(log), "--log-format".to_owned(), "json".to_owned()]);
        command.extend(self.systemd.then(|| SYSTEMD_FLAG.to_owned()));
        command
    }

    /// Where a container's bundle is.
    pub(crate) fn bundle_of(&self, id: &str) -> PathBuf {
        self.pod.join(format!("{PAUSE_DIR}-{id}"))
    }

    /// Where a container's root and volumes are shown: in its bundle, unless that would not do for
    /// the pod's ids.
    fn place(&self, bundle: &Path, id: &str) -> PathBuf {
        let mapped = self.ids.as_ref();
        mapped.map_or_else(|| bundle.to_owned(), |mapped| mapped.roots.join(id))
    }

    /// The directory of the node that has to be passable.
    fn passable(&self) -> Option<&Path> {
        self.ids.as_ref().map(|mapped| mapped.run.as_path())
    }

    /// What the shim needs to run the container in this bundle. `shows` says that it mounts more
    /// than shims of older builds do.
    fn external(&self, bundle: &Path, id: &str, shows: bool) -> External {
        let log = bundle.join("runtime.log");
        let shows = shows || self.ids.is_some();
        External {
            place: shows.then(|| self.place(bundle, id).display().to_string()),
            command: self.command(&log),
            bundle: bundle.display().to_string(),
            id: id.to_owned(),
            log: log.display().to_string(),
        }
    }

    /// The words of an exec of the process that is described in `process`. Its errors go to `log`.
    pub(crate) fn exec(&self, id: &str, process: &Path, log: &Path) -> Vec<String> {
        let mut words = self.command(log);
        let process = process.display().to_string();
        words.extend(["exec".to_owned(), "--process".to_owned(), process]);
        words.push(id.to_owned());
        words
    }

    /// The files of an exec: its process, and the runtime's errors. Removed with the pod at the latest.
    pub(crate) fn exec_files(&self, exec: &str) -> [PathBuf; 2] {
        [
            self.pod.join(format!("exec-{exec}.json")),
            self.pod.join(format!("exec-{exec}.log")),
        ]
    }

    /// Forgets a container, and ends what is left of it. Idempotent.
    async fn delete(&self, id: &str) {
        if self.state.join(id).exists() {
            self.delete_in_runtime(id).await;
        }
        if let Some(mapped) = &self.ids {
            let place = mapped.roots.join(id);
            // Empty directories and files; what stays goes with the pod.
            let _ = blocking::run("removing a place", move || remove_dir(&place)).await;
        }
    }

    async fn delete_in_runtime(&self, id: &str) {
        let mut command = tokio::process::Command::new(&self.path);
        command
            .arg("--root")
            .arg(&self.state)
            .args(self.systemd.then_some(SYSTEMD_FLAG))
            .args(["delete", "--force", id])
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(DELETE_DEADLINE, command.output()).await;
        match output {
            Ok(Ok(output)) if output.status.success() => {}
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = shim::launch::plain(said.trim());
                tracing::warn!(container.id = %id, status = %output.status, said, "a runtime did not forget a container");
            }
            Ok(Err(error)) => {
                tracing::warn!(container.id = %id, %error, "a runtime cannot be run");
            }
            Err(_) => {
                tracing::warn!(container.id = %id, "a runtime takes too long to forget a container");
            }
        }
    }
}

/// Removes what a runtime has made of a pod's cgroup in hierarchies that podwright does not use
/// (systemd's own, for example), up to the node's own parent. Only empty directories go. Blocks.
pub(crate) fn remove_stray_cgroups(root: &Path, pod: &str, parent: &str) {
    let parent = Path::new(parent.trim_matches('/'));
    let pod = Path::new(pod.trim_matches('/'));
    for hierarchy in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let hierarchy = hierarchy.path();
        if !hierarchy.is_dir() {
            continue;
        }
        remove_empty(&hierarchy.join(pod), STRAY_DEPTH);
        let above = pod.ancestors().skip(1);
        for dir in above.take_while(|dir| dir.starts_with(parent) && *dir != Path::new("")) {
            // Not empty, or gone: then so are those above it, or they are in use.
            let _ = std::fs::remove_dir(hierarchy.join(dir));
        }
    }
}

fn remove_empty(dir: &Path, depth: usize) {
    if depth > 0 {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_empty(&entry.path(), depth - 1);
            }
        }
    }
    // In use, or gone.
    let _ = std::fs::remove_dir(dir);
}

/// The last error in the log of a command, if it says one.
pub(crate) fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let entries = text.lines().rev().filter_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = entry.get("level")?.as_str()?;
        let said = entry.get("msg")?.as_str()?;
        matches!(level, "error" | "fatal").then(|| shim::launch::plain(said))
    });
    entries.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_known_by_name() {
        let mut settings = Settings::default();
        let handler = serde_json::from_str(r#"{"path":"/usr/bin/crun"}"#).unwrap();
        settings.runtimes.insert("crun".into(), handler);
        for known in ["", "podwright", "crun"] {
            check(&settings, known).unwrap();
        }
        let error = check(&settings, "kata").unwrap_err().to_string();
        assert_eq!(error, "no runtime for \"kata\" is configured");
    }

    #[test]
    fn only_empty_directories_of_the_pod_and_its_parent_go() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        for path in ["a/p/pod/c", "b/p/pod", "b/p/other", "c/x/p"] {
            make(path);
        }
        remove_stray_cgroups(root.path(), "/p/pod", "/p");
        let left = |path: &str| root.path().join(path).exists();
        assert!(!left("a/p") && left("a"));
        assert!(!left("b/p/pod") && left("b/p/other"));
        make("a/kube/pod");
        remove_stray_cgroups(root.path(), "/kube/pod", "/p");
        assert!(left("a/kube") && !left("a/kube/pod"));
    }

    #[test]
    fn errors_are_found_among_other_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"no\\nsuch\"}\n{\"level\":\"warning\",\"msg\":\"x\"}\nwords\n",
        )
        .unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("no\\nsuch"));
        assert_eq!(last_error(&dir.path().join("none")), None);
    }
}
