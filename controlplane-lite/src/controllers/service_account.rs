// SPDX-License-Identifier: Apache-2.0
//! A ServiceAccount named `default` in every active namespace, made again when somebody deletes it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::machinery::informer::Change;
use super::machinery::key::Key;
use super::machinery::queue::{Backoff, Queue};
use super::machinery::sync::{
    self, Again, Attempt, SyncError, is_already_exists, is_namespace_terminating,
};

const NAME: &str = "default";

/// The ServiceAccount controller. Its keys are namespaces.
pub(crate) struct Controller {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let namespaces = Arc::clone(&queue);
        let informers = &context.informers;
        informers
            .namespaces
            .on_change(move |change: &Change<'_, Namespace>| {
                if let Some(namespace) = change.new {
                    namespaces.add(Key::of(namespace.as_ref()));
                }
            });
        let accounts = Arc::clone(&queue);
        informers
            .service_accounts
            .on_change(move |change: &Change<'_, ServiceAccount>| {
                let gone = change.latest().filter(|_| change.new.is_none());
                if let Some(account) = gone.filter(|a| a.metadata.name.as_deref() == Some(NAME)) {
                    accounts.add(Key::new(
                        "",
                        account.metadata.namespace.clone().unwrap_or_default(),
                    ));
                }
            });
        Self {
            context: Arc::clone(context),
            queue,
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("serviceaccount", &self.queue, 1, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let informers = &self.context.informers;
        let active = informers.namespaces.get(&key).is_some_and(|namespace| {
            let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
            namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
        });
        let exists = informers
            .service_accounts
            .get(&Key::new(&key.name, NAME))
            .is_some();
        if !active || exists {
            return Ok(None);
        }
        let api: Api<ServiceAccount> = Api::namespaced(self.context.client.clone(), &key.name);
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(key.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match api.create(&PostParams::default(), &account).await {
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => Ok(None),
            result => result
                .attempt(|| format!("creating the default service account of {key}"))
                .map(|_| None),
        }
    }
}
