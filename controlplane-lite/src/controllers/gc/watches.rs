// SPDX-License-Identifier: Apache-2.0
//! Feeds the graph: from the watches that the controllers have anyway, and from a metadata watch
//! for every other kind that discovery shows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::discovery::{self, Served};
use super::super::machinery::informer::{Change, Informer};
use super::controller::Shared;
use super::graph::Node;

/// How often new kinds are looked for.
const DISCOVER_EVERY: Duration = Duration::from_secs(30);

/// Kinds that come and go in masses and own nothing; upstream leaves them out, too.
const IGNORED: [(&str, &str); 2] = [("v1", "Event"), ("events.k8s.io/v1", "Event")];

/// Lets the shared informers feed the graph.
pub(crate) fn hook_shared(context: &Context, shared: &Arc<Shared>) {
    let i = &context.informers;
    hook(&i.pods, shared);
    hook(&i.nodes, shared);
    hook(&i.services, shared);
    hook(&i.namespaces, shared);
    hook(&i.service_accounts, shared);
    hook(&i.replica_sets, shared);
    hook(&i.deployments, shared);
    hook(&i.endpoint_slices, shared);
    hook(&i.endpoints, shared);
    hook(&i.leases, shared);
}

fn hook<K: Resource<DynamicType = ()>>(informer: &Informer<K>, shared: &Arc<Shared>) {
    let api_version = K::api_version(&()).into_owned();
    let kind = K::kind(&()).into_owned();
    shared.note_watched(&api_version, &kind);
    feed(informer, shared, api_version, kind);
}

fn feed<K: Resource>(
    informer: &Informer<K>,
    shared: &Arc<Shared>,
    api_version: String,
    kind: String,
) {
    let shared = Arc::clone(shared);
    informer.on_change(move |change: &Change<'_, K>| {
        // The same name under another uid is another object: the first one is gone.
        let replaced = match (change.old, change.new) {
            (Some(old), Some(new)) => old.uid() != new.uid(),
            (Some(_), None) => true,
            _ => false,
        };
        if let Some(uid) = change.old.filter(|_| replaced).and_then(|old| old.uid()) {
            shared.remove(&uid);
        }
        if let Some(new) = change.new
            && let Some(uid) = new.uid()
        {
            shared.put(&uid, Node::of(&api_version, &kind, new.meta()));
        }
    });
}

/// Keeps one metadata watch per other kind until `stop`. Sends `ready` once after the first round.
pub(crate) async fn run(
    context: &Context,
    shared: &Arc<Shared>,
    ready: CancellationToken,
    stop: CancellationToken,
) {
    let mut watches: HashMap<(String, String), CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        match discovery::discover(&context.client).await {
            Ok(kinds) => {
                let informers = adjust(context, shared, kinds, &mut watches, &mut tasks, &stop);
                let first = futures::future::join_all(informers.iter().map(|i| i.synced()));
                tokio::select! {
                    _ = first => ready.cancel(),
                    () = stop.cancelled() => {}
                    // One kind that cannot be listed must not hold up the others for ever: what it
                    // owns is read from the server before anything is deleted.
                    () = tokio::time::sleep(DISCOVER_EVERY) => ready.cancel(),
                }
            }
            Err(error) => tracing::warn!(%error, "kinds could not be discovered"),
        }
        let pause = if ready.is_cancelled() {
            DISCOVER_EVERY
        } else {
            Duration::from_secs(1)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

type MetaInformer = Arc<Informer<PartialObjectMeta>>;

fn adjust(
    context: &Context,
    shared: &Arc<Shared>,
    kinds: Vec<Served>,
    watches: &mut HashMap<(String, String), CancellationToken>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Vec<MetaInformer> {
    let wanted: Vec<_> = kinds
        .iter()
        .filter(|kind| is_wanted(shared, kind))
        .cloned()
        .collect();
    watches.retain(|id, token| {
        let keep = wanted.iter().any(|kind| kind.id() == *id);
        if !keep {
            token.cancel();
        }
        keep
    });
    shared.set_kinds(kinds);
    let mut started = Vec::new();
    for kind in wanted {
        if watches.contains_key(&kind.id()) {
            continue;
        }
        let token = stop.child_token();
        watches.insert(kind.id(), token.clone());
        let informer: MetaInformer = Arc::new(Informer::default());
        let (api_version, name) = kind.id();
        feed_dynamic(&informer, shared, api_version, name.clone());
        started.push(Arc::clone(&informer));
        let api: Api<PartialObjectMeta> = Api::all_with(context.client.clone(), &kind.resource);
        tasks.spawn(async move {
            let config = watcher::Config::default();
            let events = watcher::watcher(api, config).default_backoff();
            informer.follow(&name, events, &token).await;
        });
    }
    started
}

fn feed_dynamic(informer: &MetaInformer, shared: &Arc<Shared>, api_version: String, kind: String) {
    feed(informer, shared, api_version, kind);
}

fn is_wanted(shared: &Shared, kind: &Served) -> bool {
    let (api_version, name) = kind.id();
    kind.can("list")
        && kind.can("watch")
        && kind.can("delete")
        && !IGNORED.contains(&(api_version.as_str(), name.as_str()))
        && !shared.is_watched(&api_version, &name)
}
