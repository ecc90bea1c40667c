// SPDX-License-Identifier: Apache-2.0
//! `get`: tables from the server, or the objects themselves.

use std::path::Path;

use futures::AsyncBufReadExt as _;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::connection::{ConnectionArgs, Server};
use super::failure::{Outcome, answer, is_not_found, say, warn};
use super::kinds::{self, Target};
use super::table::{ACCEPT, Style, Table};

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Name,
    Json,
    Yaml,
    Wide,
}

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// TYPE[,TYPE…] [NAME…] or TYPE/NAME…
    #[arg(required = true)]
    what: Vec<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Label selector, such as app=web,tier!=db
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Field selector, such as status.phase=Running
    #[arg(long)]
    field_selector: Option<String>,
    #[arg(short, long)]
    output: Option<Output>,
    /// Print changes as they happen
    #[arg(short, long)]
    watch: bool,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    /// An object that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(crate) async fn run(args: GetArgs, data_dir: &Path) -> Outcome {
    let server = args.connection.connect(data_dir).await?;
    let kinds = kinds::discover(&server).await?;
    let targets = kinds::targets(&kinds, &args.what)?;
    if args.all_namespaces && targets.iter().any(|t| !t.names.is_empty()) {
        anyhow::bail!("a resource cannot be retrieved by name across all namespaces");
    }
    if args.watch {
        let [target] = targets.as_slice() else {
            anyhow::bail!("you may only specify a single resource type with --watch");
        };
        return watch(&args, &server, target).await;
    }
    match args.output {
        Some(Output::Json | Output::Yaml | Output::Name) => objects(&args, &server, &targets).await,
        _ => tables(&args, &server, &targets).await,
    }
}

impl GetArgs {
    fn style(&self, target: &Target) -> Style {
        Style {
            wide: self.output == Some(Output::Wide),
            namespaces: self.all_namespaces && target.kind.namespaced,
            headers: !self.no_headers,
        }
    }

    /// The paths to read: one per name, or the collection.
    fn paths(&self, server: &Server, target: &Target) -> Vec<String> {
        let namespace = (!self.all_namespaces).then_some(server.namespace.as_str());
        let base = target.kind.api(server, namespace).resource_url().to_owned();
        if target.names.is_empty() {
            return vec![format!("{base}?{}", self.selectors())];
        }
        target
            .names
            .iter()
            .map(|name| format!("{base}/{}?", encode(name)))
            .collect()
    }

    fn selectors(&self) -> String {
        let pairs = [
            ("labelSelector", &self.selector),
            ("fieldSelector", &self.field_selector),
        ];
        let given = pairs
            .iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?)));
        given
            .map(|(key, value)| format!("{key}={}&", encode(value)))
            .collect()
    }
}

/// Percent-encodes all but letters, digits and `-._~`.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Reads a path as JSON.
pub(crate) async fn read(server: &Server, path: &str, accept: &str) -> anyhow::Result<Value> {
    let request = http_get(path, accept)?;
    answer(server.client.request::<Value>(request)).await
}

fn http_get(path: &str, accept: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    let path = path.trim_end_matches(['?', '&']);
    Ok(http::Request::get(path)
        .header(http::header::ACCEPT, accept)
        .body(Vec::new())?)
}

async fn tables(args: &GetArgs, server: &Server, targets: &[Target]) -> Outcome {
    let several = targets
        .iter()
        .any(|t| t.kind.noun() != targets[0].kind.noun());
    let mut failed = None;
    let mut printed = 0;
    for target in merged(targets) {
        let mut table = Table::default();
        for path in args.paths(server, &target) {
            match read(server, &path, ACCEPT).await {
                Ok(value) => table.extend(serde_json::from_value(value)?),
                Err(error) if args.ignore_not_found && is_not_found(&error) => {}
                Err(error) => failed = note(failed, error),
            }
        }
        if table.rows.is_empty() {
            continue;
        }
        if printed > 0 {
            say("")?;
        }
        let prefix = if several {
            format!("{}/", target.kind.noun())
        } else {
            String::new()
        };
        for line in table.lines(args.style(&target), &prefix) {
            say(line)?;
        }
        printed += 1;
    }
    match failed {
        Some(error) => Err(error),
        None => {
            if printed == 0 && !args.ignore_not_found {
                nothing(args, server, targets);
            }
            Ok(())
        }
    }
}

/// Targets of the same kind (`pod/a pod/b`) make one table.
fn merged(targets: &[Target]) -> Vec<Target> {
    let mut merged: Vec<Target> = Vec::new();
    for target in targets {
        match merged
            .iter_mut()
            .find(|t| t.kind.noun() == target.kind.noun())
        {
            Some(same) => same.names.extend(target.names.clone()),
            None => merged.push(target.clone()),
        }
    }
    merged
}

/// Prints an earlier error, so that the last one is what the command ends with.
fn note(earlier: Option<anyhow::Error>, error: anyhow::Error) -> Option<anyhow::Error> {
    if let Some(earlier) = earlier {
        warn(super::failure::text(&earlier));
    }
    Some(error)
}

fn nothing(args: &GetArgs, server: &Server, targets: &[Target]) {
    if args.all_namespaces || targets.iter().all(|t| !t.kind.namespaced) {
        warn("No resources found");
    } else {
        warn(format!(
            "No resources found in {} namespace.",
            server.namespace
        ));
    }
}

async fn objects(args: &GetArgs, server: &Server, targets: &[Target]) -> Outcome {
    let mut found = Vec::new();
    let mut failed = None;
    for target in targets {
        for path in args.paths(server, target) {
            match read(server, &path, "application/json").await {
                Ok(value) => found.extend(items(value, target)),
                Err(error) if args.ignore_not_found && is_not_found(&error) => {}
                Err(error) => failed = note(failed, error),
            }
        }
    }
    let single = targets.len() == 1 && targets[0].names.len() == 1;
    print(args.output, targets, found, single)?;
    failed.map_or(Ok(()), Err)
}

/// The objects of an answer. Items of a list do not repeat their kind.
fn items(value: Value, target: &Target) -> Vec<Value> {
    let Some(items) = value.get("items").and_then(Value::as_array) else {
        return vec![value];
    };
    let mut items = items.clone();
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.insert("apiVersion".into(), json!(target.kind.resource.api_version));
        item.insert("kind".into(), json!(target.kind.resource.kind));
    }
    items
}

fn print(output: Option<Output>, targets: &[Target], found: Vec<Value>, single: bool) -> Outcome {
    if output == Some(Output::Name) {
        for object in &found {
            let text = |pointer| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let kind = targets
                .iter()
                .find(|t| t.kind.resource.kind == text("/kind"));
            let name = text("/metadata/name");
            say(kind.map_or_else(|| name.to_owned(), |t| t.kind.label(name)))?;
        }
        return Ok(());
    }
    let value = match (single, found.into_iter()) {
        (true, mut found) => match found.next() {
            Some(object) => object,
            None => return Ok(()),
        },
        (false, found) => json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""},
            "items": found.collect::<Vec<_>>(),
        }),
    };
    if output == Some(Output::Json) {
        say(serde_json::to_string_pretty(&value)?)?;
    } else {
        say(serde_saphyr::to_string(&value)?.trim_end())?;
    }
    Ok(())
}

/// The present state, then each change as a row of its own, until interrupted.
async fn watch(args: &GetArgs, server: &Server, target: &Target) -> Outcome {
    let namespace = (!args.all_namespaces).then_some(server.namespace.as_str());
    let base = target.kind.api(server, namespace).resource_url().to_owned();
    let mut query = args.selectors();
    match target.names.as_slice() {
        [] => {}
        [name] => query.push_str(&format!(
            "fieldSelector={}&",
            encode(&format!("metadata.name={name}"))
        )),
        _ => anyhow::bail!("you may only specify a single resource name with --watch"),
    }
    let first = read(server, &format!("{base}?{query}"), ACCEPT).await?;
    let first: Table = serde_json::from_value(first)?;
    let mut style = args.style(target);
    for line in first.lines(style, "") {
        say(line)?;
    }
    style.headers = false;
    let version = first
        .metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let path = format!("{base}?{query}watch=true&resourceVersion={version}");
    let request = http_get(&path, ACCEPT)?;
    let stream = server.client.request_stream(request).await?;
    let stream = std::pin::pin!(stream);
    let mut lines = stream.lines();
    while let Some(line) = lines.try_next().await? {
        let event: Value = serde_json::from_str(&line)?;
        if event["type"] == "ERROR" {
            let message = event.pointer("/object/message").and_then(Value::as_str);
            anyhow::bail!("the watch ended: {}", message.unwrap_or("no reason given"));
        }
        let table: Table = serde_json::from_value(event["object"].clone())?;
        for line in table.with_columns_of(&first).lines(style, "") {
            say(line)?;
        }
    }
    Ok(())
}
