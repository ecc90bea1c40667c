// SPDX-License-Identifier: Apache-2.0
//! `state` and `list`.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::args::Format;
use super::store::{Record, Status};
use super::{Attempt, Context, Outcome};

/// The OCI state, with the fields that runc adds, in its order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    pid: u32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    owner: String,
}

fn describe(context: &Context, record: Record) -> Outcome<State> {
    let status = context.status(&record)?;
    Ok(State {
        pid: if status == Status::Stopped {
            0
        } else {
            record.pid
        },
        status: status.name(),
        bundle: record.bundle.to_string_lossy().into_owned(),
        rootfs: record.rootfs.to_string_lossy().into_owned(),
        oci_version: record.oci_version,
        id: record.id,
        created: record.created,
        annotations: record.annotations,
        owner: String::new(),
    })
}

pub(super) fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}").attempt("writing to stdout")
}

pub(super) fn state(context: &Context, id: &str) -> Outcome {
    let record = context.store.load(id)?;
    let state = describe(context, record)?;
    print(&serde_json::to_string_pretty(&state).attempt("encoding")?)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(context: &Context, format: Format, quiet: bool) -> Outcome {
    let mut states = Vec::new();
    for id in context.store.ids()? {
        let found = context.store.find(&id);
        match found.and_then(|record| record.map(|r| describe(context, r)).transpose()) {
            Ok(Some(mut state)) => {
                state.owner = context.store.owner(&id).map(user_name).unwrap_or_default();
                states.push(state);
            }
            // It is just being made, or has just been deleted.
            Ok(None) => {}
            // One that cannot be read must not hide the others.
            Err(failure) => context.log.warn(&format!("{id}: {}", failure.message)),
        }
    }
    match (quiet, format) {
        (true, _) => states.iter().try_for_each(|state| print(&state.id))?,
        (false, Format::Json) => print(&serde_json::to_string(&states).attempt("encoding")?)?,
        (false, Format::Table) => print(table(&states).trim_end_matches('\n'))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The name that /etc/passwd has for a uid, or `#uid`.
fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("#{uid}"))
}

/// Columns of at least 12, three blanks between them.
fn table(states: &[State]) -> String {
    const WIDTH_MIN: usize = 12;
    const GAP: usize = 3;
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.clone(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        (cells.max().unwrap_or(0) + GAP).max(WIDTH_MIN)
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let state = State {
            oci_version: "1.2.0".into(),
            id: "a-rather-long-name".into(),
            pid: 7,
            status: "running",
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: std::collections::BTreeMap::new(),
            owner: "root".into(),
        };
        assert_eq!(
            table(&[state]),
            "ID                   PID         STATUS      BUNDLE      CREATED                OWNER\n\
             a-rather-long-name   7           running     /b          2026-01-01T00:00:00Z   root\n"
        );
    }

    #[test]
    fn root_has_a_name_and_nobody_knows_the_last_uid() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(u32::MAX - 1), format!("#{}", u32::MAX - 1));
    }
}
