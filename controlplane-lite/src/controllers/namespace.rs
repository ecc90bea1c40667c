// SPDX-License-Identifier: Apache-2.0
//! Empties a namespace that is being deleted, pods strictly first, and then lets it go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::discovery::{self, Served};
use super::machinery::informer::Change;
use super::machinery::key::Key;
use super::machinery::queue::{Backoff, Queue};
use super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine, is_not_found};

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 4;
/// While something is left the namespace is looked at this often. Pods take their grace period.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Failed deletions back off from half a second, because the usual cause is a pod that still runs.
const BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(500),
    max: Duration::from_secs(30),
};

/// The namespace controller.
pub(crate) struct Controller {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// What is left in a namespace, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remains {
    objects: Vec<(String, usize)>,
    finalizers: Vec<(String, usize)>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(BACKOFF));
        let own = Arc::clone(&queue);
        let informer = &context.informers.namespaces;
        informer.on_change(move |change: &Change<'_, Namespace>| {
            let going = |n: &&Arc<Namespace>| n.metadata.deletion_timestamp.is_some();
            if let Some(namespace) = change.new.filter(going) {
                own.add(Key::of(namespace.as_ref()));
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
        sync::run("namespace", &self.queue, WORKERS, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let live = api
            .get_opt(&key.name)
            .await
            .attempt(|| format!("reading namespace {key}"))?;
        let Some(namespace) = live.filter(|n| n.metadata.deletion_timestamp.is_some()) else {
            return Ok(None);
        };
        if !finalizers(&namespace).iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let kinds = discovery::discover(&self.context.client)
            .await
            .attempt(|| "discovering kinds".to_owned())?;
        let remains = self.empty(&key.name, &kinds).await?;
        if remains.objects.is_empty() {
            self.finalize(namespace).await?;
            return Ok(None);
        }
        self.report(&api, namespace, &remains).await?;
        Ok(Some(LOOK_AGAIN))
    }

    /// Deletes what can be deleted now and says what is left. Pods go before anything else, so that
    /// no process outlives the policies and configuration that it ran under.
    async fn empty(&self, namespace: &str, kinds: &[Served]) -> Result<Remains, SyncError> {
        let mut kinds: Vec<_> = kinds
            .iter()
            .filter(|k| k.namespaced && k.can("list") && k.can("delete"))
            .collect();
        kinds.sort_by_key(|k| k.id() != ("v1".to_owned(), "Pod".to_owned()));
        let mut remains = Remains::default();
        for kind in kinds {
            self.empty_kind(namespace, kind, &mut remains).await?;
            if kind.resource.kind == "Pod" && !remains.objects.is_empty() {
                return Ok(remains);
            }
        }
        Ok(remains)
    }

    async fn empty_kind(
        &self,
        namespace: &str,
        kind: &Served,
        remains: &mut Remains,
    ) -> Result<(), SyncError> {
        let api = kind.api(&self.context.client, namespace);
        let plural = &kind.resource.plural;
        let list = || async {
            api.list(&ListParams::default())
                .await
                .attempt(|| format!("listing {plural} in {namespace}"))
        };
        let before = list().await?;
        for object in before
            .items
            .iter()
            .filter(|o| o.metadata.deletion_timestamp.is_none())
        {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams::background().preconditions(Preconditions {
                uid: object.metadata.uid.clone(),
                resource_version: None,
            });
            gone_is_fine(api.delete(name, &params).await)
                .attempt(|| format!("deleting {plural} {namespace}/{name}"))?;
        }
        if before.items.is_empty() {
            return Ok(());
        }
        let left = list().await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let group = &kind.resource.group;
        let name = if group.is_empty() {
            plural.clone()
        } else {
            format!("{plural}.{group}")
        };
        remains.objects.push((name, left.len()));
        for finalizer in left
            .iter()
            .flat_map(|o| o.metadata.finalizers.iter().flatten())
        {
            match remains.finalizers.iter_mut().find(|(f, _)| f == finalizer) {
                Some((_, count)) => *count += 1,
                None => remains.finalizers.push((finalizer.clone(), 1)),
            }
        }
        Ok(())
    }

    /// Removes our finalizer; the server then removes the namespace.
    async fn finalize(&self, mut namespace: Namespace) -> Result<(), SyncError> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let left: Vec<_> = finalizers(&namespace)
            .into_iter()
            .filter(|f| f != FINALIZER)
            .collect();
        namespace.spec.get_or_insert_default().finalizers = Some(left);
        let action = || format!("finalizing namespace {name}");
        let body = serde_json::to_vec(&namespace)
            .map_err(|error| SyncError::Later(format!("encoding namespace {name}: {error}")))?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)
            .attempt(action)?;
        match self
            .context
            .client
            .request::<serde_json::Value>(request)
            .await
        {
            Err(error) if is_not_found(&error) => Ok(()),
            result => result.attempt(action).map(|_| ()),
        }
    }

    async fn report(
        &self,
        api: &Api<Namespace>,
        mut namespace: Namespace,
        remains: &Remains,
    ) -> Result<(), SyncError> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let status = namespace.status.get_or_insert_default();
        let conditions = status.conditions.get_or_insert_default();
        let before = conditions.clone();
        for new in conditions_of(remains, (self.context.clock)()) {
            set(conditions, new);
        }
        if *conditions == before {
            return Ok(());
        }
        let result = api
            .replace_status(&name, &PostParams::default(), &namespace)
            .await;
        gone_is_fine(result).attempt(|| format!("updating status of namespace {name}"))
    }
}

fn finalizers(namespace: &Namespace) -> Vec<String> {
    let spec = namespace.spec.as_ref();
    spec.and_then(|s| s.finalizers.clone()).unwrap_or_default()
}

/// Upstream's conditions, so that `kubectl describe` shows what a namespace waits for.
fn conditions_of(remains: &Remains, now: Timestamp) -> [NamespaceCondition; 2] {
    let objects: Vec<_> = remains
        .objects
        .iter()
        .map(|(kind, count)| format!("{kind} has {count} resource instances"))
        .collect();
    let finalizers: Vec<_> = remains
        .finalizers
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let condition = |type_: &str, reason: &str, message: String, status: bool| NamespaceCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
    };
    let content = condition(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        format!("Some resources are remaining: {}", objects.join(", ")),
        true,
    );
    let finalizing = if finalizers.is_empty() {
        condition(
            "NamespaceFinalizersRemaining",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".into(),
            false,
        )
    } else {
        condition(
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                finalizers.join(", ")
            ),
            true,
        )
    };
    [content, finalizing]
}

fn set(conditions: &mut Vec<NamespaceCondition>, mut new: NamespaceCondition) {
    if let Some(old) = conditions.iter_mut().find(|c| c.type_ == new.type_) {
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
        *old = new;
    } else {
        conditions.push(new);
    }
}

#[cfg(test)]
mod tests {
    use super::super::machinery::testing::at;
    use super::*;

    #[test]
    fn conditions_say_what_is_left_and_keep_their_time() {
        let remains = Remains {
            objects: vec![("pods".into(), 2)],
            finalizers: Vec::new(),
        };
        let mut conditions = Vec::new();
        for new in conditions_of(&remains, at(1)) {
            set(&mut conditions, new);
        }
        let before = conditions.clone();
        for new in conditions_of(&remains, at(9)) {
            set(&mut conditions, new);
        }
        assert_eq!(conditions, before);
        let message = conditions[0].message.as_deref();
        assert_eq!(
            message,
            Some("Some resources are remaining: pods has 2 resource instances")
        );
    }
}
