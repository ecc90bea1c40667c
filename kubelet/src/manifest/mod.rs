// SPDX-License-Identifier: Apache-2.0
//! Manifests: text in, pods out, or problems by file, document and field path. Pure. No API server
//! has seen these pods, so its part of the work is done here: unknown fields are refused, defaults
//! are filled in, values are checked.

mod defaults;
mod validate;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use defaults::apply as apply_defaults;

use crate::pod::labels;

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: document {document}: {path}{}{problem}", if path.is_empty() { "" } else { ": " })]
pub struct ManifestError {
    /// The file, as it was named.
    pub file: String,
    /// Which document of the file, from 1.
    pub document: usize,
    /// The field, or empty when the document as a whole is meant.
    pub path: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

/// Reads one file of one or several YAML or JSON documents. Good documents are answered beside the
/// problems of bad ones; defaults are not applied yet.
pub fn parse(file: &str, text: &str) -> (Vec<Pod>, Vec<ManifestError>) {
    let (mut pods, mut errors) = (Vec::new(), Vec::new());
    let documents = documents(text);
    for (index, document) in documents.iter().enumerate() {
        let problem = |path: &str, problem: String| ManifestError {
            file: file.to_owned(),
            document: index + 1,
            path: path.to_owned(),
            problem,
        };
        match read_document(document) {
            Ok(found) => pods.extend(found),
            Err(problems) => errors.extend(
                problems
                    .into_iter()
                    .map(|(path, text)| problem(&path, text)),
            ),
        }
    }
    (pods, errors)
}

/// Everything that a static pod needs before it can run: defaults, checks, identity.
///
/// # Errors
/// All problems with the values.
pub fn finish(
    pod: Pod,
    file: &str,
    node_name: &str,
    now: Timestamp,
) -> Result<Pod, Vec<ManifestError>> {
    let mut pod = pod;
    defaults::apply(&mut pod);
    let problems = validate::check(&pod);
    if problems.is_empty() {
        return Ok(identify(pod, file, node_name, now));
    }
    let error = |(path, problem): (String, String)| ManifestError {
        file: file.to_owned(),
        document: 1,
        path: format!(
            "pod {}: {path}",
            pod.metadata.name.as_deref().unwrap_or_default()
        ),
        problem,
    };
    Err(problems.into_iter().map(error).collect())
}

/// Splits a stream at lines that are `---`, as YAML does outside of block scalars (whose lines are
/// indented). Empty documents are dropped.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
            continue;
        }
        if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let blank = |document: &String| {
        document.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        })
    };
    documents
        .into_iter()
        .filter(|document| !blank(document))
        .collect()
}

type Problems = Vec<(String, String)>;

fn read_document(text: &str) -> Result<Vec<Pod>, Problems> {
    // 0644 is octal in every Kubernetes manifest; and `y` is a letter, only true and false are not.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| vec![(String::new(), first_line(&error.to_string()))])?;
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match kind {
        "Pod" => Ok(vec![read_pod(value, "")?]),
        "PodList" | "List" => {
            let items = value
                .get("items")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let (mut pods, mut problems) = (Vec::new(), Vec::new());
            for (index, mut item) in items.into_iter().enumerate() {
                if let Some(item) = item.as_object_mut() {
                    item.entry("kind").or_insert_with(|| "Pod".into());
                    item.entry("apiVersion").or_insert_with(|| "v1".into());
                }
                match read_pod(item, &format!("items[{index}]")) {
                    Ok(pod) => pods.push(pod),
                    Err(found) => problems.extend(found),
                }
            }
            if problems.is_empty() {
                Ok(pods)
            } else {
                Err(problems)
            }
        }
        "" => Err(vec![(
            "kind".to_owned(),
            "required, expected Pod".to_owned(),
        )]),
        other => Err(vec![(
            "kind".to_owned(),
            format!("is {other:?}, expected Pod: without an API server only pods can run"),
        )]),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "" | ".") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

fn read_pod(value: Value, prefix: &str) -> Result<Pod, Problems> {
    let version = value.get("apiVersion").and_then(Value::as_str);
    if version != Some("v1") {
        let found = version.unwrap_or_default();
        return Err(vec![(
            join(prefix, "apiVersion"),
            format!("is {found:?}, expected \"v1\""),
        )]);
    }
    let pod: Pod = serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        vec![(
            join(prefix, path.trim_start_matches('.')),
            error.into_inner().to_string(),
        )]
    })?;
    let mut problems = Vec::new();
    // What the type does not know does not come back out of it.
    let known = serde_json::to_value(&pod).unwrap_or(Value::Null);
    unknown_fields(&value, &known, prefix, &mut problems);
    if problems.is_empty() {
        Ok(pod)
    } else {
        Err(problems)
    }
}

fn unknown_fields(given: &Value, known: &Value, path: &str, problems: &mut Problems) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = join(path, key);
                match known.get(key) {
                    Some(known) => unknown_fields(value, known, &path, problems),
                    None if value.is_null() => {}
                    None => problems.push((path, "unknown field".to_owned())),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                unknown_fields(given, known, &format!("{path}[{index}]"), problems);
            }
        }
        _ => {}
    }
}

/// Name, uid and annotations of a static pod. The uid is a hash of node, file and content: a changed
/// manifest is another pod.
fn identify(mut pod: Pod, file: &str, node_name: &str, now: Timestamp) -> Pod {
    let own_uid = pod.metadata.uid.take().filter(|uid| !uid.is_empty());
    let content = serde_json::to_vec(&pod).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [node_name.as_bytes(), file.as_bytes(), content.as_slice()] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let id: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = pod.metadata.name.clone().unwrap_or_default();
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(own_uid.unwrap_or_else(|| id.clone()));
    pod.metadata.generation = Some(1);
    pod.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    let annotations: &mut BTreeMap<_, _> = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(labels::CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.insert(labels::CONFIG_HASH.to_owned(), id);
    annotations.insert(labels::CONFIG_SEEN.to_owned(), now.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node_name.to_owned());
        // A node that is NotReady keeps its static pods.
        spec.tolerations.get_or_insert_default().push(Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Default::default()
        });
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n";

    fn errors(text: &str) -> Vec<String> {
        let (pods, errors) = parse("f.yaml", text);
        let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for pod in pods {
            let problems = finish(pod, "f.yaml", "n", Timestamp::UNIX_EPOCH)
                .err()
                .unwrap_or_default();
            texts.extend(problems.iter().map(ToString::to_string));
        }
        texts
    }

    #[test]
    fn good_documents_are_read_beside_bad_ones() {
        let (pods, errors) = parse(
            "f.yaml",
            &format!("# only a comment\n---\n{GOOD}---\nkind: Service\n"),
        );
        assert_eq!(pods.len(), 1);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0]
                .to_string()
                .starts_with("f.yaml: document 2: kind: is \"Service\", expected Pod")
        );
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_named_by_path() {
        let typo = GOOD.replace("image: x", "image: x, imagePullPolice: Always");
        assert_eq!(
            errors(&typo),
            ["f.yaml: document 1: spec.containers[0].imagePullPolice: unknown field"]
        );
        let wrong = GOOD.replace("image: x", "image: x, ports: [{containerPort: http}]");
        let found = errors(&wrong);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with(
                "f.yaml: document 1: spec.containers[0].ports[0].containerPort: invalid type"
            ),
            "{found:?}"
        );
    }

    #[test]
    fn broken_yaml_is_an_error_and_no_panic() {
        for text in [
            "a: b: c",
            "{",
            "- x\n y",
            "\u{0}",
            "kind: Pod\nkind: Pod\napiVersion: v1",
        ] {
            assert_eq!(errors(text).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn values_are_checked() {
        let cases = [
            ("name: a}", "name: A_b}", "metadata.name"),
            ("image: x", "image: ''", "spec.containers[0].image"),
            (
                "{name: c, image: x}",
                "{name: c, image: x}, {name: c, image: y}",
                "spec.containers[1].name",
            ),
            (
                "image: x",
                "image: x, volumeMounts: [{name: v, mountPath: /v}]",
                "spec.containers[0].volumeMounts[0].name",
            ),
            (
                "image: x",
                "image: x, ports: [{containerPort: 70000}]",
                "spec.containers[0].ports[0].containerPort",
            ),
            (
                "image: x",
                "image: x, livenessProbe: {periodSeconds: 3}",
                "spec.containers[0].livenessProbe",
            ),
            (
                "image: x",
                "image: x, resources: {requests: {cpu: lots}}",
                "spec.containers[0].resources.requests[cpu]",
            ),
            (
                "image: x}]",
                "image: x}], restartPolicy: Sometimes",
                "spec.restartPolicy",
            ),
            (
                "image: x}]",
                "image: x}], hostUsers: false, hostNetwork: true",
                "spec.hostNetwork",
            ),
        ];
        for (from, to, path) in cases {
            let found = errors(&GOOD.replace(from, to));
            assert_eq!(found.len(), 1, "{to}: {found:?}");
            assert!(found[0].contains(path), "{to}: {found:?}");
        }
    }

    #[test]
    fn a_static_pod_has_an_identity_that_follows_its_content() {
        let read = |text: &str| {
            let (pods, _) = parse("f", text);
            finish(
                pods.into_iter().next().expect("one pod"),
                "f",
                "N1",
                Timestamp::UNIX_EPOCH,
            )
            .expect("good")
        };
        let (one, same) = (read(GOOD), read(GOOD));
        let other = read(&GOOD.replace("image: x", "image: y"));
        assert_eq!(one.metadata.name.as_deref(), Some("a-n1"));
        assert_eq!(one.metadata.uid, same.metadata.uid);
        assert_ne!(one.metadata.uid, other.metadata.uid);
        let container = &one.spec.as_ref().expect("spec").containers[0];
        assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
    }
}
