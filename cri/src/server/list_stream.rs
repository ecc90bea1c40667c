// SPDX-License-Identifier: Apache-2.0
//! The Stream* calls: the same lists as their List* twins, in messages of bounded size (KEP-5825).

use std::pin::Pin;

use prost::Message;
use tonic::{Response, Status};

/// A message holds items up to this size, and always at least one: far below the 16 MiB that a
/// client takes, and few enough messages that their number costs nothing.
const CHUNK_BYTES: usize = 1 << 20;

/// The answer of a Stream* call.
pub(super) type Chunks<R> = Pin<Box<dyn futures::Stream<Item = Result<R, Status>> + Send>>;

/// Sends `items` in their order; `wrap` makes a message of some of them. Nothing is sent for no items.
pub(super) fn stream<T, R>(
    items: Vec<T>,
    wrap: impl Fn(Vec<T>) -> R + Send + 'static,
) -> Response<Chunks<R>>
where
    T: Message + 'static,
    R: Send + 'static,
{
    let chunks = chunks(items, CHUNK_BYTES).map(move |chunk| Ok(wrap(chunk)));
    Response::new(Box::pin(tokio_stream::iter(chunks)))
}

fn chunks<T: Message>(items: Vec<T>, limit: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = rest.next()?;
        let mut size = first.encoded_len();
        let mut chunk = vec![first];
        while let Some(next) = rest.next_if(|next| size + next.encoded_len() <= limit) {
            size += next.encoded_len();
            chunk.push(next);
        }
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn every_item_is_in_one_message() {
        let item = |length: usize| v1::KeyValue {
            key: "k".repeat(length),
            value: Default::default(),
        };
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            let items = lengths.iter().map(|l| item(*l)).collect();
            chunks(items, 100).map(|chunk| chunk.len()).collect()
        };
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        assert_eq!(sizes(&[10; 20]), [8, 8, 4]);
        assert_eq!(sizes(&[500, 1, 500]), [1, 1, 1]);
    }
}
