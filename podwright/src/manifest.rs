// SPDX-License-Identifier: Apache-2.0
//! Reads manifests: YAML with any number of documents, JSON, and `List` objects.
//!
//! Everything is read and checked before anybody acts on any of it. Each problem says in which file
//! and document it is, at which field, and what was expected there. Nothing here talks to a server.

mod kinds;
mod strict;

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A manifest may be this large. The limit keeps a wrong file name (a disk image, say) from eating
/// all memory.
const SIZE_MAX: u64 = 64 * 1024 * 1024;

/// Where an object was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The path as given, or `STDIN`.
    pub(crate) file: String,
    /// Counts from 1.
    pub(crate) document: usize,
    /// Position in a `List`, counted from 0.
    pub(crate) item: Option<usize>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        match self.item {
            Some(item) => write!(f, ": items[{item}]"),
            None => Ok(()),
        }
    }
}

/// One object of a manifest. Its type is known and it fits its type.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) source: Source,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// The object as written.
    pub(crate) value: Value,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) file: String,
    pub(crate) source: Option<Source>,
    /// Such as `spec.containers[0].image`; empty if it is not about a field.
    pub(crate) field: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source}: ")?,
            None => write!(f, "{}: ", self.file)?,
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with the manifests, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ManifestErrors(pub(crate) Vec<Problem>);

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

/// Reads files, directories (their `*.yaml`, `*.yml` and `*.json`, not deeper) and `-` for standard
/// input.
///
/// # Errors
/// Every problem of every file; then no document is returned at all.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Document>, ManifestErrors> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        for (file, text) in texts(path, &mut problems) {
            documents.extend(parse(&file, &text, &mut problems));
        }
    }
    twins(&documents, &mut problems);
    if problems.is_empty() && documents.is_empty() {
        let file = paths.first().map(|p| name_of(p)).unwrap_or_default();
        problems.push(about_file(&file, "no objects found".into()));
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(ManifestErrors(problems))
    }
}

fn name_of(path: &Path) -> String {
    if path == Path::new("-") {
        "STDIN".into()
    } else {
        path.display().to_string()
    }
}

fn about_file(file: &str, message: String) -> Problem {
    Problem {
        file: file.to_owned(),
        source: None,
        field: String::new(),
        message,
    }
}

/// Names and contents of the files that a path stands for.
fn texts(path: &Path, problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let text = path.to_string_lossy();
    if text.starts_with("http://") || text.starts_with("https://") {
        problems.push(about_file(
            &text,
            "URLs are not supported, download the file first".into(),
        ));
        return Vec::new();
    }
    let files = if path.is_dir() {
        listing(path, problems)
    } else {
        vec![path.to_path_buf()]
    };
    let mut texts = Vec::new();
    for file in files {
        match load(&file) {
            Ok(text) => texts.push((name_of(&file), text)),
            Err(error) => {
                problems.push(about_file(&name_of(&file), format!("cannot read: {error}")))
            }
        }
    }
    texts
}

fn listing(directory: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(about_file(
                &name_of(directory),
                format!("cannot read: {error}"),
            ));
            return Vec::new();
        }
    };
    let is_manifest = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(is_manifest)
        .collect();
    files.sort();
    files
}

fn load(path: &Path) -> std::io::Result<String> {
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path)?)
    };
    let mut text = String::new();
    let read = reader.take(SIZE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > SIZE_MAX {
        return Err(std::io::Error::other("larger than 64 MiB"));
    }
    Ok(text)
}

/// The documents of one text; what is wrong is added to `problems`.
pub(crate) fn parse(file: &str, text: &str, problems: &mut Vec<Problem>) -> Vec<Document> {
    let mut documents = Vec::new();
    for (index, chunk) in split(text).into_iter().enumerate() {
        let source = Source {
            file: file.to_owned(),
            document: index + 1,
            item: None,
        };
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        match serde_saphyr::from_str_with_options::<Value>(&chunk, options) {
            Ok(Value::Null) => {}
            Ok(value) => object(source, value, &mut documents, problems),
            Err(error) => problems.push(problem(&source, "", first_line(&error.to_string()))),
        }
    }
    documents
}

/// Cuts at lines that begin with `---`. Each piece is padded with the lines before it, so that the
/// parser's line numbers are those of the file.
fn split(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        let is_separator = line == "---" || line.starts_with("--- ") || line.starts_with("---\t");
        let last = pieces.len() - 1;
        if is_separator {
            let only_comments = pieces[last].lines().all(|l| {
                let l = l.trim_start();
                l.is_empty() || l.starts_with('#')
            });
            if only_comments {
                pieces.pop();
            }
            let rest = line.trim_start_matches('-');
            pieces.push("\n".repeat(number) + rest + "\n");
        } else {
            pieces[last].push_str(line);
            pieces[last].push('\n');
        }
    }
    pieces
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn problem(source: &Source, field: &str, message: String) -> Problem {
    Problem {
        file: source.file.clone(),
        source: Some(source.clone()),
        field: field.to_owned(),
        message,
    }
}

fn object(
    source: Source,
    value: Value,
    documents: &mut Vec<Document>,
    problems: &mut Vec<Problem>,
) {
    if !value.is_object() {
        let message = format!("expected an object, found {}", strict::describe(&value));
        problems.push(problem(&source, "", message));
        return;
    }
    let (Some(api_version), Some(kind)) = (
        required(&source, &value, "/apiVersion", "apiVersion", problems),
        required(&source, &value, "/kind", "kind", problems),
    ) else {
        return;
    };
    if kind.ends_with("List") && value.get("items").is_some_and(Value::is_array) {
        let items = value["items"].as_array().cloned().unwrap_or_default();
        for (index, item) in items.into_iter().enumerate() {
            let source = Source {
                item: Some(index),
                ..source.clone()
            };
            object(source, item, documents, problems);
        }
        return;
    }
    let before = problems.len();
    match kinds::check(&api_version, &kind, &value) {
        Some(faults) => problems.extend(
            faults
                .into_iter()
                .map(|fault| problem(&source, &fault.path, fault.message)),
        ),
        None => {
            let message = format!("no kind {kind:?} is known in version {api_version:?}");
            problems.push(problem(&source, "kind", message));
        }
    }
    if problems.len() > before {
        return;
    }
    let Some(name) = required(&source, &value, "/metadata/name", "metadata.name", problems) else {
        return;
    };
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
    documents.push(Document {
        namespace: namespace.filter(|n| !n.is_empty()).map(str::to_owned),
        source,
        api_version,
        kind,
        name,
        value,
    });
}

fn required(
    source: &Source,
    value: &Value,
    pointer: &str,
    field: &str,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let message = match value.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => return Some(text.clone()),
        None | Some(Value::Null | Value::String(_)) => "is required, expected a string".into(),
        Some(other) => format!("expected a string, found {}", strict::describe(other)),
    };
    problems.push(problem(source, field, message));
    None
}

/// Two objects of the same kind, namespace and name: one would overwrite the other.
fn twins(documents: &[Document], problems: &mut Vec<Problem>) {
    let mut seen: HashMap<(String, String, String, String), &Source> = HashMap::new();
    for document in documents {
        let group = document
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let id = (
            group.to_owned(),
            document.kind.clone(),
            document.namespace.clone().unwrap_or_default(),
            document.name.clone(),
        );
        if let Some(first) = seen.get(&id) {
            let message = format!(
                "{} {:?} is a duplicate of the one in {first}, expected one object per name",
                document.kind, document.name
            );
            problems.push(problem(&document.source, "metadata.name", message));
        } else {
            seen.insert(id, &document.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<String>, Vec<String>> {
        let mut problems = Vec::new();
        let documents = parse("f.yaml", text, &mut problems);
        twins(&documents, &mut problems);
        if problems.is_empty() {
            Ok(documents
                .iter()
                .map(|d| format!("{}/{}", d.kind, d.name))
                .collect())
        } else {
            Err(problems.iter().map(ToString::to_string).collect())
        }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: c\n    image: busybox\n";

    #[test]
    fn several_documents_comments_and_lists_are_read() {
        let text = format!(
            "# a comment\n---\n{POD}---\n\n---\n# nothing\n---\n{}",
            POD.replace("name: a", "name: b")
        );
        assert_eq!(check(&text), Ok(vec!["Pod/a".into(), "Pod/b".into()]));
        let list = r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"},"data":{"k":"v"}}]}"#;
        assert_eq!(check(list), Ok(vec!["ConfigMap/m".into()]));
    }

    #[test]
    fn an_unknown_field_is_named_with_what_was_expected() {
        let problems = check(&POD.replace("image:", "imagee:")).expect_err("a problem");
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].starts_with(
                "f.yaml: document 1: spec.containers[0].imagee: unknown field, did you mean \"image\"?"
            ),
            "{}",
            problems[0]
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_what_was_expected() {
        let text = format!("{POD}  terminationGracePeriodSeconds: soon\n");
        assert_eq!(
            check(&text),
            Err(vec![
                "f.yaml: document 1: spec.terminationGracePeriodSeconds: invalid type: string \"soon\", expected an integer".into()
            ])
        );
        let text = format!("{POD}    env:\n    - name: PORT\n      value: 80\n");
        let problems = check(&text).expect_err("a problem");
        assert!(
            problems[0].contains("spec.containers[0].env[0].value: "),
            "{}",
            problems[0]
        );
        assert!(problems[0].contains("expected a string"), "{}", problems[0]);
    }

    #[test]
    fn every_problem_of_every_document_is_reported() {
        let text = format!(
            "{}---\n{}",
            POD.replace("image:", "img:"),
            POD.replace("spec:", "spek:")
        );
        let problems = check(&text).expect_err("two problems");
        let one = POD.replace("image: busybox", "imagee: b\n    stdin: 3\n    tty: maybe");
        assert_eq!(check(&one).expect_err("three problems").len(), 3);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[1].starts_with("f.yaml: document 2: spek: "),
            "{}",
            problems[1]
        );
    }

    #[test]
    fn two_objects_of_one_name_are_refused() {
        let problems = check(&format!("{POD}---\n{POD}")).expect_err("a problem");
        assert!(
            problems[0].starts_with("f.yaml: document 2: metadata.name: Pod \"a\" is a duplicate")
        );
        assert!(problems[0].contains("f.yaml: document 1"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(check("just text").is_err());
        assert!(check("- a\n- b").is_err());
        assert!(check("kind: Pod").is_err());
        assert!(check("apiVersion: v1\nkind: Gadget\nmetadata:\n  name: x").is_err());
        assert!(check("a: [1, 2").is_err());
        assert!(check("a: 1\na: 2").is_err());
        assert_eq!(check(""), Ok(vec![]));
    }

    #[test]
    fn octal_modes_are_numbers() {
        let text = POD.replace("spec:\n", "spec:\n  volumes:\n  - name: v\n    configMap:\n      name: m\n      defaultMode: 0644\n");
        assert_eq!(check(&text), Ok(vec!["Pod/a".into()]));
    }
}
