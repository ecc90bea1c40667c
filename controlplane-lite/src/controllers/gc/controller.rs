// SPDX-License-Identifier: Apache-2.0
//! Looks at objects whose owners may be gone, on the server, and acts.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::discovery::Served;
use super::super::machinery::owner;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};
use super::decide::{self, Action, Owner, Policy};
use super::graph::{FOREGROUND, Graph, Node, ORPHAN, has_finalizer};
use super::watches;

const WORKERS: usize = 8;

/// What the watches write and the workers read.
pub(crate) struct Shared {
    graph: Mutex<Graph>,
    kinds: Mutex<HashMap<(String, String), Served>>,
    watched: Mutex<HashSet<(String, String)>>,
    queue: Queue<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn put(&self, uid: &str, node: Node) {
        let look = lock(&self.graph).put(uid, node);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    pub(crate) fn remove(&self, uid: &str) {
        let look = lock(&self.graph).remove(uid);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    /// A shared informer feeds this kind.
    pub(crate) fn note_watched(&self, api_version: &str, kind: &str) {
        lock(&self.watched).insert((api_version.to_owned(), kind.to_owned()));
    }

    pub(crate) fn is_watched(&self, api_version: &str, kind: &str) -> bool {
        lock(&self.watched).contains(&(api_version.to_owned(), kind.to_owned()))
    }

    pub(crate) fn set_kinds(&self, kinds: Vec<Served>) {
        *lock(&self.kinds) = kinds.into_iter().map(|kind| (kind.id(), kind)).collect();
    }

    fn kind(&self, api_version: &str, kind: &str) -> Result<Served, SyncError> {
        let id = (api_version.to_owned(), kind.to_owned());
        let found = lock(&self.kinds).get(&id).cloned();
        found.ok_or_else(|| {
            SyncError::Later(format!("the server has no kind {kind} in {api_version}"))
        })
    }
}

/// The garbage collector. Its keys are uids.
pub(crate) struct Controller {
    context: Arc<Context>,
    shared: Arc<Shared>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let shared = Arc::new(Shared {
            graph: Mutex::default(),
            kinds: Mutex::default(),
            watched: Mutex::default(),
            queue: Queue::new(Backoff::CONTROLLER),
        });
        watches::hook_shared(context, &shared);
        Self {
            context: Arc::clone(context),
            shared,
        }
    }

    /// Collects until `stop`. Nothing is looked at before every watch has been through its list.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let ready = CancellationToken::new();
        let watching = watches::run(&self.context, &self.shared, ready.clone(), stop.clone());
        let collecting = async {
            tokio::select! {
                () = ready.cancelled() => {}
                () = stop.cancelled() => return,
            }
            let look = |uid| self.look(uid);
            sync::run("garbagecollector", &self.shared.queue, WORKERS, &stop, look).await;
        };
        tokio::join!(watching, collecting);
    }

    async fn look(&self, uid: String) -> Result<Again, SyncError> {
        let (node, needed) = {
            let graph = lock(&self.shared.graph);
            (graph.get(&uid).cloned(), graph.needs_look(&uid))
        };
        let Some(node) = node.filter(|_| needed) else {
            return Ok(None);
        };
        let kind = self.shared.kind(&node.api_version, &node.kind)?;
        let api = kind.api(&self.context.client, &node.key.namespace);
        let what = format!("{} {}", node.kind, node.key);
        let live = api
            .get_opt(&node.key.name)
            .await
            .attempt(|| format!("reading {what}"))?;
        let Some(live) = live.filter(|l| l.metadata.uid.as_deref() == Some(uid.as_str())) else {
            self.shared.remove(&uid);
            return Ok(None);
        };
        let meta = live.metadata;
        if meta.deletion_timestamp.is_some() {
            return self.finish_deletion(&api, &uid, &meta, &what).await;
        }
        self.collect(&api, &uid, &meta, &what).await?;
        Ok(None)
    }

    /// The object stays, loses some owners, or goes.
    async fn collect(
        &self,
        api: &Api<DynamicObject>,
        uid: &str,
        meta: &ObjectMeta,
        what: &str,
    ) -> Result<(), SyncError> {
        let mut owners = Vec::new();
        for owner in meta.owner_references.iter().flatten() {
            owners.push((owner.uid.clone(), self.ask(owner, meta).await?));
        }
        let dependents = lock(&self.shared.graph).dependents(uid);
        if owners.iter().any(|(_, state)| *state == Owner::Waiting) {
            self.break_cycles(&owners, uid, meta, &dependents, api, what)
                .await?;
        }
        match decide::decide(meta, &owners, !dependents.is_empty()) {
            Action::Nothing => Ok(()),
            Action::Unlink(gone) => {
                let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
                self.unlink(api, meta, &gone, what).await
            }
            Action::Delete(policy) => self.delete(api, meta, policy, what).await,
        }
    }

    /// A dependent that itself waits for its dependents may wait for this object in a circle:
    /// then nobody blocks anybody.
    async fn break_cycles(
        &self,
        owners: &[(String, Owner)],
        uid: &str,
        meta: &ObjectMeta,
        dependents: &[(String, Node)],
        api: &Api<DynamicObject>,
        what: &str,
    ) -> Result<(), SyncError> {
        let circle = dependents.iter().any(|(_, node)| node.waits);
        if !circle || owners.iter().any(|(_, state)| *state == Owner::Solid) {
            return Ok(());
        }
        let mut references = meta.owner_references.clone().unwrap_or_default();
        if references
            .iter()
            .all(|o| o.block_owner_deletion != Some(true))
        {
            return Ok(());
        }
        for reference in &mut references {
            reference.block_owner_deletion = Some(false);
        }
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {"uid": uid, "ownerReferences": references}});
        let result = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("unblocking the owners of {what}"))
    }

    /// The server's word on one owner.
    async fn ask(&self, owner: &OwnerReference, of: &ObjectMeta) -> Result<Owner, SyncError> {
        let kind = self.shared.kind(&owner.api_version, &owner.kind)?;
        let namespace = of.namespace.as_deref().unwrap_or_default();
        if kind.namespaced && namespace.is_empty() {
            // Invalid: nothing of cluster scope can be owned from inside a namespace. Never collected.
            return Ok(Owner::Solid);
        }
        let live = kind
            .api(&self.context.client, namespace)
            .get_opt(&owner.name)
            .await
            .attempt(|| format!("reading owner {} {}", owner.kind, owner.name))?;
        Ok(match live {
            Some(live) if live.metadata.uid.as_deref() == Some(owner.uid.as_str()) => {
                let meta = live.metadata;
                if meta.deletion_timestamp.is_some() && has_finalizer(&meta, FOREGROUND) {
                    Owner::Waiting
                } else {
                    Owner::Solid
                }
            }
            _ => Owner::Dangling,
        })
    }

    /// An object that waits for us: its dependents are let go, or must be gone.
    async fn finish_deletion(
        &self,
        api: &Api<DynamicObject>,
        uid: &str,
        meta: &ObjectMeta,
        what: &str,
    ) -> Result<Again, SyncError> {
        let dependents = lock(&self.shared.graph).dependents(uid);
        if has_finalizer(meta, ORPHAN) {
            for (_, node) in &dependents {
                self.orphan(uid, node).await?;
            }
            self.remove_finalizer(api, meta, ORPHAN, what).await?;
        } else if has_finalizer(meta, FOREGROUND) {
            let blocking: Vec<_> = dependents.iter().filter(|(_, n)| blocks(n, uid)).collect();
            if blocking.is_empty() {
                self.remove_finalizer(api, meta, FOREGROUND, what).await?;
            }
            for (dependent, _) in blocking {
                self.shared.queue.add(dependent.clone());
            }
            // Dependents that do not block go, too, but nobody waits for them.
            for (dependent, node) in &dependents {
                if !node.going && !blocks(node, uid) {
                    self.shared.queue.add(dependent.clone());
                }
            }
        }
        Ok(None)
    }

    async fn orphan(&self, owner: &str, node: &Node) -> Result<(), SyncError> {
        let kind = self.shared.kind(&node.api_version, &node.kind)?;
        let api = kind.api(&self.context.client, &node.key.namespace);
        let what = format!("{} {}", node.kind, node.key);
        let live = api
            .get_opt(&node.key.name)
            .await
            .attempt(|| format!("reading {what}"))?;
        match live {
            Some(live) => self.unlink(&api, &live.metadata, &[owner], &what).await,
            None => Ok(()),
        }
    }

    async fn unlink(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        gone: &[&str],
        what: &str,
    ) -> Result<(), SyncError> {
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = owner::release_patch(meta, gone);
        let result = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("removing owners of {what}"))
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        policy: Policy,
        what: &str,
    ) -> Result<(), SyncError> {
        let params = match policy {
            Policy::Background => DeleteParams::background(),
            Policy::Foreground => DeleteParams::foreground(),
            Policy::Orphan => DeleteParams::orphan(),
        };
        // Both preconditions: if the object changed since it was read, it may have a new owner.
        let params = params.preconditions(Preconditions {
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
        });
        let name = meta.name.as_deref().unwrap_or_default();
        tracing::debug!(what, ?policy, "collected");
        gone_is_fine(api.delete(name, &params).await).attempt(|| format!("deleting {what}"))
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        finalizer: &str,
        what: &str,
    ) -> Result<(), SyncError> {
        let mut left = meta.finalizers.clone().unwrap_or_default();
        left.retain(|f| f != finalizer);
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": left,
        }});
        let result = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("removing finalizer {finalizer} of {what}"))
    }
}

/// The dependent must be gone before its owner `uid` may go.
fn blocks(node: &Node, uid: &str) -> bool {
    let mut references = node.owners.iter().filter(|o| o.uid == uid);
    references.any(|o| o.block_owner_deletion == Some(true))
}
