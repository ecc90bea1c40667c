// SPDX-License-Identifier: Apache-2.0
//! An image's tree as overlay would merge its layers, without mounting: whiteouts and opaque
//! directories hide, links are followed within the merged tree.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// As the kernel's MAXSYMLINKS.
const MAX_LINKS: u32 = 40;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Directories that merge to the one that is seen, topmost first.
    Directory(Vec<PathBuf>),
    /// A file of the topmost layer that has it.
    Other(PathBuf),
}

/// Looks a path up, links followed. Nothing outside of the layers is ever reached. Blocks on the disk.
///
/// # Errors
/// When a layer cannot be read, or the links go round.
pub(crate) fn find(lowers: &[PathBuf], path: &Path) -> io::Result<Option<Found>> {
    let mut todo: Vec<OsString> = components(path);
    todo.reverse();
    // Merged directories from the root to the current one; each is a stack of directories, top first.
    let mut trail: Vec<Vec<PathBuf>> = vec![lowers.to_vec()];
    let mut links = 0;
    while let Some(component) = todo.pop() {
        if component == ".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let here = trail.last().map_or(&[][..], Vec::as_slice);
        match step(here, Path::new(&component))? {
            Step::Missing => return Ok(None),
            Step::Directory(stack) => trail.push(stack),
            Step::Other(found) => return Ok(todo.is_empty().then_some(Found::Other(found))),
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                if target.has_root() {
                    trail.truncate(1);
                }
                todo.extend(components(&target).into_iter().rev());
            }
        }
    }
    Ok(trail.pop().map(Found::Directory))
}

fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

enum Step {
    Missing,
    Directory(Vec<PathBuf>),
    Link(PathBuf),
    Other(PathBuf),
}

/// One component down in a merged directory.
fn step(stack: &[PathBuf], name: &Path) -> io::Result<Step> {
    let mut merged = Vec::new();
    for directory in stack {
        let path = directory.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            let opaque = xattr::get(&path, "trusted.overlay.opaque")?;
            merged.push(path);
            if opaque.as_deref() == Some(b"y") {
                break;
            }
            continue;
        }
        let hidden = !merged.is_empty() || (kind.is_char_device() && metadata.rdev() == 0);
        if hidden {
            break;
        }
        if kind.is_symlink() {
            return Ok(Step::Link(fs::read_link(&path)?));
        }
        return Ok(Step::Other(path));
    }
    Ok(if merged.is_empty() {
        Step::Missing
    } else {
        Step::Directory(merged)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_of_what_is_not_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["top/data", "middle/data/sub", "bottom/data", "bottom/etc"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("bottom/data/file"), "").unwrap();
        std::os::unix::fs::symlink("/data", at("top/link")).unwrap();
        std::os::unix::fs::symlink("../../../etc/passwd", at("top/out")).unwrap();
        let lowers = ["top", "middle", "bottom"].map(at);
        let find = |path: &str| find(&lowers, Path::new(path)).unwrap();
        let merged = ["top/data", "middle/data", "bottom/data"].map(at).to_vec();
        assert_eq!(find("data"), Some(Found::Directory(merged.clone())));
        assert_eq!(find("link/../link"), Some(Found::Directory(merged)));
        let file = Found::Other(at("bottom/data/file"));
        assert_eq!(find("data/sub/../file"), Some(file));
        assert_eq!(find("out"), None);
        assert_eq!(find("data/file/below"), None);
    }
}
