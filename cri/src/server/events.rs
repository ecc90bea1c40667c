// SPDX-License-Identifier: Apache-2.0
//! GetContainerEvents: a stream that ends when the subscriber falls behind or the daemon stops.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};

use crate::fault::{Fault, Kind};
use crate::runtime::Runtime;
use crate::v1;

/// A stream of events.
pub(crate) type EventStream =
    Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, tonic::Status>> + Send>>;

/// Everything from now on. After an error the stream is over: list, then subscribe anew.
pub(crate) fn subscribe(runtime: &Runtime) -> EventStream {
    let mut lagged = false;
    let stopping = runtime.stopping.clone();
    let events = BroadcastStream::new(runtime.events.subscribe())
        .map(|event| {
            let event = event.map(Arc::unwrap_or_clone);
            event.map_err(|BroadcastStreamRecvError::Lagged(lost)| {
                Fault::new(
                    Kind::Exhausted,
                    format!("this subscriber is too slow: {lost} events were lost"),
                )
                .status()
            })
        })
        .take_while(move |event| !std::mem::replace(&mut lagged, event.is_err()));
    Box::pin(futures::StreamExt::take_until(
        events,
        stopping.cancelled_owned(),
    ))
}
