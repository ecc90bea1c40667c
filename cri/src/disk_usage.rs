// SPDX-License-Identifier: Apache-2.0
//! What directory trees occupy. Kubelets ask for it every few seconds, and a tree of a million files
//! takes seconds to walk, so a walk's result counts for a time that depends on how long it took: all
//! walks together take at most a twentieth of one processor per tree.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::blocking;
use crate::fault::Result;

/// For so many times the duration of a walk its result counts.
const REST: u32 = 20;

/// What a directory tree occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// The last walk of each tree. Trees that nobody asked for lately are forgotten.
#[derive(Debug, Default)]
pub(crate) struct DiskUsage {
    trees: Mutex<HashMap<PathBuf, Arc<Tree>>>,
}

#[derive(Debug, Default)]
struct Tree {
    /// Held while somebody walks: others wait for the result instead of walking too.
    last: tokio::sync::Mutex<Option<Walk>>,
}

#[derive(Debug, Clone, Copy)]
struct Walk {
    usage: Usage,
    began: Instant,
    took: Duration,
}

impl Walk {
    fn counts(&self, now: Instant) -> bool {
        now.duration_since(self.began) < self.took * (REST + 1)
    }
}

impl DiskUsage {
    /// Blocks and inodes below `dir`, without following links; a file of several names counts once.
    /// Files that vanish meanwhile do not count.
    ///
    /// # Errors
    /// Only when the work panicked.
    pub(crate) async fn of(&self, dir: &Path) -> Result<Usage> {
        let tree = self.tree(dir);
        let mut last = tree.last.lock().await;
        if let Some(walk) = last.filter(|walk| walk.counts(Instant::now())) {
            return Ok(walk.usage);
        }
        let (began, dir) = (Instant::now(), dir.to_owned());
        let usage = blocking::run("adding up disk usage", move || walk(dir)).await?;
        let took = began.elapsed();
        *last = Some(Walk { usage, began, took });
        Ok(usage)
    }

    fn tree(&self, dir: &Path) -> Arc<Tree> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        trees.retain(|known, tree| {
            let counts = |last: &Option<Walk>| last.is_some_and(|walk| walk.counts(now));
            known == dir
                || Arc::strong_count(tree) > 1
                || tree.last.try_lock().is_ok_and(|last| counts(&last))
        });
        trees.entry(dir.to_owned()).or_default().clone()
    }
}

fn walk(dir: PathBuf) -> Usage {
    let (mut usage, mut seen) = (Usage::default(), BTreeSet::new());
    let mut pending = vec![dir];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let several = !metadata.is_dir() && metadata.nlink() > 1;
            if several && !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            usage.inodes += 1;
            usage.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_several_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        let usage = DiskUsage::default().of(dir.path()).await.unwrap();
        assert_eq!(usage.inodes, 3);
        assert!((100_000..130_000).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn a_long_walk_counts_for_longer() {
        let began = Instant::now();
        let walk = |millis| Walk {
            usage: Usage::default(),
            began,
            took: Duration::from_millis(millis),
        };
        let later = began + Duration::from_secs(10);
        assert!(!walk(5).counts(later));
        assert!(walk(1000).counts(later));
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_forgotten() {
        let known = DiskUsage::default();
        for n in 0..100 {
            known
                .of(Path::new(&format!("/nonexistent/{n}")))
                .await
                .unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(known.trees.lock().unwrap().len() < 100);
    }
}
