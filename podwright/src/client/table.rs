// SPDX-License-Identifier: Apache-2.0
//! Tables (meta.k8s.io/v1) that the server renders, as aligned text.

use serde::Deserialize;
use serde_json::Value;

/// What to ask for, with plain JSON for servers that cannot.
pub(crate) const ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    #[serde(default)]
    pub(crate) metadata: Value,
    #[serde(default)]
    column_definitions: Vec<Column>,
    #[serde(default)]
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
struct Column {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    #[serde(default)]
    cells: Vec<Value>,
    #[serde(default)]
    object: Value,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    pub(crate) wide: bool,
    pub(crate) namespaces: bool,
    pub(crate) headers: bool,
}

impl Table {
    /// Adds the rows of another answer about the same kind.
    pub(crate) fn extend(&mut self, other: Self) {
        if self.column_definitions.is_empty() {
            self.column_definitions = other.column_definitions;
            self.metadata = other.metadata;
        }
        self.rows.extend(other.rows);
    }

    /// The columns of the watch's first event are not repeated in later ones.
    pub(crate) fn with_columns_of(mut self, first: &Self) -> Self {
        if self.column_definitions.is_empty() {
            self.column_definitions
                .clone_from(&first.column_definitions);
        }
        self
    }

    /// Lines of text. `prefix` goes before each name (`pod/`).
    pub(crate) fn lines(&self, style: Style, prefix: &str) -> Vec<String> {
        let shown: Vec<usize> = (0..self.column_definitions.len())
            .filter(|i| style.wide || self.column_definitions[*i].priority == 0)
            .collect();
        let mut grid = Vec::new();
        if style.headers {
            let names = shown
                .iter()
                .map(|i| self.column_definitions[*i].name.to_uppercase());
            grid.push(with_namespace(style, "NAMESPACE", names.collect()));
        }
        for row in &self.rows {
            let cells = shown.iter().map(|i| {
                let text = row.cells.get(*i).map(cell).unwrap_or_default();
                if *i == 0 {
                    format!("{prefix}{text}")
                } else {
                    text
                }
            });
            let namespace = row
                .object
                .pointer("/metadata/namespace")
                .and_then(Value::as_str);
            grid.push(with_namespace(
                style,
                namespace.unwrap_or_default(),
                cells.collect(),
            ));
        }
        align(&grid)
    }
}

fn with_namespace(style: Style, namespace: &str, mut cells: Vec<String>) -> Vec<String> {
    if style.namespaces {
        cells.insert(0, namespace.to_owned());
    }
    cells
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        // A line break would tear the table.
        Value::String(text) => text.lines().next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

/// Pads every column but the last to its widest cell and three spaces, as kubectl does.
pub(crate) fn align(grid: &[Vec<String>]) -> Vec<String> {
    let columns = grid.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = grid.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    grid.iter()
        .map(|row| {
            let mut line = String::new();
            for (index, cell) in row.iter().enumerate() {
                if index + 1 == row.len() {
                    line.push_str(cell);
                } else {
                    line.push_str(&format!("{cell:<width$}   ", width = widths[index]));
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wide_columns_namespaces_and_prefixes_are_shown_on_demand() {
        let table: Table = serde_json::from_value(json!({
            "columnDefinitions": [
                {"name": "Name", "type": "string"}, {"name": "Age", "type": "string"},
                {"name": "IP", "type": "string", "priority": 1}],
            "rows": [{"cells": ["web", "5s", null], "object": {"metadata": {"namespace": "ns"}}}],
        }))
        .expect("a table");
        let style = Style {
            headers: true,
            ..Style::default()
        };
        assert_eq!(table.lines(style, ""), ["NAME   AGE", "web    5s"]);
        let style = Style {
            wide: true,
            namespaces: true,
            headers: false,
        };
        assert_eq!(table.lines(style, "pod/"), ["ns   pod/web   5s   <none>"]);
    }
}
