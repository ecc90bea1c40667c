// SPDX-License-Identifier: Apache-2.0
//! What belongs to no object: shims, namespaces, attachments, cgroups, leases, directories. Removed
//! at start, and every few minutes: a removal that failed halfway is tried again without a restart.
//!
//! While requests are served, something may be in the making that no table knows yet. So a leftover
//! is removed only when nobody holds a name for it, and it was seen a round before.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::fault::{Fault, Result};
use crate::lifecycle::remove_dir;
use crate::recover::{self, list, note};
use crate::runtime::{Runtime, cgroup_roots};
use crate::sandbox::{cgroup, network};
use crate::{blocking, ids};

/// Between two rounds. No request takes as long.
const INTERVAL: Duration = Duration::from_secs(180);
/// How deep below the cgroup parent leftovers are looked for: kubepods/burstable/pod<uid>/<id>.
const CGROUP_DEPTH: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Leftover {
    /// The directory of a shim, a network namespace, or where an external runtime found roots.
    Shim(String),
    Sandbox(String),
    Container(String),
    /// A cgroup, by its path.
    Cgroup(String),
    /// An image that is held for nobody.
    Lease(String),
}

/// Removes every leftover. Only while nothing is in the making.
pub(crate) async fn now(runtime: &Arc<Runtime>) {
    attachments(runtime).await;
    for leftover in find(runtime).await {
        note(remove(runtime, &leftover).await);
    }
}

/// Removes leftovers from time to time, until the daemon stops.
pub(crate) async fn forever(runtime: Arc<Runtime>) {
    let mut suspects = BTreeSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = runtime.stopping.cancelled() => return,
        }
        attachments(&runtime).await;
        let found = find(&runtime).await;
        for leftover in twice(&suspects, &found) {
            note(remove(&runtime, leftover).await);
        }
        suspects = found;
    }
}

/// Has what pods need on the host restored when somebody takes it away, until the daemon stops.
pub(crate) async fn keep_network(runtime: Arc<Runtime>) {
    tokio::select! {
        () = runtime.network.keep() => {}
        () = runtime.stopping.cancelled() => {}
    }
}

/// What was there the round before, and still is.
fn twice<'a>(
    before: &'a BTreeSet<Leftover>,
    now: &'a BTreeSet<Leftover>,
) -> impl Iterator<Item = &'a Leftover> {
    before.intersection(now)
}

/// Identifiers of all that exists or is being made.
fn known(runtime: &Runtime) -> BTreeSet<String> {
    let mut known = runtime.names.holders();
    let sandboxes = runtime.sandboxes.all();
    known.extend(sandboxes.iter().map(|s| s.record.get().id.clone()));
    let containers = runtime.containers.all();
    known.extend(containers.iter().map(|c| c.record.get().id.clone()));
    known
}

async fn find(runtime: &Runtime) -> BTreeSet<Leftover> {
    let mut found = BTreeSet::new();
    let paths = &runtime.paths;
    let in_dir = async |dir: &Path| list(dir).await.unwrap_or_default().into_iter();
    found.extend(in_dir(&paths.shims()).await.map(Leftover::Shim));
    found.extend(in_dir(&paths.netns_dir()).await.map(Leftover::Shim));
    found.extend(in_dir(&paths.roots_dir()).await.map(Leftover::Shim));
    found.extend(in_dir(&paths.sandboxes()).await.map(Leftover::Sandbox));
    found.extend(in_dir(&paths.containers()).await.map(Leftover::Container));
    match runtime.images.leases().await {
        Ok(owners) => found.extend(owners.into_iter().map(Leftover::Lease)),
        Err(error) => note(Err(Fault::internal("looking at image leases", error))),
    }
    match cgroups(runtime).await {
        Ok(paths) => found.extend(paths.into_iter().map(Leftover::Cgroup)),
        Err(fault) => note(Err(fault)),
    }
    // Looked up last: what came to be meanwhile has its name by now.
    let known = known(runtime);
    found.retain(|leftover| !known.contains(leftover.id()));
    found
}

impl Leftover {
    /// Whose it would be.
    fn id(&self) -> &str {
        match self {
            Leftover::Shim(id)
            | Leftover::Sandbox(id)
            | Leftover::Container(id)
            | Leftover::Lease(id) => id,
            Leftover::Cgroup(path) => cgroup::id_of(path),
        }
    }
}

async fn remove(runtime: &Runtime, leftover: &Leftover) -> Result<()> {
    tracing::info!(?leftover, "removing a leftover");
    match leftover {
        Leftover::Shim(id) => shim(runtime, id).await,
        Leftover::Sandbox(id) => recover::discard_unfinished(runtime, id).await.map(drop),
        Leftover::Container(id) => runtime.remove_container_files(id).await,
        Leftover::Cgroup(path) => runtime.remove_cgroup(path).await,
        Leftover::Lease(owner) => runtime
            .images
            .release(owner)
            .await
            .map_err(|e| Fault::internal(format!("releasing the lease of {owner:?}"), e)),
    }
}

/// Ends a shim that belongs to nobody, with its namespace and directory.
///
/// # Errors
/// When it does not go.
pub(crate) async fn shim(runtime: &Runtime, id: &str) -> Result<()> {
    runtime.end_shim(id).await?;
    let (shim_dir, netns) = (runtime.paths.shim(id), runtime.paths.netns(id));
    let roots = runtime.paths.roots(id);
    blocking::run("removing a leftover", move || {
        cni::netns::remove(&netns).map_err(|e| Fault::internal("removing a namespace", e))?;
        remove_dir(&roots)?;
        remove_dir(&shim_dir)
    })
    .await?
}

/// Lets CNI release what no sandbox is attached by.
async fn attachments(runtime: &Runtime) {
    let mut attached = runtime.names.holders();
    for sandbox in runtime.sandboxes.all() {
        let record = sandbox.record.get();
        if record.netns.is_none() || record.network_released {
            attached.remove(&record.id);
        }
    }
    let attached: Vec<(String, String)> = attached
        .into_iter()
        .map(|id| (id, network::INTERFACE.to_owned()))
        .collect();
    if let Err(error) = runtime.network.gc(&attached).await {
        tracing::warn!(error = %crate::fault::chain(&error), "releasing leaked network attachments");
    }
}

/// Cgroups below our parent that carry an identifier.
async fn cgroups(runtime: &Runtime) -> Result<Vec<String>> {
    let roots = cgroup_roots(runtime)?;
    runtime
        .with_cgroups("looking for leftover cgroups", move |manager| {
            let mut pending: Vec<_> = roots.into_iter().map(|root| (root, 0)).collect();
            let mut found = Vec::new();
            while let Some((path, depth)) = pending.pop() {
                for name in manager.children(&path)? {
                    let child = path.child(&name)?;
                    let id = cgroup::id_of(&name);
                    if id.len() == 64 && ids::is_prefix(id) {
                        found.push(child.as_str().to_owned());
                    }
                    if depth < CGROUP_DEPTH {
                        pending.push((child, depth + 1));
                    }
                }
            }
            Ok(found)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_is_removed() {
        let set = |ids: &[&str]| -> BTreeSet<Leftover> {
            ids.iter()
                .map(|id| Leftover::Shim((*id).to_owned()))
                .collect()
        };
        let (before, now) = (set(&["a", "b"]), set(&["b", "c"]));
        let removed: Vec<_> = twice(&before, &now).cloned().collect();
        assert_eq!(removed, [Leftover::Shim("b".to_owned())]);
    }

    #[test]
    fn a_cgroup_is_known_by_its_last_name() {
        for path in [
            "/pods/pod1/abc",
            "/p.slice/p-abc.slice",
            "/p.slice/q-abc.scope",
        ] {
            assert_eq!(Leftover::Cgroup(path.to_owned()).id(), "abc");
        }
    }
}
