// SPDX-License-Identifier: Apache-2.0
//! Splits the state of a node into messages that ttrpc takes. Pure.

use prost::Message as _;

use super::api::{Container, PodSandbox, SynchronizeRequest};
use super::wire::MESSAGE_MAX;

/// Leaves room for the envelope.
pub(super) const BYTES_MAX: usize = MESSAGE_MAX - (64 << 10);
/// Tag and length of one entry, at most.
const ENTRY_OVERHEAD: usize = 8;

/// The messages in order; all but the last say that more will come. There is always one.
pub(super) fn split(
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
    bytes_max: usize,
) -> Vec<SynchronizeRequest> {
    let mut all = vec![SynchronizeRequest::default()];
    let mut size = 0;
    let mut part_for = |length: usize, all: &mut Vec<SynchronizeRequest>| {
        size += length + ENTRY_OVERHEAD;
        if size > bytes_max && size > length + ENTRY_OVERHEAD {
            size = length + ENTRY_OVERHEAD;
            if let Some(last) = all.last_mut() {
                last.more = true;
            }
            all.push(SynchronizeRequest::default());
        }
    };
    for pod in pods {
        part_for(pod.encoded_len(), &mut all);
        if let Some(last) = all.last_mut() {
            last.pods.push(pod);
        }
    }
    for container in containers {
        part_for(container.encoded_len(), &mut all);
        if let Some(last) = all.last_mut() {
            last.containers.push(container);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_small_and_lose_nothing() {
        let pods: Vec<_> = (0..10)
            .map(|n| PodSandbox {
                id: format!("{n:0100}"),
                ..PodSandbox::default()
            })
            .collect();
        let containers = vec![
            Container {
                id: "x".repeat(900),
                ..Container::default()
            };
            2
        ];
        let parts = split(pods.clone(), containers.clone(), 500);
        assert!(parts.iter().rev().skip(1).all(|part| part.more));
        assert!(!parts.last().unwrap().more);
        let got: Vec<_> = parts.iter().flat_map(|part| part.pods.clone()).collect();
        assert_eq!(got, pods);
        let got: Vec<_> = parts.iter().flat_map(|p| p.containers.clone()).collect();
        assert_eq!(got, containers);
        assert!(
            parts
                .iter()
                .all(|p| p.encoded_len() <= 500 || p.containers.len() == 1)
        );
        assert_eq!(split(Vec::new(), Vec::new(), 500).len(), 1);
    }
}
