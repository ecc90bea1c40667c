// SPDX-License-Identifier: Apache-2.0
//! The manifest directory (or one file) as a pod source: inotify says when, a slow poll covers what
//! inotify misses, and every look reads the whole directory. A bad file is reported and keeps the
//! pods of its last good state out; all other files go on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::manager::{Inbox, Source};
use crate::manifest::{self, ManifestError};
use crate::pod::spec;

/// Files are read when nothing has changed for this long: writers need a moment.
const SETTLE: Duration = Duration::from_millis(50);
/// No manifest is larger; a larger file is an error, not a way to exhaust memory.
const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// Reads `path` (a directory, or one file) once. Names starting with a dot are skipped.
pub fn read(path: &Path, node_name: &str, now: Timestamp) -> (Vec<Pod>, Vec<ManifestError>) {
    let mut pods: BTreeMap<(String, String), (Pod, String)> = BTreeMap::new();
    let mut errors = Vec::new();
    let whole = |file: &Path, problem: String| ManifestError {
        file: file.display().to_string(),
        document: 1,
        path: String::new(),
        problem,
    };
    let files = match files(path) {
        Ok(files) => files,
        // Nobody has put manifests there yet: that is not a mistake.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            errors.push(whole(path, format!("cannot read: {error}")));
            Vec::new()
        }
    };
    for file in files {
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(problem) => {
                errors.push(whole(&file, problem));
                continue;
            }
        };
        let name = file.display().to_string();
        let (found, problems) = manifest::parse(&name, &text);
        errors.extend(problems);
        for pod in found {
            let pod = match manifest::finish(pod, &name, node_name, now) {
                Ok(pod) => pod,
                Err(problems) => {
                    errors.extend(problems);
                    continue;
                }
            };
            let key = (
                spec::namespace(&pod).to_owned(),
                spec::name(&pod).to_owned(),
            );
            if let Some((_, first)) = pods.get(&key) {
                errors.push(whole(
                    &file,
                    format!("pod {}/{} is already defined in {first}", key.0, key.1),
                ));
                continue;
            }
            pods.insert(key, (pod, name.clone()));
        }
    }
    (pods.into_values().map(|(pod, _)| pod).collect(), errors)
}

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if path.metadata()?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // Follows links: a mounted configuration is full of them.
        if !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(file: &Path) -> Result<String, String> {
    let length = file
        .metadata()
        .map_err(|error| format!("cannot read: {error}"))?
        .len();
    if length > FILE_BYTES_MAX {
        return Err(format!(
            "is {length} bytes long, expected at most {FILE_BYTES_MAX}"
        ));
    }
    std::fs::read_to_string(file).map_err(|error| format!("cannot read: {error}"))
}

/// Feeds the manager until `stop`. Each error is logged once, until it changes.
pub async fn run(
    path: PathBuf,
    node_name: String,
    poll: Duration,
    inbox: Inbox,
    stop: CancellationToken,
) {
    let (wake, mut woken) = mpsc::channel::<()>(1);
    let mut watcher = None;
    let mut known_errors = Vec::new();
    loop {
        // Before the read, so that nothing falls between them; again if the directory was not there.
        if watcher.is_none() && path.exists() {
            watcher = watch(&path, wake.clone());
        }
        let (path_again, node) = (path.clone(), node_name.clone());
        let read =
            tokio::task::spawn_blocking(move || read(&path_again, &node, Timestamp::now())).await;
        if let Ok((pods, errors)) = read {
            if errors != known_errors {
                errors.iter().for_each(|error| tracing::error!("{error}"));
                known_errors = errors;
            }
            if !inbox.set(Source::File, pods).await {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(poll) => {}
            Some(()) = woken.recv() => {
                tokio::time::sleep(SETTLE).await;
                while woken.try_recv().is_ok() {}
            }
        }
    }
}

/// Watches the directory, or the directory of the file. Without inotify the poll remains.
fn watch(path: &Path, wake: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading makes events too; they would wake us for ever.
        let read_only = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !read_only {
            // A full queue means that a wake-up is already pending.
            let _ = wake.try_send(());
        }
    };
    let directory = if path.is_file() { path.parent()? } else { path };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| tracing::warn!(path = %directory.display(), %error, "cannot watch manifests, polling only"))
        .ok()
}
