// SPDX-License-Identifier: Apache-2.0
//! Events: equal ones are counted on one object, floods are cut off per object, everything is best
//! effort. Without an API server events go to the log.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ports::{EventType, Events};

/// Events that wait; more are dropped.
const QUEUE: usize = 1000;
/// Distinct events that are remembered for counting (client-go's cache size).
const REMEMBERED_MAX: usize = 4096;
/// Per object: a burst of 25, then one every five minutes (client-go's spam filter).
const BURST: f64 = 25.0;
const REFILL_PER_SEC: f64 = 1.0 / 300.0;
/// Deadline of one call.
const CALL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Record {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// The recorder; give its [`Recorder::run`] a task.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
    log_only: bool,
}

/// The writing half.
pub struct Writer {
    queue: mpsc::Receiver<Record>,
    client: Option<Client>,
    node_name: String,
    known: HashMap<String, (String, i32, Timestamp)>,
    buckets: HashMap<String, (f64, Timestamp)>,
}

/// Both halves. Without a client, events go to the log only.
pub fn recorder(client: Option<Client>, node_name: String) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let recorder = Recorder {
        queue: sender,
        log_only: client.is_none(),
    };
    let writer = Writer {
        queue: receiver,
        client,
        node_name,
        known: HashMap::new(),
        buckets: HashMap::new(),
    };
    (recorder, writer)
}

impl Events for Recorder {
    fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: String) {
        let object = about.name.as_deref().unwrap_or_default();
        // Where the log is all there is, what is wrong has to be seen in it.
        if self.log_only && kind == EventType::Warning {
            tracing::warn!(object, reason, message, "event");
        } else {
            tracing::info!(object, kind = kind.as_str(), reason, message, "event");
        }
        // Best effort by contract: with a full queue the log line is all that remains.
        let _ = self.queue.try_send(Record {
            about,
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        });
    }
}

fn key(record: &Record) -> String {
    let about = &record.about;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    [
        &text(&about.kind),
        &text(&about.namespace),
        &text(&about.name),
        &text(&about.uid),
        &text(&about.field_path),
        &record.kind.as_str().to_owned(),
        &record.reason,
        &record.message,
    ]
    .map(String::as_str)
    .join("\u{0}")
}

impl Writer {
    /// Writes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let record = tokio::select! {
                () = stop.cancelled() => return,
                record = self.queue.recv() => record,
            };
            let Some(record) = record else {
                return;
            };
            let Some(client) = self.client.clone() else {
                continue;
            };
            if !self.within_budget(&record) {
                continue;
            }
            match tokio::time::timeout(CALL, self.write(&client, record)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an event was not written"),
                Err(_) => tracing::debug!("an event was not written in time"),
            }
        }
    }

    fn within_budget(&mut self, record: &Record) -> bool {
        if self.buckets.len() > REMEMBERED_MAX {
            self.buckets.clear();
        }
        let object = record.about.uid.clone().unwrap_or_default();
        let (tokens, last) = self.buckets.entry(object).or_insert((BURST, record.at));
        let waited = record.at.duration_since(*last).as_secs_f64().max(0.0);
        *tokens = (*tokens + waited * REFILL_PER_SEC).min(BURST);
        *last = record.at;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    async fn write(&mut self, client: &Client, record: Record) -> Result<(), Error> {
        let namespace = record
            .about
            .namespace
            .clone()
            .filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = key(&record);
        if let Some((name, count, _)) = self.known.get(&key).cloned() {
            let count = count.saturating_add(1);
            let patch = serde_json::json!({"count": count, "lastTimestamp": Time(record.at), "message": record.message});
            match api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => {
                    self.known.insert(key, (name, count, record.at));
                    return Ok(());
                }
                // It has expired: begin anew.
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(&record, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.known.len() >= REMEMBERED_MAX {
            self.forget_half();
        }
        self.known.insert(key, (name, 1, record.at));
        Ok(())
    }

    fn forget_half(&mut self) {
        let mut times: Vec<Timestamp> = self.known.values().map(|(_, _, at)| *at).collect();
        times.sort();
        if let Some(middle) = times.get(times.len() / 2).copied() {
            self.known.retain(|_, (_, _, at)| *at > middle);
        }
    }

    fn event(&self, record: &Record, namespace: &str) -> Event {
        let object = record.about.name.clone().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", record.at.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..Default::default()
            },
            involved_object: record.about.clone(),
            type_: Some(record.kind.as_str().to_owned()),
            reason: Some(record.reason.clone()),
            message: Some(record.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(record.at)),
            last_timestamp: Some(Time(record.at)),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(self.node_name.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            ..Default::default()
        }
    }
}
