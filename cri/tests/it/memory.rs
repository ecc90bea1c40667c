// SPDX-License-Identifier: Apache-2.0
//! What a pod costs while nothing happens in it: the memory of its shim and of pause.

use std::path::Path;

use crate::node::{shell, test};

/// `PODWRIGHT_TEST_PODS` says how many pods there are; they share the pages of both executables.
const PODS: usize = 20;
/// Proportional set size of shim and pause together, for each pod.
const LIMIT_KIB: u64 = 256;

#[test]
fn a_shim_and_its_pause_are_small() {
    test(|node| async move {
        let count = std::env::var("PODWRIGHT_TEST_PODS").map_or(PODS, |n| n.parse().unwrap());
        let mut pods = Vec::new();
        for number in 0..count {
            let pod = node.run_pod(node.pod(&format!("small{number}"))).await;
            node.launch(&pod, shell("main", "echo up; sleep 1000"))
                .await;
            pods.push(pod);
        }
        let (mut total, mut pauses) = (0, 0);
        for pod in &pods {
            let dir = node.config().run_dir.join("cri/sandboxes").join(pod);
            let shim = crate::restart::shim_of(dir.to_str().unwrap());
            total += pss_kib(Path::new(&format!("/proc/{shim}")));
            let children = format!("/proc/{shim}/task/{shim}/children");
            for child in std::fs::read_to_string(children)
                .unwrap()
                .split_whitespace()
            {
                let process = Path::new("/proc").join(child);
                if std::fs::read_to_string(process.join("comm"))
                    .unwrap()
                    .starts_with("pause")
                {
                    total += pss_kib(&process);
                    pauses += 1;
                }
            }
        }
        assert_eq!(pauses, count);
        let each = total / count as u64;
        println!("{each} KiB for each of {count} pods");
        assert!(each <= LIMIT_KIB, "{each} KiB for each of {count} pods");
        for pod in &pods {
            node.remove_pod(pod).await;
        }
    });
}

fn pss_kib(process: &Path) -> u64 {
    let sums = std::fs::read_to_string(process.join("smaps_rollup")).unwrap();
    let line = sums.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
