// SPDX-License-Identifier: Apache-2.0
//! `describe`: an object in words, and its events.
//!
//! One layout for every kind, the one that kubectl uses for kinds that it does not know: fields
//! under spaced-out names. It shows everything, in the object's own order.

use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

use super::connection::{ConnectionArgs, Server};
use super::events;
use super::failure::{Outcome, answer, say};
use super::kinds::{self, Target};
use super::table::align;

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArgs {
    /// TYPE [NAME…] or TYPE/NAME…
    #[arg(required = true)]
    what: Vec<String>,
    /// Label selector
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(crate) async fn run(args: DescribeArgs, data_dir: &Path) -> Outcome {
    let server = args.connection.connect(data_dir).await?;
    let kinds = kinds::discover(&server).await?;
    let mut first = true;
    for target in kinds::targets(&kinds, &args.what)? {
        for object in objects(&args, &server, &target).await? {
            if !std::mem::take(&mut first) {
                say("\n")?;
            }
            for line in lines(&object) {
                say(line)?;
            }
            for line in event_lines(&server, &object).await? {
                say(line)?;
            }
        }
    }
    Ok(())
}

async fn objects(
    args: &DescribeArgs,
    server: &Server,
    target: &Target,
) -> anyhow::Result<Vec<Value>> {
    let api = target.kind.api(server, Some(&server.namespace));
    let mut found = Vec::new();
    if target.names.is_empty() {
        let mut list = ListParams::default();
        list.label_selector.clone_from(&args.selector);
        for item in answer(api.list(&list)).await?.items {
            found.push(serde_json::to_value(item)?);
        }
    }
    for name in &target.names {
        found.push(serde_json::to_value(answer(api.get(name)).await?)?);
    }
    Ok(found)
}

fn lines(object: &Value) -> Vec<String> {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("<none>")
    };
    let mut lines = vec![row("Name", text("/metadata/name"))];
    if object.pointer("/metadata/namespace").is_some() {
        lines.push(row("Namespace", text("/metadata/namespace")));
    }
    lines.extend(map("Labels", object.pointer("/metadata/labels"), "="));
    lines.extend(map(
        "Annotations",
        object.pointer("/metadata/annotations"),
        ": ",
    ));
    lines.push(row("API Version", text("/apiVersion")));
    lines.push(row("Kind", text("/kind")));
    lines.push(row("Created", text("/metadata/creationTimestamp")));
    if let Some(owners) = object
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
    {
        for owner in owners.iter().filter(|o| o["controller"] == true) {
            let part = |name: &str| owner[name].as_str().unwrap_or_default().to_owned();
            lines.push(row(
                "Controlled By",
                &format!("{}/{}", part("kind"), part("name")),
            ));
        }
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            show(&mut lines, 0, &spaced(name), value);
        }
    }
    lines
}

fn row(name: &str, value: &str) -> String {
    format!("{:<15}{value}", format!("{name}:"))
}

fn map(name: &str, value: Option<&Value>, separator: &str) -> Vec<String> {
    let entries: Vec<_> = value
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        // It repeats the object; kubectl leaves it out, too.
        .filter(|(key, _)| key.as_str() != super::merge::LAST_APPLIED)
        .map(|(key, value)| format!("{key}{separator}{}", value.as_str().unwrap_or_default()))
        .collect();
    if entries.is_empty() {
        return vec![row(name, "<none>")];
    }
    let heads = std::iter::once(name).chain(std::iter::repeat(""));
    entries
        .iter()
        .zip(heads)
        .map(|(entry, head)| {
            if head.is_empty() {
                format!("{:<15}{entry}", "")
            } else {
                row(head, entry)
            }
        })
        .collect()
}

/// `restartPolicy` becomes `Restart Policy`; keys that are no field names stay.
fn spaced(name: &str) -> String {
    if !name.chars().all(char::is_alphanumeric) {
        return name.to_owned();
    }
    let mut spaced = String::new();
    let letters: Vec<char> = name.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let starts = index > 0 && letter.is_uppercase() && !letters[index - 1].is_uppercase();
        if starts {
            spaced.push(' ');
        }
        if index == 0 {
            spaced.extend(letter.to_uppercase());
        } else {
            spaced.push(*letter);
        }
    }
    spaced
}

fn show(lines: &mut Vec<String>, depth: usize, name: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            lines.push(format!("{indent}{name}:"));
            for (name, value) in fields {
                show(lines, depth + 1, &spaced(name), value);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            lines.push(format!("{indent}{name}:"));
            for item in items {
                show_item(lines, depth + 1, item);
            }
        }
        other => lines.push(format!("{indent}{name}:  {}", scalar(other))),
    }
}

/// An element of a list begins with a dash, so that it is seen where the next one starts.
fn show_item(lines: &mut Vec<String>, depth: usize, item: &Value) {
    let Some(fields) = item.as_object() else {
        lines.push(format!("{}{}", "  ".repeat(depth), scalar(item)));
        return;
    };
    let start = lines.len();
    for (name, value) in fields {
        show(lines, depth + 1, &spaced(name), value);
    }
    if let Some(first) = lines.get_mut(start) {
        first.replace_range(depth * 2..depth * 2 + 1, "-");
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

async fn event_lines(server: &Server, object: &Value) -> anyhow::Result<Vec<String>> {
    let uid = object
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let namespace = object
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    // Events about objects of cluster scope are kept in `default`.
    let api: Api<Event> = Api::namespaced(server.client.clone(), namespace.unwrap_or("default"));
    let mut found = answer(api.list(&ListParams::default())).await?.items;
    // A kubelet names a node by its name where upstream has a uid.
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    found.retain(|e| {
        let about = e.involved_object.uid.as_deref();
        about == Some(uid) || (namespace.is_none() && about == name)
    });
    if found.is_empty() {
        return Ok(vec![row("Events", "<none>")]);
    }
    found.sort_by_key(events::last_seen);
    let now = Timestamp::now();
    let heads = ["Type", "Reason", "Age", "From", "Message"];
    let mut grid = vec![
        heads.map(str::to_owned).to_vec(),
        heads.map(|h| "-".repeat(h.len())).to_vec(),
    ];
    for event in &found {
        let source = event.source.as_ref().and_then(|s| s.component.clone());
        grid.push(vec![
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            events::seen(event, now),
            source
                .or_else(|| event.reporting_component.clone())
                .unwrap_or_default(),
            event
                .message
                .as_deref()
                .unwrap_or_default()
                .trim()
                .replace('\n', " "),
        ]);
    }
    let table = align(&grid).into_iter().map(|line| format!("  {line}"));
    Ok(std::iter::once("Events:".to_owned()).chain(table).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_spaced_and_lists_dashed() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "ns", "labels": {"app": "x", "tier": "y"}},
            "spec": {"restartPolicy": "Always", "containers": [{"image": "b", "name": "c"}]},
        });
        let lines = lines(&object);
        assert_eq!(lines[0], "Name:          a");
        assert_eq!(lines[2], "Labels:        app=x");
        assert_eq!(lines[3], "               tier=y");
        assert!(
            lines.contains(&"  Restart Policy:  Always".to_owned()),
            "{lines:?}"
        );
        assert!(lines.contains(&"    - Image:  b".to_owned()), "{lines:?}");
        assert!(lines.contains(&"      Name:  c".to_owned()), "{lines:?}");
        assert_eq!(spaced("podIP"), "Pod IP");
    }
}
