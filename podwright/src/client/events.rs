// SPDX-License-Identifier: Apache-2.0
//! `events`: what has happened, the newest last.

use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;

use super::connection::{ConnectionArgs, Server};
use super::failure::{Outcome, answer, say, warn};
use super::kinds::{self, Target};
use super::table::align;

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only events about this object
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Events of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only these types, such as Warning
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(crate) async fn run(args: EventsArgs, data_dir: &Path) -> Outcome {
    let server = args.connection.connect(data_dir).await?;
    let api: Api<Event> = if args.all_namespaces {
        Api::all(server.client.clone())
    } else {
        Api::namespaced(server.client.clone(), &server.namespace)
    };
    let mut events = answer(api.list(&ListParams::default())).await?.items;
    if let Some(about) = &args.about {
        let target = target(&server, about).await?;
        events.retain(|event| is_about(event, &target));
    }
    let is_wanted = |event: &Event| {
        let type_ = event.type_.as_deref().unwrap_or_default();
        args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(type_))
    };
    events.retain(is_wanted);
    events.sort_by_key(last_seen);
    if events.is_empty() {
        if args.all_namespaces {
            warn("No events found.");
        } else {
            warn(format!(
                "No events found in {} namespace.",
                server.namespace
            ));
        }
        return Ok(());
    }
    print(&args, &events)
}

async fn target(server: &Server, about: &str) -> anyhow::Result<Target> {
    anyhow::ensure!(about.contains('/'), "--for must be in resource/name form");
    let kinds = kinds::discover(server).await?;
    let found = kinds::targets(&kinds, &[about.to_owned()])?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| anyhow::anyhow!("--for names nothing"))
}

fn is_about(event: &Event, target: &Target) -> bool {
    let object = &event.involved_object;
    object.kind.as_ref() == Some(&target.kind.resource.kind)
        && object.name.as_ref() == target.names.first()
}

fn print(args: &EventsArgs, events: &[Event]) -> Outcome {
    let now = Timestamp::now();
    let mut grid = Vec::new();
    if !args.no_headers {
        let mut names = vec!["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
        if args.all_namespaces {
            names.insert(0, "NAMESPACE");
        }
        grid.push(names.into_iter().map(str::to_owned).collect());
    }
    for event in events {
        let object = &event.involved_object;
        let kind = object.kind.as_deref().unwrap_or_default();
        let mut row = vec![
            seen(event, now),
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            format!("{kind}/{}", object.name.as_deref().unwrap_or_default()),
            event
                .message
                .as_deref()
                .unwrap_or_default()
                .trim()
                .replace('\n', " "),
        ];
        if args.all_namespaces {
            row.insert(0, event.metadata.namespace.clone().unwrap_or_default());
        }
        grid.push(row);
    }
    for line in align(&grid) {
        say(line)?;
    }
    Ok(())
}

/// When the event was seen last.
pub(crate) fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|s| s.last_observed_time.as_ref())
        .map(|t| t.0);
    series
        .or_else(|| event.last_timestamp.as_ref().map(|t| t.0))
        .or_else(|| event.event_time.as_ref().map(|t| t.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// `5s`, or `5s (x3 over 2m)`.
pub(crate) fn seen(event: &Event, now: Timestamp) -> String {
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "<unknown>".into(), |at| age(at, now));
    let last = ago(last_seen(event));
    let count = event
        .series
        .as_ref()
        .and_then(|s| s.count)
        .or(event.count)
        .unwrap_or(1);
    if count > 1 {
        let first = ago(event.first_timestamp.as_ref().map(|t| t.0));
        format!("{last} (x{count} over {first})")
    } else {
        last
    }
}

/// Time since then, as kubectl shortens it: 59s, 9m59s, 59m, 7h59m, 47h, 7d23h, 99d.
pub(crate) fn age(at: Timestamp, now: Timestamp) -> String {
    let seconds = (now.as_second() - at.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, b: &str, small: i64, s: &str| {
        if small == 0 {
            format!("{big}{b}")
        } else {
            format!("{big}{b}{small}{s}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let check = |seconds: i64| {
            age(
                Timestamp::from_second(1_000_000 - seconds).expect("in range"),
                now,
            )
        };
        assert_eq!(
            [5, 119, 121, 599, 700].map(check),
            ["5s", "119s", "2m1s", "9m59s", "11m"]
        );
        assert_eq!([10_860, 30_000, 180_000].map(check), ["3h1m", "8h", "2d2h"]);
        assert_eq!(check(-5), "0s");
    }
}
