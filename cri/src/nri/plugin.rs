// SPDX-License-Identifier: Apache-2.0
//! One plugin: who it is, what it wants to hear of, and how it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::api::{self, Event};
use super::connection::{CODE_UNIMPLEMENTED, CallError, Connection};
use crate::fault::{Fault, Result, chain};
use crate::settings::Live;

/// All events there are: bit n-1 is event n.
const ALL_EVENTS: u32 = (1 << (Event::Last as u32 - 1)) - 1;

/// Why a name or an index is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("invalid plugin index {0:?}, must be 2 digits")]
    Index(String),
    #[error("invalid plugin name {0:?}: it needs letters, digits and _ . + - only")]
    Name(String),
    #[error("invalid plugin name {0:?}, idx-pluginname expected")]
    File(String),
}

/// A plugin's two-digit index and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) index: String,
    pub(crate) base: String,
}

impl Identity {
    /// Checks both.
    ///
    /// # Errors
    /// Names the one that is wrong.
    pub(crate) fn new(index: &str, base: &str) -> std::result::Result<Identity, NameError> {
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NameError::Index(index.to_owned()));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
        if base.is_empty() || base.len() > 255 || !base.bytes().all(plain) {
            return Err(NameError::Name(base.to_owned()));
        }
        Ok(Identity {
            index: index.to_owned(),
            base: base.to_owned(),
        })
    }

    /// From the name of a pre-installed plugin's file, `10-name`.
    ///
    /// # Errors
    /// When it has another form.
    pub(crate) fn of_file(name: &str) -> std::result::Result<Identity, NameError> {
        let (index, base) = name
            .split_once('-')
            .ok_or_else(|| NameError::File(name.to_owned()))?;
        Identity::new(index, base)
    }

    /// As conflicts and logs name it.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }
}

/// A plugin that is registered and configured.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) identity: Identity,
    pub(crate) connection: Arc<Connection>,
    events: u32,
    /// Events that it knows only as StateChange: it is older than their own calls.
    by_state_change: AtomicU32,
    settings: Live,
}

fn bit(event: Event) -> u32 {
    1 << (event as u32).saturating_sub(1)
}

impl Plugin {
    /// Sends the configuration, and learns what the plugin wants to hear of.
    ///
    /// # Errors
    /// When it refuses, or wants events that there are not.
    pub(crate) async fn configure(
        identity: Identity,
        connection: Arc<Connection>,
        request: &api::ConfigureRequest,
        settings: Live,
    ) -> Result<Plugin> {
        let name = identity.name();
        let deadline = settings.get().nri.plugin_request_timeout;
        let answer: api::ConfigureResponse = connection
            .call("Configure", request, deadline)
            .await
            .map_err(|e| Fault::internal(format!("configuring NRI plugin {name:?}"), e))?;
        let events = match u32::from_ne_bytes(answer.events.to_ne_bytes()) {
            0 => ALL_EVENTS,
            some => some,
        };
        if events & !ALL_EVENTS != 0 {
            let unknown = events & !ALL_EVENTS;
            return Err(Fault::invalid(format!(
                "NRI plugin {name:?}: invalid plugin events: {unknown:#x}"
            )));
        }
        Ok(Plugin {
            identity,
            connection,
            events,
            by_state_change: AtomicU32::new(0),
            settings,
        })
    }

    pub(crate) fn name(&self) -> String {
        self.identity.name()
    }

    fn deadline(&self) -> Duration {
        self.settings.get().nri.plugin_request_timeout
    }

    /// Whether it has asked for an event, and can still be told of it.
    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0 && !self.connection.is_closed()
    }

    /// Asks for an answer to an event. `None` when the plugin has none: it did not subscribe, or it
    /// was just dropped because it was late or broke the connection.
    ///
    /// # Errors
    /// When it refuses, in its own words.
    pub(crate) async fn ask<Q: prost::Message, A: prost::Message + Default>(
        &self,
        event: Event,
        method: &str,
        request: &Q,
    ) -> Result<Option<A>> {
        if !self.wants(event) {
            return Ok(None);
        }
        let answer = self.connection.call(method, request, self.deadline()).await;
        self.judge(method, answer)
    }

    /// Tells of an event that has no answer; by StateChange if the plugin knows it only so.
    ///
    /// # Errors
    /// When it refuses.
    pub(crate) async fn tell<Q: prost::Message>(
        &self,
        event: Event,
        method: &str,
        request: &Q,
        change: impl Fn() -> api::StateChangeEvent,
    ) -> Result<()> {
        if !self.wants(event) {
            return Ok(());
        }
        if self.by_state_change.load(Ordering::Relaxed) & bit(event) == 0 {
            let answer = self
                .connection
                .call::<_, api::Empty>(method, request, self.deadline())
                .await;
            match answer {
                Err(CallError::Refused { code, .. }) if code == CODE_UNIMPLEMENTED => {
                    self.by_state_change.fetch_or(bit(event), Ordering::Relaxed);
                    tracing::info!(plugin = %self.name(), method, "nri: the plugin is told by StateChange");
                }
                answer => return self.judge(method, answer).map(drop),
            }
        }
        let answer = self
            .connection
            .call::<_, api::Empty>("StateChange", &change(), self.deadline())
            .await;
        match answer {
            // It has subscribed to what it has no code for.
            Err(CallError::Refused { code, .. }) if code == CODE_UNIMPLEMENTED => Ok(()),
            answer => self.judge(method, answer).map(drop),
        }
    }

    fn judge<A>(
        &self,
        method: &str,
        answer: std::result::Result<A, CallError>,
    ) -> Result<Option<A>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_fatal() => {
                tracing::error!(plugin = %self.name(), method, error = %chain(&error), "nri: the plugin is dropped");
                Ok(None)
            }
            Err(error) => {
                let text = format!("NRI plugin {:?} failed {method}", self.name());
                Err(Fault::internal(text, error))
            }
        }
    }

    /// Sends all that exists, in messages of a size that the plugin can take.
    ///
    /// # Errors
    /// When it refuses, is late (all of it has `deadline`), or cannot take parts.
    pub(crate) async fn synchronize(
        &self,
        pods: Vec<api::PodSandbox>,
        containers: Vec<api::Container>,
        deadline: Duration,
    ) -> Result<Vec<api::ContainerUpdate>> {
        let until = tokio::time::Instant::now() + deadline;
        let parts = super::chunks::split(pods, containers, super::chunks::BYTES_MAX);
        let mut updates = Vec::new();
        for part in parts {
            let more = part.more;
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let answer: api::SynchronizeResponse = self
                .connection
                .call("Synchronize", &part, left)
                .await
                .map_err(|e| {
                    Fault::internal(format!("synchronizing NRI plugin {:?}", self.name()), e)
                })?;
            if more && (!answer.more || !answer.update.is_empty()) {
                return Err(Fault::invalid(format!(
                    "NRI plugin {:?} does not handle split sync requests",
                    self.name()
                )));
            }
            updates = answer.update;
        }
        Ok(updates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_are_checked() {
        assert_eq!(Identity::of_file("10-a-b").unwrap().name(), "10-a-b");
        assert_eq!(Identity::of_file("10-a-b").unwrap().base, "a-b");
        for bad in ["a", "1-a", "100-a", "1x-a", "10-", "10-a b"] {
            assert!(Identity::of_file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_event_has_a_bit() {
        assert_eq!(ALL_EVENTS, 0x3fff);
        assert_eq!(bit(Event::RunPodSandbox), 1);
        assert_eq!(bit(Event::ValidateContainerAdjustment), 1 << 13);
    }
}
