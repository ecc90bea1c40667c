// SPDX-License-Identifier: Apache-2.0
//! Pulls whose client hangs up in the middle: they end, as in containerd, and what arrived is not lost.

use std::sync::atomic::{AtomicUsize, Ordering};

use cri::v1;
use tokio::task::JoinHandle;

use crate::node::{Handle, test, until};
use crate::registry::{Gate, Registry};

/// Layers of the registry's image: as many transfers at a time as there are by default.
const LAYERS: usize = 3;

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

/// A client of its own that pulls. Aborting it is hanging up.
fn pull(node: &Handle, image: &str) -> JoinHandle<Result<String, tonic::Status>> {
    let (node, image) = (node.clone(), image.to_owned());
    tokio::spawn(async move {
        let request = v1::PullImageRequest {
            image: spec(&image),
            ..Default::default()
        };
        let answer = node.images().await.pull_image(request).await?;
        Ok(answer.into_inner().image_ref)
    })
}

async fn is_there(node: &Handle, image: &str) -> bool {
    let request = v1::ImageStatusRequest {
        image: spec(image),
        verbose: false,
    };
    let answer = node.images().await.image_status(request).await.unwrap();
    answer.into_inner().image.is_some()
}

async fn reached(what: &str, count: &AtomicUsize, number: usize) {
    until(what, || count.load(Ordering::Relaxed) >= number).await;
}

/// The registry has sent half of every layer, and some of each has arrived.
async fn begun(node: &Handle, gate: &Gate) {
    reached("every layer has begun", &gate.halves, LAYERS).await;
    let partial = node.config().data_dir.join("cri/images/partial");
    until("something of every layer is there", || {
        let files = std::fs::read_dir(&partial).unwrap().flatten();
        let sizes = files.map(|file| file.metadata().map_or(0, |m| m.len()));
        sizes.filter(|size| *size > 0).count() >= LAYERS
    })
    .await;
}

/// Nothing is in the making, and nothing is held.
async fn is_at_rest(node: &Handle) {
    let images = node.config().data_dir.join("cri/images");
    for dir in ["tmp", "leases"] {
        let dir = images.join(dir);
        until("nothing of the pull is left", || {
            std::fs::read_dir(&dir).unwrap().next().is_none()
        })
        .await;
    }
}

#[test]
fn a_client_that_hangs_up_ends_its_pull_and_the_next_one_goes_on() {
    test(|node| async move {
        let registry = Registry::start().await;
        let (image, gate) = (&registry.image, &registry.gate);
        gate.shut(true);
        let first = pull(&node, image);
        begun(&node, gate).await;
        first.abort();
        reached("the registry is hung up on", &gate.hung_up, LAYERS).await;
        is_at_rest(&node).await;
        assert!(!is_there(&node, image).await, "half an image can be seen");
        gate.shut(false);
        let pulled = pull(&node, image).await.unwrap().unwrap();
        assert!(pulled.starts_with("sha256:"), "{pulled}");
        assert_eq!(gate.resumed.load(Ordering::Relaxed), LAYERS);
        assert!(is_there(&node, image).await);
        is_at_rest(&node).await;
    });
}

#[test]
fn a_client_that_hangs_up_leaves_the_others_their_pull() {
    test(|node| async move {
        let registry = Registry::start().await;
        let (image, gate) = (&registry.image, &registry.gate);
        gate.shut(true);
        let first = pull(&node, image);
        begun(&node, gate).await;
        // It may wait for the first one's layers, or get there when those are given up.
        let second = pull(&node, image);
        first.abort();
        reached("the registry is hung up on", &gate.hung_up, LAYERS).await;
        gate.shut(false);
        second.await.unwrap().unwrap();
        assert!(is_there(&node, image).await);
        is_at_rest(&node).await;
    });
}
