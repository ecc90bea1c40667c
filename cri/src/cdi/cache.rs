// SPDX-License-Identifier: Apache-2.0
//! The specifications on disk, and which device each of them describes.
//!
//! They are read anew for each container that names a device: vendors write them whenever a device
//! comes or goes, and then the next container must see it. The files are few and small.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spec::{Edits, Form, Spec, parse};

/// A specification's size, at most.
const FILE_MAX: u64 = 1 << 20;
/// Files in one directory, at most.
const FILES_MAX: usize = 1024;

/// All devices that can be had, and what is wrong with the files.
#[derive(Debug, Default)]
pub struct Cache {
    devices: BTreeMap<String, Place>,
    /// By file, or by device where two files contradict each other.
    errors: BTreeMap<String, String>,
}

/// Where a device is described.
#[derive(Debug, Clone)]
struct Place {
    spec: Arc<Spec>,
    index: usize,
    /// The directory's place among the directories: the later wins.
    priority: usize,
    path: PathBuf,
}

/// Devices that nobody describes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unresolvable CDI devices {}", .0.join(", "))]
pub struct Unresolvable(pub Vec<String>);

impl Cache {
    /// Reads these directories, the last of which wins. Blocks. A directory that is not there has
    /// no specifications; a file that is wrong keeps none of the others from being used.
    pub fn read(dirs: &[PathBuf]) -> Cache {
        let mut cache = Cache::default();
        for (priority, dir) in dirs.iter().enumerate() {
            for (path, form) in files(dir, &mut cache.errors) {
                match read(&path, form) {
                    Ok(spec) => cache.add(Arc::new(spec), priority, &path),
                    Err(why) => {
                        cache.errors.insert(path.display().to_string(), why);
                    }
                }
            }
        }
        cache
    }

    fn add(&mut self, spec: Arc<Spec>, priority: usize, path: &Path) {
        for (index, device) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, device.name);
            if let Some(known) = self.devices.get(&name).filter(|k| k.priority == priority) {
                let why = format!(
                    "conflicting device {name:?} (specs {:?}, {:?})",
                    known.path.display().to_string(),
                    path.display().to_string()
                );
                self.errors.insert(name, why);
                continue;
            }
            // A conflict of directories that count less is none.
            self.errors.remove(&name);
            let place = Place {
                spec: spec.clone(),
                index,
                priority,
                path: path.to_owned(),
            };
            self.devices.insert(name, place);
        }
    }

    /// The edits that these devices need, in order. What a file needs for all of its devices comes
    /// once, before the first of them.
    ///
    /// # Errors
    /// All devices that nobody describes, or that two files describe.
    pub fn resolve(&self, devices: &[String]) -> Result<Vec<&Edits>, Unresolvable> {
        let usable =
            |name: &&String| self.devices.contains_key(*name) && !self.errors.contains_key(*name);
        let missing: Vec<String> = devices.iter().filter(|n| !usable(n)).cloned().collect();
        if !missing.is_empty() {
            return Err(Unresolvable(missing));
        }
        let (mut edits, mut specs) = (Vec::new(), BTreeSet::new());
        for place in devices.iter().filter_map(|name| self.devices.get(name)) {
            if specs.insert(&place.path) {
                edits.push(&place.spec.container_edits);
            }
            let device = place.spec.devices.get(place.index);
            edits.extend(device.map(|device| &device.container_edits));
        }
        Ok(edits)
    }

    /// The names of all devices that can be had.
    pub fn devices(&self) -> Vec<&str> {
        let usable = |name: &&String| !self.errors.contains_key(*name);
        let names = self.devices.keys().filter(usable);
        names.map(String::as_str).collect()
    }

    /// What is wrong: (file or device, why).
    pub fn errors(&self) -> &BTreeMap<String, String> {
        &self.errors
    }
}

/// The specifications of a directory, by name.
fn files(dir: &Path, errors: &mut BTreeMap<String, String>) -> Vec<(PathBuf, Form)> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                errors.insert(dir.display().to_string(), error.to_string());
            }
            return Vec::new();
        }
    };
    let form = |path: PathBuf| {
        let form = match path.extension()?.to_str()? {
            "json" => Form::Json,
            "yaml" => Form::Yaml,
            _ => return None,
        };
        Some((path, form))
    };
    let named = entries.flatten().filter_map(|entry| form(entry.path()));
    let mut found: Vec<_> = named.take(FILES_MAX + 1).collect();
    if found.len() > FILES_MAX {
        let why = format!("more than {FILES_MAX} specifications; some are left out");
        errors.insert(dir.display().to_string(), why);
        found.truncate(FILES_MAX);
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn read(path: &Path, form: Form) -> Result<Spec, String> {
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !metadata.is_file() || metadata.len() > FILE_MAX {
        return Err(format!("it is no file, or larger than {FILE_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    parse(&text, form).map_err(|why| shim::launch::plain(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, device: &str, value: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.3.0","kind":"{kind}","containerEdits":{{"env":["ALL={value}"]}},
            "devices":[{{"name":"{device}","containerEdits":{{"env":["ONE={value}"]}}}}]}}"#
        )
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn later_directories_win_and_bad_files_harm_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let [low, high] = ["low", "high"].map(|name| dir.path().join(name));
        for dir in [&low, &high] {
            std::fs::create_dir(dir).unwrap();
        }
        let write = |dir: &Path, name: &str, text: &str| std::fs::write(dir.join(name), text);
        write(&low, "a.json", &spec("v/c", "d", "low")).unwrap();
        write(&low, "b.yaml", &spec("v/x", "e", "low")).unwrap();
        write(&low, "c.yaml", &spec("v/x", "e", "twice")).unwrap();
        write(&low, "bad.json", "{").unwrap();
        write(&low, "ignored.txt", "{").unwrap();
        write(&high, "a.json", &spec("v/c", "d", "high")).unwrap();
        let cache = Cache::read(&[low.clone(), high, dir.path().join("absent")]);
        assert_eq!(cache.devices(), ["v/c=d"]);
        let edits = cache.resolve(&names(&["v/c=d"])).unwrap();
        let env: Vec<_> = edits.iter().flat_map(|edits| edits.env.clone()).collect();
        assert_eq!(env, ["ALL=high", "ONE=high"]);
        let errors = cache.errors();
        assert_eq!(errors.len(), 2, "{errors:?}");
        let conflict = &errors["v/x=e"];
        assert!(
            conflict.contains("b.yaml") && conflict.contains("c.yaml"),
            "{conflict}"
        );
        assert!(errors.contains_key(&low.join("bad.json").display().to_string()));
        let refused = cache
            .resolve(&names(&["v/c=d", "v/x=e", "v/c=z"]))
            .unwrap_err();
        assert_eq!(refused.to_string(), "unresolvable CDI devices v/x=e, v/c=z");
    }
}
