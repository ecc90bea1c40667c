// SPDX-License-Identifier: Apache-2.0
//! `delete`: by name, by selector, or by manifest; waits until the objects are gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PropagationPolicy};
use tokio::time::Instant;

use super::connection::{ConnectionArgs, Server};
use super::failure::{self, Lines, Outcome, answer, is_not_found, say, warn};
use super::kinds::{self, Kind};
use crate::manifest;

/// While it waits, the command looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    what: Vec<String>,
    /// Manifest whose objects to delete, a directory of them, or - for stdin
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Label selector
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All objects of the type in the namespace
    #[arg(long, conflicts_with = "selector")]
    all: bool,
    /// Seconds that a pod has to stop; negative means its own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// Remove at once, without waiting for the node (use with --grace-period=0)
    #[arg(long)]
    force: bool,
    /// The same as --grace-period=1
    #[arg(long)]
    now: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// Longest wait in seconds; 0 waits as long as it takes
    #[arg(long, default_value = "0", value_parser = seconds)]
    timeout: Duration,
    /// What becomes of objects that these own
    #[arg(long, default_value = "background")]
    cascade: Cascade,
    /// An object that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Cascade {
    Background,
    Foreground,
    Orphan,
}

fn seconds(text: &str) -> Result<Duration, String> {
    super::logs::duration(text).map_err(|error| error.to_string())
}

/// One object to delete.
struct Item {
    kind: Kind,
    name: String,
    namespace: Option<String>,
}

pub(crate) async fn run(args: DeleteArgs, data_dir: &Path) -> Outcome {
    let documents = if args.filename.is_empty() {
        Vec::new()
    } else {
        manifest::read(&args.filename).map_err(|e| Lines(format!("error: {e}")))?
    };
    let params = args.params()?;
    let server = args.connection.connect(data_dir).await?;
    let kinds = kinds::discover(&server).await?;
    let mut items = Vec::new();
    for document in documents {
        let kind = kinds::of_object(&kinds, &document.api_version, &document.kind)?;
        let namespace = document
            .namespace
            .clone()
            .unwrap_or_else(|| server.namespace.clone());
        items.push(Item {
            namespace: kind.namespaced.then_some(namespace),
            name: document.name,
            kind,
        });
    }
    if !args.what.is_empty() {
        items.extend(named(&args, &server, &kinds).await?);
    }
    if args.force {
        warn(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.",
        );
    }
    if items.is_empty() {
        say("No resources found")?;
        return Ok(());
    }
    delete_all(&args, &params, &server, &items).await
}

impl DeleteArgs {
    fn params(&self) -> anyhow::Result<DeleteParams> {
        let mut params = DeleteParams {
            propagation_policy: Some(match self.cascade {
                Cascade::Background => PropagationPolicy::Background,
                Cascade::Foreground => PropagationPolicy::Foreground,
                Cascade::Orphan => PropagationPolicy::Orphan,
            }),
            ..DeleteParams::default()
        };
        let mut grace = self.grace_period;
        if self.now {
            anyhow::ensure!(
                grace < 0,
                "--now and --grace-period cannot be specified together"
            );
            grace = 1;
        }
        if self.force && grace < 0 {
            grace = 0;
        }
        if grace == 0 && !self.force {
            // Only --force removes at once; kubectl turns zero into one here, too.
            grace = 1;
        }
        anyhow::ensure!(
            !self.force || grace == 0,
            "--force and --grace-period greater than 0 cannot be specified together"
        );
        if grace >= 0 {
            params.grace_period_seconds = Some(u32::try_from(grace)?);
        }
        Ok(params)
    }
}

async fn named(args: &DeleteArgs, server: &Server, kinds: &[Kind]) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for target in kinds::targets(kinds, &args.what)? {
        let namespace = target.kind.namespaced.then(|| server.namespace.clone());
        let mut names = target.names;
        if names.is_empty() {
            anyhow::ensure!(
                args.all || args.selector.is_some(),
                "resource(s) were provided, but no name was specified"
            );
            let api = target.kind.api(server, namespace.as_deref());
            let mut list = ListParams::default();
            list.label_selector.clone_from(&args.selector);
            let found = answer(api.list(&list)).await?;
            names.extend(found.items.into_iter().filter_map(|o| o.metadata.name));
        }
        items.extend(names.into_iter().map(|name| Item {
            kind: target.kind.clone(),
            name,
            namespace: namespace.clone(),
        }));
    }
    Ok(items)
}

async fn delete_all(
    args: &DeleteArgs,
    params: &DeleteParams,
    server: &Server,
    items: &[Item],
) -> Outcome {
    let mut failed: Option<anyhow::Error> = None;
    let mut leaving = Vec::new();
    for item in items {
        let api = item.kind.api(server, item.namespace.as_deref());
        // The uid tells this object from one of the same name that may follow it.
        let result = match answer(api.get(&item.name)).await {
            Ok(live) => {
                let uid = live.metadata.uid.clone();
                answer(api.delete(&item.name, params)).await.map(|_| uid)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(uid) => {
                let verb = if args.force {
                    "force deleted"
                } else {
                    "deleted"
                };
                say(format!("{} {:?} {verb}", item.kind.noun(), item.name))?;
                leaving.push((api, item, uid));
            }
            Err(error) if args.ignore_not_found && is_not_found(&error) => {}
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    warn(failure::text(&earlier));
                }
            }
        }
    }
    if args.wait {
        let deadline = (!args.timeout.is_zero()).then(|| Instant::now() + args.timeout);
        for (api, item, uid) in leaving {
            wait_gone(&api, item, uid.as_deref(), deadline).await?;
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn wait_gone(
    api: &Api<DynamicObject>,
    item: &Item,
    uid: Option<&str>,
    deadline: Option<Instant>,
) -> Outcome {
    loop {
        let live = answer(api.get_opt(&item.name)).await?;
        if live.is_none_or(|live| live.metadata.uid.as_deref() != uid) {
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            anyhow::bail!(
                "timed out waiting for the condition on {}",
                item.kind.label(&item.name)
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
