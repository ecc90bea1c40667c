// SPDX-License-Identifier: Apache-2.0
//! `apply`: create what is not there, merge into what is.
//!
//! Three passes: every manifest is read and checked; every object is sent as a dry run; only then is
//! anything written. So what can be known to be wrong beforehand changes nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::connection::{ConnectionArgs, Server};
use super::failure::{self, Lines, Outcome, answer, has_code, say, warn};
use super::kinds::{self, Kind};
use super::merge;
use crate::manifest::{self, Document};

/// Shared with kubectl, so that the two can take turns on an object.
const FIELD_MANAGER: &str = "kubectl-client-side-apply";
/// A write that meets somebody else's is tried again this often, as kubectl does.
const ATTEMPTS: usize = 5;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// Manifest file, directory, or - for stdin; may be given several times
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Only check: `client` sends nothing, `server` has the server check
    #[arg(long, value_name = "WHERE", default_value = "none")]
    dry_run: DryRun,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DryRun {
    None,
    Client,
    Server,
}

/// An object of a manifest with the place where it goes.
struct Item {
    document: Document,
    kind: Kind,
    namespace: Option<String>,
}

pub(crate) async fn run(args: ApplyArgs, data_dir: &Path) -> Outcome {
    let documents = manifest::read(&args.filename).map_err(|e| Lines(format!("error: {e}")))?;
    let server = args.connection.connect(data_dir).await?;
    let kinds = kinds::discover(&server).await?;
    let items = place(
        documents,
        &kinds,
        &server,
        args.connection.namespace.as_deref(),
    )?;
    if args.dry_run == DryRun::Client {
        for item in &items {
            let there = live(&server, item).await?.is_some();
            let verb = if there { "configured" } else { "created" };
            say(format!("{} {verb} (dry run)", item.label()))?;
        }
        return Ok(());
    }
    rehearse(&server, &items).await?;
    let dry = args.dry_run == DryRun::Server;
    let mut failed = None;
    for item in &items {
        match write(&server, item, dry).await {
            Ok(verb) => {
                let suffix = if dry { " (server dry run)" } else { "" };
                say(format!("{} {verb}{suffix}", item.label()))?;
            }
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    warn(failure::text(&earlier));
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

impl Item {
    fn label(&self) -> String {
        self.kind.label(&self.document.name)
    }

    fn api(&self, server: &Server) -> Api<DynamicObject> {
        self.kind.api(server, self.namespace.as_deref())
    }

    /// The object as sent: with its namespace and the annotation that remembers it.
    fn object(&self) -> anyhow::Result<Value> {
        let mut object = self.document.value.clone();
        let applied = self.applied()?;
        if let Some(namespace) = &self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if !object["metadata"]["annotations"].is_object() {
            object["metadata"]["annotations"] = json!({});
        }
        object["metadata"]["annotations"][merge::LAST_APPLIED] = json!(applied);
        Ok(object)
    }

    /// What is remembered: the manifest, without what was remembered before.
    fn applied(&self) -> anyhow::Result<String> {
        let mut object = self.document.value.clone();
        if let Some(namespace) = &self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        match object.pointer_mut("/metadata/annotations") {
            Some(Value::Object(annotations)) => {
                annotations.remove(merge::LAST_APPLIED);
            }
            _ => object["metadata"]["annotations"] = json!({}),
        }
        Ok(serde_json::to_string(&object)? + "\n")
    }
}

fn place(
    documents: Vec<Document>,
    kinds: &[Kind],
    server: &Server,
    wanted: Option<&str>,
) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut problems = Vec::new();
    for document in documents {
        let kind = match kinds::of_object(kinds, &document.api_version, &document.kind) {
            Ok(kind) => kind,
            Err(error) => {
                problems.push(format!("{}: {error}", document.source));
                continue;
            }
        };
        if let (Some(own), Some(wanted), true) = (&document.namespace, wanted, kind.namespaced)
            && own != wanted
        {
            problems.push(format!(
                "{}: metadata.namespace: the namespace from the provided object {own:?} does not match the namespace {wanted:?}",
                document.source
            ));
        }
        let namespace = document
            .namespace
            .clone()
            .unwrap_or_else(|| server.namespace.clone());
        items.push(Item {
            namespace: kind.namespaced.then_some(namespace),
            document,
            kind,
        });
    }
    if problems.is_empty() {
        Ok(items)
    } else {
        Err(Lines(format!("error: {}", problems.join("\n"))).into())
    }
}

async fn live(server: &Server, item: &Item) -> anyhow::Result<Option<DynamicObject>> {
    answer(item.api(server).get_opt(&item.document.name)).await
}

/// Every object as a dry run; all complaints at once.
async fn rehearse(server: &Server, items: &[Item]) -> Outcome {
    let new_namespaces = new_namespaces(server, items).await?;
    let mut problems = Vec::new();
    for item in items {
        let homeless = item
            .namespace
            .as_ref()
            .is_some_and(|n| new_namespaces.contains(n));
        let result = if homeless {
            rehearse_elsewhere(server, item).await
        } else {
            write(server, item, true).await.map(|_| ())
        };
        if let Err(error) = result {
            problems.push(format!(
                "{}: {}",
                item.document.source,
                failure::text(&error)
            ));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Lines(problems.join("\n")).into())
    }
}

/// Namespaces that this very manifest makes.
async fn new_namespaces(server: &Server, items: &[Item]) -> anyhow::Result<HashSet<String>> {
    let mut found = HashSet::new();
    for item in items.iter().filter(|item| item.kind.noun() == "namespace") {
        if live(server, item).await?.is_none() {
            found.insert(item.document.name.clone());
        }
    }
    Ok(found)
}

/// An object whose namespace is not there yet is checked in `default`; that the name is taken there
/// says nothing about it.
async fn rehearse_elsewhere(server: &Server, item: &Item) -> Outcome {
    let mut object = item.object()?;
    object["metadata"]["namespace"] = json!("default");
    let api = item.kind.api(server, Some("default"));
    let object: DynamicObject = serde_json::from_value(object)?;
    match answer(api.create(&post(true), &object)).await {
        Err(error) if has_code(&error, 409) => Ok(()),
        result => result.map(|_| ()),
    }
}

fn post(dry_run: bool) -> PostParams {
    PostParams {
        dry_run,
        field_manager: Some(FIELD_MANAGER.into()),
    }
}

/// Writes one object and says what was done with it.
async fn write(server: &Server, item: &Item, dry_run: bool) -> anyhow::Result<&'static str> {
    let api = item.api(server);
    let mut last_error = None;
    for _ in 0..ATTEMPTS {
        let result = match live(server, item).await? {
            None => {
                let object: DynamicObject = serde_json::from_value(item.object()?)?;
                answer(api.create(&post(dry_run), &object))
                    .await
                    .map(|_| "created")
            }
            Some(live) => update(&api, item, live, dry_run).await,
        };
        match result {
            // Somebody was faster: look again.
            Err(error) if has_code(&error, 409) => last_error = Some(error),
            result => return result,
        }
    }
    Err(last_error.unwrap_or_else(|| anyhow::anyhow!("{} changes all the time", item.label())))
}

async fn update(
    api: &Api<DynamicObject>,
    item: &Item,
    live: DynamicObject,
    dry_run: bool,
) -> anyhow::Result<&'static str> {
    let live = serde_json::to_value(live)?;
    let annotations = live.pointer("/metadata/annotations");
    let last = annotations
        .and_then(|a| a.get(merge::LAST_APPLIED))
        .and_then(Value::as_str);
    if last.is_none() && !dry_run {
        warn(format!(
            "Warning: resource {} is missing the {} annotation which is required by apply. It will be patched automatically.",
            item.label(),
            merge::LAST_APPLIED
        ));
    }
    let last: Value = last
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let now = item.object()?;
    let mut merged = merge::merge(&last, &now, &live);
    keep_status(&live, &mut merged);
    let Some(mut patch) = merge::difference(&live, &merged) else {
        return Ok("unchanged");
    };
    // The patch was computed from this version and no other.
    patch["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    let mut params = PatchParams::default().validation_strict();
    params.dry_run = dry_run;
    params.field_manager = Some(FIELD_MANAGER.into());
    let name = &item.document.name;
    answer(api.patch(name, &params, &Patch::Merge(&patch))).await?;
    Ok("configured")
}

/// `status` in a manifest is not applied: it belongs to the controllers.
fn keep_status(live: &Value, merged: &mut Value) {
    if let Some(merged) = merged.as_object_mut() {
        match live.get("status") {
            Some(status) => merged.insert("status".into(), status.clone()),
            None => merged.remove("status"),
        };
    }
}
