// SPDX-License-Identifier: Apache-2.0
//! Pods from a directory of manifests.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use tests::pods::script_pod;
use tests::{TestHost, wait_until};

#[test]
fn a_manifest_in_the_directory_is_a_pod_and_its_removal_ends_it() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.write("data/agent/manifests/broken.yaml", "kind: Pod\nspec: [")?;
    let pod = script_pod("fixed", "Always", "echo static; sleep 1000");
    let file = host.write("data/agent/manifests/fixed.yaml", &pod)?;
    let name = format!("fixed-{}", host.name);
    host.wait_pod_ready(&name)?;
    assert_eq!(host.kubectl_ok(&["logs", &name])?, "static\n");
    fs::remove_file(file)?;
    wait_until("the pod is gone", Duration::from_secs(60), || {
        host.pod(&name).is_err()
    })?;
    server.stop()?;
    host.down()
}
