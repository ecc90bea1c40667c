// SPDX-License-Identifier: Apache-2.0
//! A node under test: a daemon that can be killed and started again, its client, its image.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::Config;
use cri::image::ImageStore;
use cri::image::types::{BuildOptions, RootfsSource};
use cri::v1;
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use futures::FutureExt as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The image that every node has.
pub(crate) const IMAGE: &str = "example.test/busybox:1";
/// How long a node waits for an NRI plugin's answer.
pub(crate) const NRI_PATIENCE: Duration = Duration::from_secs(5);
/// For whatever is waited for. Generous: a bound on a hang, not a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One daemon's life.
enum Daemon {
    /// In this process, where it can be asked to stop.
    Within {
        runtime: tokio::runtime::Runtime,
        stop: CancellationToken,
        ended: oneshot::Receiver<Result<(), cri::Error>>,
    },
    /// In a process of its own, which can be killed between any two instructions.
    Apart(std::process::Child),
}

/// The node.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    apart: bool,
    daemon: Option<Daemon>,
}

/// Runs a test on a node of its own, and checks that nothing is left of it.
pub(crate) fn test<F, Fut>(body: F)
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    run(false, || {}, body);
}

/// As `test`, with the daemon in a process of its own.
pub(crate) fn test_apart<F, Fut>(body: F)
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    run(true, || {}, body);
}

/// As `test`, or `test_apart`, in a mount namespace that `prepare` has changed.
pub(crate) fn test_prepared<F, Fut>(apart: bool, prepare: fn(), body: F)
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    run(apart, prepare, body);
}

/// Tells the test executable to be the daemon of the node in this directory.
const APART: &str = "PODWRIGHT_TEST_DAEMON";
/// The test that then is the daemon.
const APART_TEST: &str = "node::the_daemon_of_another_test";

#[test]
fn the_daemon_of_another_test() {
    let Some(root) = std::env::var_os(APART) else {
        return;
    };
    // Into the node's daemon.log, which is shown when a daemon does not start.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .init();
    let (ready, _is_ready) = oneshot::channel();
    let runtime = runtime();
    runtime
        .block_on(cri::run(
            config_in(Path::new(&root)),
            ready,
            CancellationToken::new(),
        ))
        .unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Where everything of a node is, given its directory.
fn config_in(root: &Path) -> Config {
    let name = root.file_name().unwrap().to_str().unwrap();
    let suffix: String = name.chars().rev().take(6).collect();
    let mut settings = cri::Settings::default();
    settings.nri.socket_path = Some(root.join("nri.sock"));
    settings.nri.plugin_path = root.join("nri-plugins");
    settings.nri.plugin_config_path = root.join("nri-conf");
    // The machine may be busy: a plugin that is to be late is so for ever.
    settings.nri.plugin_request_timeout = NRI_PATIENCE;
    settings.cdi.spec_dirs = vec![root.join("cdi")];
    for handler in ["runc", "crun"] {
        let places = ["/usr/bin", "/usr/sbin"].map(|dir| Path::new(dir).join(handler));
        let path = places
            .iter()
            .find(|path| path.exists())
            .unwrap_or(&places[0]);
        let external = cri::settings::RuntimeHandler {
            path: path.clone(),
            kind: Default::default(),
            root: None,
        };
        settings.runtimes.insert(handler.to_owned(), external);
    }
    Config {
        listen: root.join("cri.sock"),
        data_dir: root.join("data"),
        run_dir: root.join("run"),
        cgroup_parent: format!("/podwright-test-{suffix}"),
        cni_conf_dir: root.join("net.d"),
        cni_bin_dir: root.join("bin"),
        registries_dir: root.join("certs.d"),
        known: cni::Known::default(),
        settings: cri::Live::new(settings),
    }
}

fn run<F, Fut>(apart: bool, prepare: fn(), body: F)
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        isolate();
        prepare();
        runtime().block_on(async move {
            let mut node = Node::new(apart).await;
            node.start().await;
            let node = Handle {
                config: node.config.clone(),
                root: node.dir.path().to_owned(),
                node: Arc::new(Mutex::new(node)),
            };
            let outcome = AssertUnwindSafe(body(node.clone())).catch_unwind().await;
            let mut node = node.node.lock().await;
            node.kill().await;
            let report = cri::purge(node.config.clone()).await.unwrap();
            if let Err(panic) = outcome {
                resume_unwind(panic);
            }
            assert_eq!(report.problems, Vec::<String>::new());
            node.assert_nothing_left();
        });
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// What a test holds.
#[derive(Clone)]
pub(crate) struct Handle {
    config: Config,
    root: PathBuf,
    node: Arc<Mutex<Node>>,
}

// The threads of both runtimes are born of this one, so they share its namespaces.
fn isolate() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

impl Node {
    async fn new(apart: bool) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cri-it-")
            .tempdir()
            .unwrap();
        let root = dir.path();
        let config = config_in(root);
        fs::create_dir_all(&config.cni_conf_dir).unwrap();
        let network = cni::PodNetwork::new("pwtest0", "pwtest", "10.88.0.0/24", "10.88.0.0/16");
        let list = cni::default_conflist(&network.unwrap());
        fs::write(config.cni_conf_dir.join("10-test.conflist"), list).unwrap();
        // Spawned from this thread, so it acts in this thread's network namespace.
        let up = std::process::Command::new("/bin/busybox")
            .args(["ip", "link", "set", "lo", "up"])
            .status();
        assert!(
            up.expect("these tests need /bin/busybox (busybox-static)")
                .success()
        );
        build_image(&config, root).await;
        Self {
            dir,
            config,
            apart,
            daemon: None,
        }
    }

    async fn start(&mut self) {
        if self.apart {
            self.spawn();
            return self.serves().await;
        }
        assert!(self.daemon.is_none());
        let runtime = runtime();
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let run = cri::run(self.config.clone(), ready, stop.clone());
        runtime.spawn(async move {
            let _ = end.send(run.await);
        });
        tokio::select! {
            ready = is_ready => if ready.is_err() {
                panic!("the daemon did not start: {:?}", ended.await);
            },
            () = tokio::time::sleep(PATIENCE) => panic!("the daemon is not ready"),
        }
        self.daemon = Some(Daemon::Within {
            runtime,
            stop,
            ended,
        });
    }

    /// Starts the daemon as a process of its own, and does not wait for it.
    fn spawn(&mut self) {
        assert!(self.daemon.is_none());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("daemon.log"))
            .unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", APART_TEST, "--nocapture"])
            .env(APART, self.dir.path())
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(Daemon::Apart(child));
    }

    async fn serves(&mut self) {
        let start = Instant::now();
        while tokio::net::UnixStream::connect(&self.config.listen)
            .await
            .is_err()
        {
            if let Some(Daemon::Apart(child)) = &mut self.daemon
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("the daemon ended with {status}: {}", self.last_words());
            }
            let late = start.elapsed() > PATIENCE;
            assert!(!late, "the daemon is not ready: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The end of what the daemons of this node have logged.
    fn last_words(&self) -> String {
        const LINES: usize = 60;
        let log = fs::read(self.dir.path().join("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let skipped = log.lines().count().saturating_sub(LINES);
        let last: Vec<_> = log.lines().skip(skipped).collect();
        last.join("\n")
    }

    /// Ends the daemon wherever it is. A daemon within this process is not killed in the middle of
    /// a blocking call, but no task of it gets to finish.
    async fn kill(&mut self) {
        match self.daemon.take() {
            None => {}
            Some(Daemon::Within { runtime, .. }) => tokio::task::spawn_blocking(move || {
                runtime.shutdown_timeout(Duration::from_secs(20));
            })
            .await
            .unwrap(),
            Some(Daemon::Apart(mut child)) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    async fn stop(&mut self) {
        let Some(Daemon::Within {
            runtime,
            stop,
            ended,
        }) = self.daemon.take()
        else {
            panic!("only a daemon within this process can be stopped");
        };
        stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.unwrap().unwrap().unwrap();
        runtime.shutdown_background();
    }

    fn assert_nothing_left(&self) {
        let root = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|l| l.contains(root)).collect();
        assert_eq!(left, Vec::<&str>::new(), "mounts are left");
        assert!(
            !self.config.run_dir.join("cri/netns").exists(),
            "namespaces are left"
        );
        let parent = self.config.cgroup_parent.trim_start_matches('/');
        for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            assert!(
                !tree.path().join(parent).exists(),
                "cgroups are left in {tree:?}"
            );
        }
        assert!(
            !Path::new("/sys/fs/cgroup").join(parent).exists(),
            "cgroups are left"
        );
        assert_no_links();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(
                !line.contains(root),
                "process {:?} is left: {line}",
                process.file_name()
            );
        }
    }
}

/// No pod's link is on this host. The kernel takes a link with its namespace, on its own time.
pub(crate) fn assert_no_links() {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let links = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let of_pods = |l: &&str| l.trim().starts_with("pw") && !l.contains("pwtest0");
        let left: Vec<&str> = links.lines().filter(of_pods).collect();
        if left.is_empty() {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "links are left: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn build_image(config: &Config, root: &Path) {
    let rootfs = root.join("rootfs");
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "data"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
        .expect("these tests need /bin/busybox (busybox-static)");
    for applet in [
        "mkdir", "tail", "tty", "sh", "sleep", "cat", "echo", "id", "head", "yes", "touch",
        "hostname", "ip", "nc", "stty", "grep", "true", "mount", "ls", "env", "wc", "dd", "ps",
        "pwd",
    ] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/data:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        rootfs.join("etc/group"),
        "root:x:0:\nweb:x:102:\naudio:x:63:web\n",
    )
    .unwrap();
    let store =
        ImageStore::open(ImageStore::dir_in(&config.data_dir), &config.registries_dir).unwrap();
    let mut options = BuildOptions::new(RootfsSource::Dir(rootfs), IMAGE);
    options.cmd = vec!["/bin/sleep".into(), "1000".into()];
    options.env = vec!["FROM_IMAGE=yes".into()];
    store.build(options).await.unwrap();
}

impl Handle {
    /// Kills the daemon as `kill -9` does and starts it again.
    pub(crate) async fn crash(&self) {
        let mut node = self.node.lock().await;
        node.kill().await;
        node.start().await;
    }

    pub(crate) async fn kill(&self) {
        self.node.lock().await.kill().await;
    }

    /// Kills the daemon and starts the next one, which may be killed before it serves.
    pub(crate) async fn replace(&self) {
        let mut node = self.node.lock().await;
        node.kill().await;
        node.spawn();
    }

    /// Waits until the daemon serves.
    pub(crate) async fn serves(&self) {
        self.node.lock().await.serves().await;
    }

    pub(crate) async fn start(&self) {
        self.node.lock().await.start().await;
    }

    /// Stops the daemon cleanly.
    pub(crate) async fn stop(&self) {
        self.node.lock().await.stop().await;
    }

    /// Stops the daemon and starts one with these settings.
    pub(crate) async fn restart_with(&self, settings: cri::Settings) {
        let mut node = self.node.lock().await;
        node.stop().await;
        node.config.settings = cri::Live::new(settings);
        node.start().await;
    }

    /// The process of a daemon that runs apart.
    pub(crate) async fn daemon_pid(&self) -> u32 {
        match &self.node.lock().await.daemon {
            Some(Daemon::Apart(child)) => child.id(),
            _ => panic!("no daemon runs apart"),
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    pub(crate) fn config(&self) -> Config {
        self.config.clone()
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let path = self.config().listen;
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }))
            .await
    }

    pub(crate) async fn cri(&self) -> RuntimeServiceClient<Channel> {
        self.try_cri().await.unwrap()
    }

    /// Where to attach.
    pub(crate) async fn attach_url(&self, request: v1::AttachRequest) -> String {
        let answer = self.cri().await.attach(request).await;
        answer.unwrap().into_inner().url
    }

    /// Where ports are forwarded.
    pub(crate) async fn port_forward_url(&self, request: v1::PortForwardRequest) -> String {
        let answer = self.cri().await.port_forward(request).await;
        answer.unwrap().into_inner().url
    }

    /// A client, if the daemon serves.
    pub(crate) async fn try_cri(
        &self,
    ) -> Result<RuntimeServiceClient<Channel>, tonic::transport::Error> {
        let client = RuntimeServiceClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(64 << 20))
    }

    pub(crate) async fn images(&self) -> ImageServiceClient<Channel> {
        self.try_images().await.unwrap()
    }

    /// A client of the image service, if the daemon serves.
    pub(crate) async fn try_images(
        &self,
    ) -> Result<ImageServiceClient<Channel>, tonic::transport::Error> {
        Ok(ImageServiceClient::new(self.channel().await?))
    }

    /// A pod's configuration, with logs in the node's directory.
    pub(crate) fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.root().join("logs").join(name).display().to_string(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod of this configuration.
    pub(crate) async fn run_pod(&self, config: v1::PodSandboxConfig) -> String {
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let answer = self.cri().await.run_pod_sandbox(request).await.unwrap();
        answer.into_inner().pod_sandbox_id
    }

    /// Creates a container without starting it.
    pub(crate) async fn create(
        &self,
        pod: &str,
        config: v1::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        let answer = self.cri().await.create_container(request).await?;
        Ok(answer.into_inner().container_id)
    }

    /// Creates and starts a container.
    pub(crate) async fn launch(&self, pod: &str, config: v1::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        self.cri().await.start_container(request).await.unwrap();
        id
    }

    pub(crate) async fn status(&self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.cri().await.container_status(request).await.unwrap();
        answer.into_inner().status.unwrap()
    }

    /// Waits until the container has ended.
    pub(crate) async fn ended(&self, id: &str) -> v1::ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.status(id).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a command in a container.
    pub(crate) async fn exec(&self, id: &str, command: &str) -> (String, i32) {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words(&["/bin/sh", "-c", command]),
            timeout: 30,
        };
        let answer = self
            .cri()
            .await
            .exec_sync(request)
            .await
            .unwrap()
            .into_inner();
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        (text, answer.exit_code)
    }

    pub(crate) async fn stop_container(&self, id: &str, timeout: i64) {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.cri().await.stop_container(request).await.unwrap();
    }

    pub(crate) async fn remove_pod(&self, id: &str) {
        let mut cri = self.cri().await;
        let pod_sandbox_id = id.to_owned();
        cri.stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        })
        .await
        .unwrap();
        cri.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id })
            .await
            .unwrap();
    }

    pub(crate) async fn pods(&self) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest::default();
        self.cri()
            .await
            .list_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner()
            .items
    }

    pub(crate) async fn containers(&self) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest::default();
        self.cri()
            .await
            .list_containers(request)
            .await
            .unwrap()
            .into_inner()
            .containers
    }
}

/// A pid namespace for each container.
pub(crate) fn own_pid() -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        ..Default::default()
    }
}

pub(crate) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

/// A container that runs this shell command.
pub(crate) fn shell(name: &str, command: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: IMAGE.to_owned(),
            ..Default::default()
        }),
        command: words(&["/bin/sh", "-c", command]),
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: None,
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(own_pid()),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The container's security context, to change it.
pub(crate) fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// Waits until a log file has this text, and returns all of it.
pub(crate) async fn log_with(path: &str, text: &str) -> String {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    until(text, || read().contains(text)).await;
    read()
}

/// Waits until this is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The content of a container's cgroup file: of this v1 controller, or on v2.
pub(crate) fn cgroup_value(node: &Handle, id: &str, controller: &str, file: &str) -> String {
    let parent = node.config().cgroup_parent;
    let roots = [
        format!("/sys/fs/cgroup/{controller}{parent}"),
        format!("/sys/fs/cgroup{parent}"),
    ];
    let root = roots.iter().find(|root| Path::new(root).exists());
    let found = find_dir(Path::new(root.expect("no cgroup of this node")), id);
    let path = found.expect("no such cgroup").join(file);
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Whether the kernel counts the pressure of a container's cgroup: on v2 only.
pub(crate) fn counts_pressure() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && Path::new("/proc/pressure").exists()
}

/// Bytes of memory that a container may have.
pub(crate) fn memory_limit(node: &Handle, id: &str) -> String {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = if v2 {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    cgroup_value(node, id, "memory", file)
}

fn find_dir(dir: &Path, name: &str) -> Option<PathBuf> {
    if dir.ends_with(name) {
        return Some(dir.to_owned());
    }
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut dirs = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.find_map(|entry| find_dir(&entry.path(), name))
}
