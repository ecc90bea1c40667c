// SPDX-License-Identifier: Apache-2.0
//! What a person gets wrong: named precisely, nothing applied, the node stays healthy.

use anyhow::Result;
use tests::TestHost;
use tests::host::output_of;
use tests::pods::{condition, container, script_pod};

/// `podwright apply` of a file that must be refused; gives what it said.
fn refused(host: &TestHost, file: &str, manifest: &str) -> Result<String> {
    let path = host.write(file, manifest)?;
    let output = output_of(&mut host.podwright(&["apply", "-f", &path]))?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        output.stdout.is_empty(),
        "something was applied: {output:?}"
    );
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: good }\n---\n";

const LIST: &str = "apiVersion: v1\nkind: List\nitems:\n\
- { apiVersion: v1, kind: ConfigMap, metadata: { name: listed } }\n\
- { apiVersion: v1, kind: ConfigMap, metadata: { name: wrong }, dat: {} }\n";

#[test]
fn a_manifest_error_names_file_document_and_field_and_applies_nothing() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;

    let unknown = format!(
        "{GOOD}apiVersion: v1\nkind: Pod\nmetadata: {{ name: p }}\nspec:\n  containers:\n  - name: c\n    image: i\n    comand: [x]\n"
    );
    let said = refused(&host, "unknown.yaml", &unknown)?;
    for part in ["unknown.yaml", "document 2", "spec.containers[0].comand"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    let wrong = format!(
        "{GOOD}apiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: d }}\nspec:\n  replicas: three\n  selector: {{}}\n  template: {{}}\n"
    );
    let said = refused(&host, "wrong.yaml", &wrong)?;
    for part in ["wrong.yaml", "document 2", "spec.replicas", "integer"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    let said = refused(&host, "twice.yaml", &format!("{GOOD}{GOOD}"))?;
    for part in ["twice.yaml", "document 2", "good"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    let none = host.kubectl_ok(&["get", "configmap", "good", "--ignore-not-found"])?;
    assert_eq!(none, "");
    // A stock kubectl is refused by the server in its own words.
    let path = host.write("unknown-again.yaml", &unknown)?;
    let output = output_of(&mut host.kubectl(&["create", "-f", &path]))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("unknown field"), "{said}");
    // So it is in a list, of which kubectl makes what is right.
    let path = host.write("list.yaml", LIST)?;
    let output = output_of(&mut host.kubectl(&["create", "-f", &path]))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("unknown field \"dat\""), "{said}");
    host.get(&["configmap", "listed"])?;
    server.stop()?;
    host.down()
}

#[test]
fn what_is_not_there_is_told_in_upstreams_words_and_the_node_stays_ready() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;

    let no_image = script_pod("no-image", "Always", "true")
        .replace("localhost/busybox:1", "localhost:1/nothing:here");
    host.apply(&no_image)?;
    let no_volume = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"no-volume"},"spec":{
        "containers":[{"name":"main","image":"localhost/busybox:1","command":["sleep","1000"]}],
        "volumes":[{"name":"v","configMap":{"name":"absent"}}]}}"#;
    host.apply(no_volume)?;
    let no_listener = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"no-listener"},"spec":{
        "terminationGracePeriodSeconds":1,
        "containers":[{"name":"main","image":"localhost/busybox:1","command":["sleep","1000"],
        "readinessProbe":{"tcpSocket":{"port":9},"periodSeconds":1}}]}}"#;
    host.apply(no_listener)?;

    host.wait_pod("waits for its image", "no-image", |pod| {
        let reason = container(pod, "main")?["state"]["waiting"]["reason"]
            .as_str()?
            .to_owned();
        matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff").then_some(())
    })?;
    let said = host.wait_event("no-image", "Failed")?;
    assert!(said.contains("localhost:1/nothing:here"), "{said}");
    let said = host.wait_event("no-volume", "FailedMount")?;
    assert!(said.contains(r#"configmap "absent" not found"#), "{said}");
    let pod = host.pod("no-volume")?;
    let waiting = container(&pod, "main").map(|c| c["state"]["waiting"]["reason"].clone());
    assert_eq!(waiting, Some("ContainerCreating".into()));
    let said = host.wait_event("no-listener", "Unhealthy")?;
    assert!(said.starts_with("Readiness probe failed: "), "{said}");
    let pod = host.pod("no-listener")?;
    assert_eq!(condition(&pod, "Ready"), Some("False"));
    assert_eq!(pod["status"]["phase"], "Running");

    let node = host.get(&["node", &host.name])?;
    assert_eq!(condition(&node, "Ready"), Some("True"));
    server.stop()?;
    host.down()
}
