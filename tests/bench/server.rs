// SPDX-License-Identifier: Apache-2.0
//! The whole node: start to Ready, manifest to Ready, memory when idle.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::TestHost;
use tests::pods::script_pod;

use crate::memory;
use crate::report::Report;

/// A server's start takes seconds, so it is measured less often than a call.
const STARTS: usize = 5;

pub(crate) fn measure(runs: usize, report: &mut Report) -> Result<()> {
    let who = "podwright";
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let host = TestHost::new()?;
        let start = Instant::now();
        let server = host.server()?;
        starts.push(start.elapsed());
        server.stop()?;
        host.down()?;
    }
    report.times(
        "server start to node Ready (empty data directory)",
        who,
        &starts,
    );

    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    // Long enough for what only start-up needs to be given back.
    std::thread::sleep(Duration::from_secs(10));
    report.kib(
        "server, idle (PSS)",
        who,
        vec![memory::pss_kib(server.pid())],
    );
    let mut ready = Vec::new();
    for run in 0..runs.min(20) {
        let name = format!("bench-{run}");
        let manifest = script_pod(&name, "Always", "sleep 100000");
        let file = host.write(&format!("{name}.yaml"), &manifest)?;
        let start = Instant::now();
        host.kubectl_ok(&["apply", "-f", &file])?;
        host.kubectl_ok(&[
            "wait",
            "pod",
            &name,
            "--for=condition=Ready",
            "--timeout=60s",
        ])?;
        ready.push(start.elapsed());
    }
    report.times("kubectl apply + wait until Ready", who, &ready);
    report.kib(
        "server, 20 pods (PSS)",
        who,
        vec![memory::pss_kib(server.pid())],
    );
    server.stop()?;
    host.down()
}
