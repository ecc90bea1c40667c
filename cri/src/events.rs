// SPDX-License-Identifier: Apache-2.0
//! Container events for any number of subscribers, over one bounded queue.
//!
//! An event is a hint to look again: it carries the statuses of its moment, and may be lost for a
//! subscriber that falls behind. That subscriber is told so and dropped; it lists and subscribes anew.

use tokio::sync::broadcast;

use crate::v1;

/// How far a subscriber may fall behind: some seconds of a node starting hundreds of pods at once.
const QUEUE: usize = 1024;

/// The queue of container events.
#[derive(Debug)]
pub(crate) struct Events {
    queue: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            queue: broadcast::Sender::new(QUEUE),
        }
    }
}

impl Events {
    /// Tells all subscribers. Nobody listening is fine.
    pub(crate) fn publish(&self, event: v1::ContainerEventResponse) {
        let _ = self.queue.send(event);
    }

    /// Whether building an event is worth the effort.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.queue.receiver_count() > 0
    }

    /// Everything from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<v1::ContainerEventResponse> {
        self.queue.subscribe()
    }
}
