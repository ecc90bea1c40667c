// SPDX-License-Identifier: Apache-2.0
//! Where a pod's files are: upstream's layout below `<data-dir>/kubelet`.

use std::path::{Path, PathBuf};

/// The directory of one pod: `pods/<uid>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodDir(PathBuf);

impl PodDir {
    /// `None` when the uid is not a plain file name, so that it can never lead elsewhere.
    pub(super) fn new(kubelet_dir: &Path, uid: &str) -> Option<Self> {
        is_plain_name(uid).then(|| Self(pods(kubelet_dir).join(uid)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// `volumes/kubernetes.io~<plugin>/<name>`.
    pub(super) fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        let plugin = format!("kubernetes.io~{plugin}");
        self.0.join("volumes").join(plugin).join(name)
    }

    /// The mark of a volume whose set-up was completed once.
    pub(super) fn ready_mark(&self, plugin: &str, name: &str) -> PathBuf {
        let plugin = format!("kubernetes.io~{plugin}");
        self.0.join("plugins").join(plugin).join(name).join("ready")
    }

    /// Where a resolved `subPath` is bound for one mount of one container.
    pub(super) fn subpath(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        let root = self.0.join("volume-subpaths");
        root.join(volume).join(container).join(index.to_string())
    }

    /// One file per start of a container: its termination log.
    pub(super) fn container(&self, name: &str) -> PathBuf {
        self.0.join("containers").join(name)
    }

    pub(super) fn etc_hosts(&self) -> PathBuf {
        self.0.join("etc-hosts")
    }
}

/// The directory of all pods.
pub(super) fn pods(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join("pods")
}

/// One path component that stays where it is put.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_upstream() {
        let pod = PodDir::new(Path::new("/d/kubelet"), "u-1").expect("a plain uid");
        assert_eq!(
            pod.volume("configmap", "conf"),
            Path::new("/d/kubelet/pods/u-1/volumes/kubernetes.io~configmap/conf")
        );
        assert_eq!(
            pod.subpath("v", "c", 2),
            Path::new("/d/kubelet/pods/u-1/volume-subpaths/v/c/2")
        );
        assert_eq!(
            pod.ready_mark("empty-dir", "tmp"),
            Path::new("/d/kubelet/pods/u-1/plugins/kubernetes.io~empty-dir/tmp/ready")
        );
    }

    #[test]
    fn a_uid_that_is_a_path_is_refused() {
        for uid in ["", ".", "..", "a/b", "../x", "a\0"] {
            assert_eq!(PodDir::new(Path::new("/d"), uid), None, "{uid:?}");
        }
    }
}
