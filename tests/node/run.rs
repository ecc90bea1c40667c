// SPDX-License-Identifier: Apache-2.0
//! `podwright run`: pods with no control plane.

use anyhow::Result;
use serde_json::Value;
use tests::TestHost;
use tests::host::output_of;
use tests::pods::script_pod;

#[test]
fn run_prints_the_logs_and_returns_the_pods_exit_code() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let file = host.write(
        "pod.yaml",
        &script_pod("job", "Never", "echo out; echo err >&2; exit 5"),
    )?;
    let output = output_of(&mut host.podwright(&["run", "-f", &file]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("out\n") && said.contains("err\n"),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let left =
        host.sh("ls run/run 2>/dev/null | wc -l; ip -o link show | grep -cE ' pw' || true")?;
    assert_eq!(left, "0\n0\n");
    host.down()
}

#[test]
fn run_refuses_a_bad_manifest_before_it_starts_anything() -> Result<()> {
    let host = TestHost::new()?;
    let file = host.write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [], hots: 1}\n",
    )?;
    let output = output_of(&mut host.podwright(&["run", "-f", &file]))?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("pod.yaml") && said.contains("spec.hots"),
        "{said}"
    );
    host.down()
}

#[test]
fn run_says_why_a_pod_was_refused() -> Result<()> {
    let host = TestHost::new()?;
    let mut pod: Value = serde_json::from_str(&script_pod("job", "Never", "true"))?;
    pod["spec"]["runtimeClassName"] = "c".into();
    let file = host.write("pod.yaml", &pod.to_string())?;
    let output = output_of(&mut host.podwright(&["run", "-f", &file]))?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let why = "spec.runtimeClassName without an API server is not supported by this kubelet";
    assert!(said.contains(why), "{said}");
    host.down()
}
