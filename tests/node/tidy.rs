// SPDX-License-Identifier: Apache-2.0
//! House checks that a compiler does not make: who may know whom, and what every file opens with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// Which of our crates each crate may link, as docs/ARCHITECTURE.md draws it.
const ARROWS: [(&str, &[&str]); 8] = [
    ("kubelet", &[]),
    ("cri", &["cni", "shim"]),
    ("shim", &[]),
    ("pause", &[]),
    ("cni", &[]),
    ("proxy", &["cni"]),
    ("controlplane-lite", &[]),
    ("vm", &[]),
];

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .expect("the crate is in the workspace")
        .to_owned()
}

/// Our crates, and which of ours each depends on, development dependencies left out.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        let all = package["dependencies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .map(name)
            .filter(|name| ours.contains(name))
            .collect()
    };
    Ok(packages
        .iter()
        .map(|package| (name(package), of(package)))
        .collect())
}

#[test]
fn arrows_between_crates_point_one_way() -> Result<()> {
    let dependencies = dependencies()?;
    for (name, allowed) in ARROWS {
        let has = dependencies
            .get(name)
            .with_context(|| format!("no crate {name}"))?;
        let stray: Vec<_> = has
            .iter()
            .filter(|d| !allowed.contains(&d.as_str()))
            .collect();
        assert!(stray.is_empty(), "{name} links {stray:?}");
    }
    Ok(())
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn every_source_file_names_its_licence_and_says_what_it_is_about() -> Result<()> {
    let mut files = Vec::new();
    sources(&root(), &mut files)?;
    let mut wanting = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let mut lines = text.lines();
        let licensed = lines.next() == Some("// SPDX-License-Identifier: Apache-2.0");
        let documented = lines.any(|line| line.starts_with("//!"));
        if !licensed || !documented {
            wanting.push(file);
        }
    }
    assert!(wanting.is_empty(), "{wanting:#?}");
    Ok(())
}
