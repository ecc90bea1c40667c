// SPDX-License-Identifier: Apache-2.0
//! `watch`: a stream of lines, one JSON object each.
//!
//! A watcher is a position in the history of a resource. It has no queue of its own: it is woken
//! up, takes what is new, and a client that reads slowly simply takes later. One that falls out
//! of the history is told to list again (410).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use rand::Rng;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};

use super::read::{not_in_future, selector};
use crate::{
    apiserver::{
        api::{Api, Call},
        body::{self, Body},
        error::ApiError,
        present::{self, Form},
        resource::Resource,
        selector::Selector,
    },
    store::{Event, EventKind},
};

/// Time between bookmarks of a quiet watch (upstream: about a minute).
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Shortest life of a watch for which the client named none (upstream: `--min-request-timeout`).
const LIFE_MIN_SECS: u64 = 1800;
/// Events taken at a time, so that one watcher does not hold much.
const TAKE: usize = 256;

/// Answers with a stream of events.
pub(crate) fn watch(api: &Arc<Api>, call: &Call) -> Result<Response<Body>, ApiError> {
    let selector = selector(call)?;
    let revision = call.query.number("resourceVersion")?.unwrap_or(0);
    not_in_future(api, revision)?;
    let initial_events = call.query.flag("sendInitialEvents");
    if initial_events && call.query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(ApiError::bad_request(
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let life = call.query.number("timeoutSeconds")?.filter(|s| *s > 0);
    let life = life.unwrap_or_else(|| rand::rng().random_range(LIFE_MIN_SECS..2 * LIFE_MIN_SECS));
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let mut watcher = Watcher {
        row: call.row,
        prefix: call.row.prefix(&call.target.namespace),
        form: call.form,
        selector,
        wake: api.store.subscribe(call.row.stored),
        after: revision,
        bookmarks,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        // A century is for ever, and does not overflow the clock.
        deadline: Instant::now() + Duration::from_secs(life.min(3_155_760_000)),
        ready: VecDeque::new(),
        ended: false,
        api: api.clone(),
    };
    if revision == 0 || initial_events {
        watcher.start_with_state(initial_events && bookmarks)?;
    } else if api.store.events(call.row.stored, revision, 1).is_err() {
        return Err(ApiError::expired(too_old(revision)));
    }
    let lines = futures::stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|bytes| (bytes, watcher))
    });
    let mut response = Response::new(body::stream(lines));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    Ok(response)
}

fn too_old(revision: u64) -> String {
    format!("too old resource version: {revision}")
}

struct Watcher {
    api: Arc<Api>,
    row: &'static Resource,
    prefix: String,
    form: Form,
    selector: Selector,
    wake: Receiver<u64>,
    /// Everything up to this revision has been sent.
    after: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl Watcher {
    /// Sends the current state as if it had just been added.
    fn start_with_state(&mut self, mark_end: bool) -> Result<(), ApiError> {
        let snapshot = self.api.store.range(&self.prefix, None);
        let snapshot = snapshot.map_err(|e| ApiError::internal(&e))?;
        for object in snapshot.objects.iter().filter(|o| self.selector.matches(o)) {
            let shown = present::watched(self.row, self.form, object);
            self.ready.push_back(present::watch_line("ADDED", &shown));
        }
        self.after = snapshot.revision;
        if mark_end {
            let line = present::bookmark(self.row, self.form, self.after, true);
            self.ready.push_back(line);
        }
        Ok(())
    }

    /// The next bytes to send, or nothing at the end. Dropping it loses nothing but the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.ready.is_empty() {
                return Some(join(&mut self.ready));
            }
            if self.ended {
                return None;
            }
            self.wake.borrow_and_update();
            self.take();
            if !self.ready.is_empty() || self.ended {
                continue;
            }
            tokio::select! {
                changed = self.wake.changed() => self.ended = changed.is_err(),
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    let line = present::bookmark(self.row, self.form, self.after, false);
                    self.ready.push_back(line);
                }
                () = sleep_until(self.deadline) => return None,
                () = self.api.stop.cancelled() => return None,
            }
        }
    }

    /// Takes new events until there is something to send or nothing more.
    fn take(&mut self) {
        loop {
            let Ok(batch) = self.api.store.events(self.row.stored, self.after, TAKE) else {
                let status = ApiError::expired(too_old(self.after)).status();
                let line = present::watch_line("ERROR", status.to_string().as_bytes());
                self.ready.push_back(line);
                self.ended = true;
                return;
            };
            for event in &batch.events {
                if let Some(line) = self.line(event) {
                    self.ready.push_back(line);
                }
            }
            self.after = batch.upto;
            if batch.events.is_empty() || !self.ready.is_empty() {
                return;
            }
        }
    }

    /// What an event means for this watcher: a change of an object that begins to be selected is
    /// an addition, and one that ceases to be is a deletion.
    fn line(&self, event: &Event) -> Option<Bytes> {
        if !event.object.key().starts_with(&self.prefix) {
            return None;
        }
        if self.selector.is_empty() {
            return Some(present::natural_line(self.row, self.form, event));
        }
        let before = event.previous.as_ref().filter(|p| self.selector.matches(p));
        let now = event.kind != EventKind::Deleted && self.selector.matches(&event.object);
        let kind = match (before, now) {
            (Some(_), true) => "MODIFIED",
            (None, true) => "ADDED",
            (Some(_), false) => "DELETED",
            (None, false) => return None,
        };
        if kind == present::natural_kind(event.kind) {
            return Some(present::natural_line(self.row, self.form, event));
        }
        let shown = match before {
            Some(before) if !now => {
                present::watched(self.row, self.form, &before.at_revision(event.revision))
            }
            _ => present::watched(self.row, self.form, &event.object),
        };
        Some(present::watch_line(kind, &shown))
    }
}

fn join(lines: &mut VecDeque<Bytes>) -> Bytes {
    if lines.len() == 1 {
        return lines.pop_front().expect("just counted");
    }
    let mut joined = BytesMut::new();
    for line in lines.drain(..) {
        joined.extend_from_slice(&line);
    }
    joined.freeze()
}
