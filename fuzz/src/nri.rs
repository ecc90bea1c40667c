// SPDX-License-Identifier: Apache-2.0
//! What an NRI plugin sends: frames, ttrpc messages, protobuf, and the answers that are merged.
//! Nothing may panic, what is taken apart survives the way back, and no length makes memory grow.

use cri::nri::api;
use cri::nri::merge::{Creation, Owners, Updates};
use cri::nri::wire::{self, Demux};
use prost::Message as _;

/// The first byte says in what parts the rest arrives.
pub fn check(data: &[u8]) {
    let Some((&size, bytes)) = data.split_first() else {
        return;
    };
    let mut demux = Demux::default();
    for part in bytes.chunks(usize::from(size).max(1)) {
        if demux.feed(part).is_err() {
            return;
        }
        while let Some((connection, message)) = demux.next_message() {
            round(connection, &message);
            payload(&message.payload);
        }
    }
}

fn round(connection: u32, message: &wire::Message) {
    let bytes = wire::encode(connection, message).expect("it came in a message of legal length");
    let mut demux = Demux::default();
    demux.feed(&bytes).expect("legal");
    assert_eq!(
        demux.next_message().as_ref(),
        Some(&(connection, message.clone()))
    );
}

fn payload(bytes: &[u8]) {
    let mut inner = vec![bytes.to_vec()];
    if let Ok(request) = api::TtrpcRequest::decode(bytes) {
        inner.push(request.payload);
    }
    if let Ok(response) = api::TtrpcResponse::decode(bytes) {
        inner.push(response.payload);
    }
    for bytes in inner {
        let bytes = bytes.as_slice();
        if let Ok(answer) = api::CreateContainerResponse::decode(bytes) {
            create(answer);
        }
        if let Ok(request) = api::UpdateContainersRequest::decode(bytes) {
            let mut updates = Updates::default();
            let _ = updates.apply(request.update, "00-a", &mut Owners::default());
            drop(updates.into_list());
        }
        let _ = api::RegisterPluginRequest::decode(bytes);
        let _ = api::SynchronizeResponse::decode(bytes);
        let _ = api::ConfigureResponse::decode(bytes);
    }
}

/// The same answer from two plugins: what one sets belongs to it, unless it sets nothing.
fn create(answer: api::CreateContainerResponse) {
    let container = api::Container {
        id: "c".to_owned(),
        env: vec!["A=1".to_owned()],
        ..api::Container::default()
    };
    let mut creation = Creation::new(container);
    for plugin in ["00-a", "10-b"] {
        let taken = creation.apply(answer.adjust.clone(), answer.update.clone(), plugin);
        if let Err(error) = taken {
            assert!(!error.to_string().is_empty());
            return;
        }
    }
    let linux = creation.adjust.linux.unwrap_or_default();
    assert!(linux.cgroups_path.is_empty(), "two plugins set one path");
    assert!(
        creation.adjust.args.is_empty(),
        "two plugins set the arguments"
    );
}
