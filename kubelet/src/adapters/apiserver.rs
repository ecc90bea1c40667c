// SPDX-License-Identifier: Apache-2.0
//! The API server as a pod source: a watch on the pods bound to this node.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::manager::{Inbox, Source};

/// Feeds the manager until `stop`. The watch lists again after it lost touch, so a missed event is
/// made good; errors back off and never end it.
pub async fn run(client: Client, node_name: String, inbox: Inbox, stop: CancellationToken) {
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut stream = watch(api, config).default_backoff().boxed();
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        let alive = match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(%error, "watching the node's pods");
                true
            }
            Some(Ok(Event::Init)) => {
                listed.clear();
                true
            }
            Some(Ok(Event::InitApply(pod))) => {
                listed.push(pod);
                true
            }
            Some(Ok(Event::InitDone)) => inbox.set(Source::Api, std::mem::take(&mut listed)).await,
            Some(Ok(Event::Apply(pod))) => inbox.upsert(pod).await,
            Some(Ok(Event::Delete(pod))) => inbox.removed(pod).await,
        };
        if !alive {
            return;
        }
    }
}
