// SPDX-License-Identifier: Apache-2.0
//! Turns the runtime's container events into "look again" for the right actor, and lists everything
//! now and then, because events may be lost. A runtime without events is listed every second.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use crate::config::Periods;
use crate::manager::Inbox;
use crate::ports::{Runtime, RuntimeResult};

/// A broken event stream is opened again after this.
const REOPEN: Duration = Duration::from_secs(1);

type Events = BoxStream<'static, RuntimeResult<String>>;

enum Stream {
    Opening(BoxFuture<'static, RuntimeResult<Events>>),
    Open(Events),
    Absent,
}

fn open(runtime: &Arc<dyn Runtime>, after: Duration) -> Stream {
    let runtime = Arc::clone(runtime);
    Stream::Opening(Box::pin(async move {
        tokio::time::sleep(after).await;
        runtime.events().await
    }))
}

/// Resolves to the next event's uid; `None` when the stream changed state instead.
async fn next(stream: &mut Stream, runtime: &Arc<dyn Runtime>) -> Option<String> {
    match stream {
        Stream::Absent => std::future::pending().await,
        Stream::Opening(opening) => {
            *stream = match opening.await {
                Ok(events) => Stream::Open(events),
                Err(error) if error.is_unimplemented() => {
                    tracing::info!("the runtime has no container events, listing instead");
                    Stream::Absent
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot open the runtime's event stream");
                    open(runtime, REOPEN)
                }
            };
            None
        }
        Stream::Open(events) => match events.next().await {
            Some(Ok(uid)) => Some(uid),
            Some(Err(error)) => {
                *stream = match error.is_unimplemented() {
                    true => Stream::Absent,
                    false => open(runtime, REOPEN),
                };
                None
            }
            None => {
                *stream = open(runtime, REOPEN);
                None
            }
        },
    }
}

/// Feeds the manager until `stop`.
pub async fn run(
    runtime: Arc<dyn Runtime>,
    periods: Periods,
    inbox: Inbox,
    stop: CancellationToken,
) {
    let mut stream = open(&runtime, Duration::ZERO);
    let mut last_list = None::<tokio::time::Instant>;
    loop {
        let period = match stream {
            Stream::Open(_) => periods.relist_with_events,
            _ => periods.relist_without_events,
        };
        let due = last_list.map_or_else(tokio::time::Instant::now, |last| last + period);
        tokio::select! {
            () = stop.cancelled() => return,
            event = next(&mut stream, &runtime) => {
                if let Some(uid) = event && !inbox.changed(uid).await {
                    return;
                }
            }
            () = tokio::time::sleep_until(due) => {
                last_list = Some(tokio::time::Instant::now());
                match runtime.list().await {
                    Ok(pods) => {
                        if !inbox.listing(pods).await {
                            return;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot list the runtime's pods"),
                }
            }
        }
    }
}
