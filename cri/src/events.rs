// SPDX-License-Identifier: Apache-2.0
//! Container events for any number of subscribers, over one bounded queue.
//!
//! An event is a hint to look again: it carries the statuses of its moment, and may be lost for a
//! subscriber that falls behind. That subscriber is told so and dropped; it lists and subscribes anew.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::v1;
use crate::v1::ContainerEventType::{self as Kind, *};

/// The queue of container events.
#[derive(Debug)]
pub(crate) struct Events {
    queue: broadcast::Sender<Arc<v1::ContainerEventResponse>>,
}

impl Events {
    /// A subscriber may be `queue` events behind.
    pub(crate) fn new(queue: usize) -> Self {
        Self {
            queue: broadcast::Sender::new(queue),
        }
    }

    /// Tells all subscribers. Nobody listening is fine.
    pub(crate) fn publish(&self, event: v1::ContainerEventResponse) {
        let _ = self.queue.send(Arc::new(event));
    }

    /// Whether building an event is worth the effort.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.queue.receiver_count() > 0
    }

    /// Everything from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<v1::ContainerEventResponse>> {
        self.queue.subscribe()
    }
}

/// How much of one object's life subscribers were told. Several tasks see an object change (who
/// starts a container, who watches it end, who removes it); this puts what they tell in order.
#[derive(Debug)]
pub(crate) struct Announced(Mutex<Option<Kind>>);

impl Announced {
    /// Of an object that subscribers find by listing, as it was at `last`; none for a new one.
    pub(crate) fn upto(last: Option<Kind>) -> Self {
        Self(Mutex::new(last))
    }

    /// Tells `kind`, unless it or something later was told, and first what came before it and was not
    /// told yet. `skipped` are the steps that this object never took.
    pub(crate) fn tell(&self, kind: Kind, skipped: &[Kind], mut publish: impl FnMut(Kind)) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let life = [
            ContainerCreatedEvent,
            ContainerStartedEvent,
            ContainerStoppedEvent,
            ContainerDeletedEvent,
        ];
        let due = |step: &Kind| last.is_none_or(|last| *step > last) && *step <= kind;
        for step in life.iter().filter(|step| due(step)) {
            if *step == kind || !skipped.contains(step) {
                publish(*step);
            }
        }
        *last = Some(last.map_or(kind, |last| last.max(kind)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_once_and_in_order() {
        let told = Announced::upto(None);
        let tell = |kind, skipped: &[Kind]| {
            let mut all = Vec::new();
            told.tell(kind, skipped, |step| all.push(step));
            all
        };
        assert_eq!(tell(ContainerCreatedEvent, &[]), [ContainerCreatedEvent]);
        let both = [ContainerStartedEvent, ContainerStoppedEvent];
        assert_eq!(tell(ContainerStoppedEvent, &[]), both);
        assert_eq!(tell(ContainerStartedEvent, &[]), []);
        assert_eq!(tell(ContainerDeletedEvent, &[]), [ContainerDeletedEvent]);
        assert_eq!(tell(ContainerDeletedEvent, &[]), []);
        let told = Announced::upto(Some(ContainerCreatedEvent));
        let mut all = Vec::new();
        told.tell(ContainerDeletedEvent, &both, |step| all.push(step));
        assert_eq!(all, [ContainerDeletedEvent]);
    }
}
