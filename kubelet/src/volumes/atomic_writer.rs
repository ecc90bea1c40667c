// SPDX-License-Identifier: Apache-2.0
//! Replaces the whole content of a volume in one step that readers can't see half of.
//!
//! The files live in a directory with a new name each time, `..data` is a link to it that is
//! swapped by a rename, and what users open (`key`) is a link to `..data/key`: upstream's layout
//! (kubernetes/kubernetes, `pkg/volume/util/atomic_writer.go`), which programs watch for.
//! A crash leaves the old content or the new one; the next write removes what it left over.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::payload::Payload;
use super::{SetUpError, at};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Group ownership by `fsGroup`.
pub(super) type Group = Option<u32>;

/// One step of a write. Listing them makes "killed after any step" a test.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Remove what a killed writer left.
    Discard(String),
    /// Make the directory of the new content, and its files.
    Fill(String),
    /// Point the link `..data_tmp` at it.
    Link(String),
    /// Rename that link over `..data`: the one moment when content changes.
    Swap,
    /// Make the link that users open.
    Show(String),
    /// Remove the link of a file that is gone.
    Hide(String),
}

/// Makes `payload` the content of the volume `dir`, which must exist. Returns whether anything
/// changed; content that is already there is left alone, so that watchers stay quiet.
///
/// # Errors
/// The file system's. Readers still see the previous content then.
pub(super) fn write(dir: &Path, payload: &Payload, group: Group) -> Result<bool, SetUpError> {
    let steps = plan(dir, payload, group)?;
    for step in &steps {
        apply(dir, payload, group, step)?;
    }
    Ok(steps.iter().any(|step| !matches!(step, Step::Discard(_))))
}

fn plan(dir: &Path, payload: &Payload, group: Group) -> Result<Vec<Step>, SetUpError> {
    let names = entries(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok();
    let current = current.as_deref().and_then(Path::to_str);
    let mut steps: Vec<Step> = names
        .iter()
        .filter(|name| name.starts_with("..") && *name != DATA && Some(name.as_str()) != current)
        .map(|name| Step::Discard(name.clone()))
        .collect();
    let same = current.is_some_and(|current| holds(&dir.join(current), payload, group));
    if !same {
        let fresh = fresh_name(&names);
        steps.push(Step::Fill(fresh.clone()));
        steps.push(Step::Link(fresh));
        steps.push(Step::Swap);
    }
    let wanted: BTreeSet<&str> = payload
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect();
    for name in &wanted {
        if fs::read_link(dir.join(name)).ok() != Some(Path::new(DATA).join(name)) {
            steps.push(Step::Show((*name).to_owned()));
        }
    }
    let shown = names.iter().filter(|name| !name.starts_with(".."));
    for name in shown.filter(|name| !wanted.contains(name.as_str())) {
        steps.push(Step::Hide(name.clone()));
    }
    if !same && let Some(old) = current {
        steps.push(Step::Discard(old.to_owned()));
    }
    Ok(steps)
}

fn apply(dir: &Path, payload: &Payload, group: Group, step: &Step) -> Result<(), SetUpError> {
    match step {
        Step::Discard(name) => remove(&dir.join(name)),
        Step::Fill(name) => fill(&dir.join(name), payload, group),
        Step::Link(name) => {
            let link = dir.join(NEW_DATA);
            symlink(name, &link).map_err(at("linking", &link))
        }
        Step::Swap => {
            let from = dir.join(NEW_DATA);
            fs::rename(&from, dir.join(DATA)).map_err(at("swapping", &from))
        }
        Step::Show(name) => {
            let link = dir.join(name);
            remove(&link)?;
            symlink(Path::new(DATA).join(name), &link).map_err(at("linking", &link))
        }
        Step::Hide(name) => remove(&dir.join(name)),
    }
}

fn entries(dir: &Path) -> Result<Vec<String>, SetUpError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(at("reading", dir))? {
        let entry = entry.map_err(at("reading", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// `..<UTC time>.<number>`: the shape of upstream's names, and one that is free.
fn fresh_name(taken: &[String]) -> String {
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S");
    let mut number: u32 = rand::random();
    loop {
        let name = format!("{now}.{number}");
        if !taken.contains(&name) {
            return name;
        }
        number = number.wrapping_add(1);
    }
}

fn remove(path: &Path) -> Result<(), SetUpError> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(at("removing", path)),
    }
}

fn fill(root: &Path, payload: &Payload, group: Group) -> Result<(), SetUpError> {
    make_dir(root, group)?;
    for (path, file) in payload {
        let path = Path::new(path);
        let mut parent = root.to_owned();
        for part in path.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                make_dir(&parent, group)?;
            }
        }
        let target = root.join(path);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut out = options.open(&target).map_err(at("creating", &target))?;
        out.write_all(&file.data).map_err(at("writing", &target))?;
        own(&target, file.user, group)?;
        let mode = fs::Permissions::from_mode(file_mode(file.mode, group));
        out.set_permissions(mode)
            .map_err(at("setting the mode of", &target))?;
    }
    Ok(())
}

fn make_dir(path: &Path, group: Group) -> Result<(), SetUpError> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(at("creating", path))?;
    own(path, None, group)?;
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(at("setting the mode of", path))
}

fn own(path: &Path, user: Option<u32>, group: Group) -> Result<(), SetUpError> {
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, user, group).map_err(at("setting the owner of", path))
}

/// With a group, the group may read: upstream's mask for volumes that pods don't write.
fn file_mode(mode: u32, group: Group) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

/// Whether a content directory is complete and the same, modes and owners included.
fn holds(root: &Path, payload: &Payload, group: Group) -> bool {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeSet::new();
    if list_files(root, &mut PathBuf::new(), &mut found).is_err() {
        return false;
    }
    let wanted: BTreeSet<PathBuf> = payload.keys().map(PathBuf::from).collect();
    found == wanted
        && payload.iter().all(|(path, file)| {
            let path = root.join(path);
            let Ok(meta) = fs::symlink_metadata(&path) else {
                return false;
            };
            meta.is_file()
                && meta.mode() & 0o7777 == file_mode(file.mode, group)
                && file.user.is_none_or(|user| meta.uid() == user)
                && group.is_none_or(|group| meta.gid() == group)
                && meta.len() == file.data.len() as u64
                && fs::read(&path).is_ok_and(|data| data == file.data)
        })
}

fn list_files(root: &Path, below: &mut PathBuf, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&*below))? {
        let entry = entry?;
        below.push(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_files(root, below, found)?;
        } else {
            found.insert(below.clone());
        }
        below.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                let file = File {
                    data: data.as_bytes().to_vec(),
                    mode: 0o640,
                    user: None,
                };
                ((*path).to_owned(), file)
            })
            .collect()
    }

    /// What a pod sees: every name that does not start with `..`, read through the links.
    fn visible(dir: &Path) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        let names = entries(dir).expect("a readable volume");
        for name in names.iter().filter(|name| !name.starts_with("..")) {
            let mut found = BTreeSet::new();
            let path = dir.join(name);
            if path.is_dir() {
                list_files(&path, &mut PathBuf::new(), &mut found).expect("readable");
            } else {
                found.insert(PathBuf::new());
            }
            for below in found {
                let full = if below.as_os_str().is_empty() {
                    path.clone()
                } else {
                    path.join(&below)
                };
                let key = Path::new(name).join(below);
                let key = key.to_string_lossy().trim_end_matches('/').to_owned();
                seen.insert(
                    key,
                    fs::read_to_string(full).unwrap_or_else(|_| "<dangling>".into()),
                );
            }
        }
        seen
    }

    fn expected(payload: &Payload) -> BTreeMap<String, String> {
        payload
            .iter()
            .map(|(path, file)| {
                (
                    path.clone(),
                    String::from_utf8_lossy(&file.data).into_owned(),
                )
            })
            .collect()
    }

    fn hidden(dir: &Path) -> Vec<String> {
        let mut names = entries(dir).expect("a readable volume");
        names.retain(|name| name.starts_with(".."));
        names
    }

    #[test]
    fn a_write_shows_files_through_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let content = payload(&[("a", "1"), ("sub/dir/b", "2"), ("sub/c", "3")]);
        assert!(write(dir.path(), &content, None).expect("writes"));
        assert_eq!(visible(dir.path()), expected(&content));
        assert_eq!(
            fs::read_link(dir.path().join("a")).ok(),
            Some("..data/a".into())
        );
        let meta = fs::metadata(dir.path().join("a")).expect("exists");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
        assert_eq!(hidden(dir.path()).len(), 2, "..data and one directory");
    }

    #[test]
    fn the_same_content_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let content = payload(&[("a", "1")]);
        write(dir.path(), &content, None).expect("writes");
        let before = fs::read_link(dir.path().join(DATA)).expect("a link");
        assert!(!write(dir.path(), &content, None).expect("writes"));
        assert_eq!(fs::read_link(dir.path().join(DATA)).ok(), Some(before));
        let mut other_mode = content;
        other_mode.get_mut("a").expect("there").mode = 0o600;
        assert!(write(dir.path(), &other_mode, None).expect("writes"));
    }

    #[test]
    fn files_appear_change_and_vanish() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &payload(&[("a", "1"), ("old/x", "0")]), None).expect("writes");
        let content = payload(&[("a", "2"), ("new", "3")]);
        write(dir.path(), &content, None).expect("writes");
        assert_eq!(visible(dir.path()), expected(&content));
        write(dir.path(), &Payload::new(), None).expect("writes");
        assert!(visible(dir.path()).is_empty());
    }

    /// Kills the writer after every number of steps. Readers must see old or new content whole,
    /// and the next write must finish the work and leave nothing over.
    #[test]
    fn a_crash_at_any_step_is_repaired_by_the_next_write() {
        let old = payload(&[("a", "old"), ("gone", "old"), ("d/x", "old")]);
        let new = payload(&[("a", "new"), ("fresh", "new"), ("d/x", "new")]);
        let total = {
            let dir = tempfile::tempdir().expect("a directory");
            write(dir.path(), &old, None).expect("writes");
            plan(dir.path(), &new, None).expect("plans").len()
        };
        assert!(total >= 6, "fill, link, swap, show, hide, discard");
        for killed_after in 0..total {
            let dir = tempfile::tempdir().expect("a directory");
            write(dir.path(), &old, None).expect("writes");
            let steps = plan(dir.path(), &new, None).expect("plans");
            for step in &steps[..killed_after] {
                apply(dir.path(), &new, None, step).expect("applies");
            }
            let seen = visible(dir.path());
            let (a, x) = (&seen["a"], &seen["d/x"]);
            assert_eq!(a, x, "torn content after {killed_after} steps");
            write(dir.path(), &new, None).expect("writes");
            assert_eq!(
                visible(dir.path()),
                expected(&new),
                "after {killed_after} steps"
            );
            assert_eq!(
                hidden(dir.path()).len(),
                2,
                "left over after {killed_after} steps"
            );
        }
    }

    #[test]
    fn a_half_filled_directory_is_not_mistaken_for_content() {
        let dir = tempfile::tempdir().expect("a directory");
        let half = dir.path().join("..2026_01_01_00_00_00.1");
        fs::create_dir(&half).expect("creates");
        fs::write(half.join("a"), "1").expect("writes");
        let content = payload(&[("a", "1"), ("b", "2")]);
        write(dir.path(), &content, None).expect("writes");
        assert!(!half.exists());
        assert_eq!(visible(dir.path()), expected(&content));
    }
}
