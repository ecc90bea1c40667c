// SPDX-License-Identifier: Apache-2.0
//! The shim outlives its clients, and ends when told to or when its directory is gone.

use std::path::Path;

use cri::shim_client::{Phase, Shim};

use crate::pod::{Pod, container, eventually, process};

/// The same test binary, as a client that connects, starts a container and is then killed.
const CLIENT: &str = "PODWRIGHT_TEST_CLIENT_DIR";

#[tokio::test]
async fn a_killed_client_loses_nothing() {
    if let Ok(dir) = std::env::var(CLIENT) {
        return client(Path::new(&dir)).await;
    }
    let pod = Pod::start().await;
    let spec = container(
        "while [ ! -e /go ]; do sleep 0.05; done; echo done; exit 3",
        &[],
    );
    let plan = cri::oci::compile(&spec, &pod.context("c")).expect("compiles");
    pod.shim
        .create("c", plan, pod.io("c"))
        .await
        .expect("creates");
    let mut child = std::process::Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "lifetime::a_killed_client_loses_nothing"])
        .env(CLIENT, &pod.dir)
        .spawn()
        .expect("spawns");
    let marker = pod.dir.join("started");
    eventually("the client started the container", || marker.exists()).await;
    child.kill().expect("kills");
    child.wait().expect("reaps");
    pod.exec("c", "go", &["touch", "/go"]).await;
    // A new connection, as after a restart of the daemon.
    let shim = Shim::connect(&pod.dir).await.expect("connects");
    let record = shim.wait(&process("c")).await.expect("is known");
    assert_eq!(record.code, 3);
    let state = shim.state().await.expect("answers");
    let c = state.processes.iter().find(|p| p.process == process("c"));
    assert_eq!(c.expect("is known").phase, Phase::Exited(record));
    assert_eq!(pod.output("c"), "done\n");
    let on_disk = Shim::read_records(&pod.dir).expect("reads");
    assert_eq!(on_disk, [(process("c"), record)]);
    pod.stop().await;
}

async fn client(dir: &Path) {
    let shim = Shim::connect(dir).await.expect("connects");
    shim.start("c").await.expect("starts");
    std::fs::write(dir.join("started"), "").expect("writes");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn removing_the_directory_ends_the_shim_and_its_containers() {
    let pod = Pod::start().await;
    pod.start_shell("c", "sleep 1000").await;
    let shim_pid = pod.shim.state().await.expect("answers").shim_pid;
    std::fs::remove_dir_all(&pod.dir).expect("removes");
    let gone = |pid: u32| move || !Path::new(&format!("/proc/{pid}")).exists();
    eventually("the sandbox is gone", gone(pod.sandbox_pid)).await;
    eventually("the shim is gone", gone(shim_pid)).await;
    assert!(!pod.dir.exists(), "nothing was written to it in the end");
}

#[tokio::test]
async fn nothing_shows_in_the_hosts_mount_table() {
    let pod = Pod::start().await;
    pod.start_shell("c", "sleep 1000").await;
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
    let ours = pod
        .dir
        .parent()
        .expect("a parent")
        .to_string_lossy()
        .into_owned();
    assert!(!table.contains(&ours), "{table}");
    pod.stop().await;
}

#[tokio::test]
async fn exits_are_announced_and_removal_forgets() {
    let pod = Pod::start().await;
    let mut exits = pod.shim.exits();
    let (record, _) = pod.run("c", "exit 5", &[]).await;
    let announced = tokio::time::timeout(crate::pod::DEADLINE, exits.recv()).await;
    let announced = announced.expect("in time").expect("open");
    assert_eq!(announced, (process("c"), record));
    pod.shim.remove(&process("c")).await.expect("removes");
    pod.shim.remove(&process("c")).await.expect("is idempotent");
    assert!(pod.shim.wait(&process("c")).await.is_err());
    pod.stop().await;
}
