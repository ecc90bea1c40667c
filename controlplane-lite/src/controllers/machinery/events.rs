// SPDX-License-Identifier: Apache-2.0
//! Events (core/v1) about objects: sent by one task, counted up when the same thing happens again.
//!
//! Recording never blocks and never fails: events inform people, and no controller may wait for
//! them. When the server cannot keep up, further events are dropped and counted in the log.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait for the server. More than this and the newest is dropped.
const WAITING_MAX: usize = 1024;
/// Distinct events that are remembered for counting. When it is full, it starts over.
const REMEMBERED_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    type_: &'static str,
    reason: &'static str,
    message: String,
}

#[derive(Debug)]
struct Occurrence {
    component: &'static str,
    about: ObjectReference,
    same: Same,
    at: Timestamp,
}

#[derive(Clone, Debug)]
struct Sent {
    name: String,
    count: i32,
}

/// Records events of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Occurrence>,
    clock: super::Clock,
}

impl Recorder {
    /// The recorder, and the future that sends until `stop` and then sends what is waiting.
    pub(crate) fn new(
        client: Client,
        component: &'static str,
        clock: super::Clock,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let sending = send_all(client, receiver, stop);
        let recorder = Self {
            component,
            sender,
            clock,
        };
        (recorder, sending)
    }

    /// A recorder that speaks for another component over the same task.
    pub(crate) fn speaking_as(&self, component: &'static str) -> Self {
        Self {
            component,
            ..self.clone()
        }
    }

    pub(crate) fn normal<K>(&self, about: &K, reason: &'static str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record(about, "Normal", reason, message.into());
    }

    pub(crate) fn warning<K>(&self, about: &K, reason: &'static str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record(about, "Warning", reason, message.into());
    }

    fn record<K>(&self, about: &K, type_: &'static str, reason: &'static str, message: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = about.object_ref(&());
        let occurrence = Occurrence {
            component: self.component,
            same: Same {
                uid: about.uid.clone().unwrap_or_default(),
                type_,
                reason,
                message,
            },
            about,
            at: (self.clock)(),
        };
        if self.sender.try_send(occurrence).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

async fn send_all(
    client: Client,
    mut receiver: mpsc::Receiver<Occurrence>,
    stop: CancellationToken,
) {
    let mut sent: HashMap<Same, Sent> = HashMap::new();
    loop {
        let occurrence = tokio::select! {
            biased;
            occurrence = receiver.recv() => occurrence,
            () = stop.cancelled() => None,
        };
        let Some(occurrence) = occurrence else { return };
        if sent.len() >= REMEMBERED_MAX {
            sent.clear();
        }
        if let Err(error) = send(&client, &occurrence, &mut sent).await {
            tracing::debug!(reason = occurrence.same.reason, %error, "event not sent");
        }
    }
}

async fn send(
    client: &Client,
    occurrence: &Occurrence,
    sent: &mut HashMap<Same, Sent>,
) -> Result<(), kube::Error> {
    let namespace = event_namespace(&occurrence.about);
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Some(earlier) = sent.get_mut(&occurrence.same) {
        let count = earlier.count.saturating_add(1);
        let patch = serde_json::json!({"count": count, "lastTimestamp": Time(occurrence.at)});
        let result = api
            .patch(
                &earlier.name,
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await;
        match result {
            Ok(_) => {
                earlier.count = count;
                return Ok(());
            }
            // It has expired: begin a new one.
            Err(error) if super::sync::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let event = first(occurrence, &namespace);
    let name = event.metadata.name.clone().unwrap_or_default();
    api.create(&PostParams::default(), &event).await?;
    sent.insert(occurrence.same.clone(), Sent { name, count: 1 });
    Ok(())
}

/// Events about cluster-scoped objects live in `default`.
fn event_namespace(about: &ObjectReference) -> String {
    about
        .namespace
        .clone()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or_else(|| "default".into())
}

fn first(occurrence: &Occurrence, namespace: &str) -> Event {
    let component = occurrence.component;
    let about = occurrence.about.name.as_deref().unwrap_or("unknown");
    // The suffix tells two events of one moment apart; people never type it.
    let suffix = format!(
        "{:x}{:04x}",
        occurrence.at.as_nanosecond(),
        rand::random::<u16>()
    );
    let now = Some(Time(occurrence.at));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{suffix}")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: occurrence.about.clone(),
        type_: Some(occurrence.same.type_.into()),
        reason: Some(occurrence.same.reason.into()),
        message: Some(occurrence.same.message.clone()),
        count: Some(1),
        first_timestamp: now.clone(),
        last_timestamp: now,
        source: Some(EventSource {
            component: Some(component.into()),
            host: None,
        }),
        reporting_component: Some(component.into()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}
