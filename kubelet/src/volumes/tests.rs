// SPDX-License-Identifier: Apache-2.0
//! Volumes on the real kernel: every test runs on a thread with a mount namespace of its own, so
//! that nothing that it mounts is seen by, or survives on, the machine. They need root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::*;
use crate::cri_v1::Mount;
use crate::env::ObjectFuture;

/// Objects that a test changes while volumes are up.
#[derive(Default)]
struct Cluster {
    config_maps: Mutex<BTreeMap<String, Arc<ConfigMap>>>,
    secrets: Mutex<BTreeMap<String, Arc<Secret>>>,
}

impl Cluster {
    fn put_config_map(&self, name: &str, value: Value) {
        let map = Arc::new(serde_json::from_value(value).expect("a map"));
        self.config_maps
            .lock()
            .expect("lock")
            .insert(name.into(), map);
    }

    fn put_secret(&self, name: &str, value: Value) {
        let secret = Arc::new(serde_json::from_value(value).expect("a secret"));
        self.secrets
            .lock()
            .expect("lock")
            .insert(name.into(), secret);
    }
}

impl Objects for Cluster {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<ConfigMap>> {
        let (kind, found) = (
            "configmap",
            self.config_maps.lock().expect("lock").get(name).cloned(),
        );
        let name = name.to_owned();
        Box::pin(async move { found.ok_or(ObjectError::NotFound { kind, name }) })
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> ObjectFuture<'a, Arc<Secret>> {
        let (kind, found) = (
            "secret",
            self.secrets.lock().expect("lock").get(name).cloned(),
        );
        let name = name.to_owned();
        Box::pin(async move { found.ok_or(ObjectError::NotFound { kind, name }) })
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> ObjectFuture<'a, Arc<RuntimeClass>> {
        let (kind, name) = ("runtimeclass.node.k8s.io", name.to_owned());
        Box::pin(async move { Err(ObjectError::NotFound { kind, name }) })
    }

    fn services<'a>(&'a self, _: &'a str) -> ObjectFuture<'a, Arc<Vec<Service>>> {
        Box::pin(async { Ok(Arc::default()) })
    }
}

struct Lab {
    root: PathBuf,
    cluster: Arc<Cluster>,
    volumes: Volumes,
}

impl Lab {
    fn pod_dir(&self) -> PathBuf {
        self.root.join("kubelet/pods/u-1")
    }

    async fn mounts(&self, pod: &Pod, mounts: Value) -> Result<Vec<Mount>, String> {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).expect("valid");
        let prepared = self.volumes.prepare(pod).await.map_err(|e| e.to_string())?;
        let context = MountContext {
            env: &[
                ("DIR".into(), "logs".into()),
                ("EMPTY".into(), String::new()),
            ],
            pod_ips: &[[10, 42, 0, 9].into()],
            hostname: "web",
            host_domain: "",
            recursive_read_only_mounts: true,
        };
        let made = self
            .volumes
            .mounts(pod, &container, &prepared, context)
            .await;
        made.map(|made| made.mounts).map_err(|e| e.to_string())
    }
}

/// Runs a test with its own mounts. The thread, its namespace and its mounts end together, and
/// the directory must be free of mounts and removable by then.
fn lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let dir = tempfile::tempdir().expect("a directory");
    let root = fs::canonicalize(dir.path()).expect("a path");
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .expect("makes mounts private");
        // One thread for everything: blocking work inherits the namespace from its creator.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let cluster = Arc::new(Cluster::default());
        let node = NodeFacts {
            allocatable_memory_bytes: 1 << 30,
            ..NodeFacts::default()
        };
        let node_hosts_file = root.join("hosts");
        fs::write(&node_hosts_file, "127.0.0.1 localhost\n").expect("writes");
        let dirs = VolumeDirs {
            kubelet_dir: root.join("kubelet"),
            node_hosts_file,
        };
        let volumes = Volumes::new(
            dirs,
            Arc::clone(&cluster) as Arc<dyn Objects>,
            Arc::new(node),
        );
        runtime.block_on(test(Lab {
            root,
            cluster,
            volumes,
        }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    dir.close().expect("the directory is free again");
}

fn pod(volumes: Value) -> Pod {
    pod_with(volumes, json!({}))
}

fn pod_with(volumes: Value, mut spec: Value) -> Pod {
    spec["volumes"] = volumes;
    spec["containers"] = json!([]);
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u-1",
        "labels": {"a": "1"}}, "spec": spec}),
    )
    .expect("a pod")
}

fn mounted(path: &Path) -> Option<String> {
    // The thread's own namespace, not that of the process.
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("readable");
    let path = path.to_str().expect("text");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(path))?;
    Some(line.to_owned())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").permissions().mode() & 0o7777
}

#[test]
fn empty_dirs_are_open_to_everybody_and_bounded_in_memory() {
    lab(|lab| async move {
        let pod = pod(json!([{"name": "disk", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}]));
        let prepared = lab.volumes.prepare(&pod).await.expect("prepares");
        let (disk, ram) = (
            &prepared.volumes["disk"].path,
            &prepared.volumes["ram"].path,
        );
        assert_eq!(
            disk,
            &lab.pod_dir().join("volumes/kubernetes.io~empty-dir/disk")
        );
        assert_eq!((mode(disk), mode(ram)), (0o777, 0o777));
        assert_eq!(
            prepared.notes,
            ["emptyDir volume \"disk\": sizeLimit 1Gi on disk is not enforced"]
        );
        let line = mounted(ram).expect("a tmpfs");
        assert!(
            line.contains("tmpfs") && line.contains("size=4096k"),
            "{line}"
        );
        assert!(
            fs::write(ram.join("big"), vec![0; 5 << 20]).is_err(),
            "the limit holds"
        );
        fs::write(ram.join("kept"), "1").expect_err("full");
        fs::remove_file(ram.join("big")).expect("removes");
        fs::write(disk.join("kept"), "1").expect("writes");
        fs::set_permissions(disk, fs::Permissions::from_mode(0o700)).expect("sets");
        assert_eq!(lab.volumes.prepare(&pod).await.ok(), Some(prepared.clone()));
        assert!(
            disk.join("kept").exists() && mode(disk) == 0o700,
            "left as the pod has it"
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
        lab.volumes.teardown("u-1").await.expect("again");
        assert!(!lab.pod_dir().exists() && mounted(ram).is_none());
    });
}

#[test]
fn secrets_stay_in_memory_and_belong_to_the_group() {
    lab(|lab| async move {
        lab.cluster
            .put_secret("s", json!({"data": {"key": "aHVudGVy"}}));
        let pod = pod_with(
            json!([{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400}},
                   {"name": "e", "emptyDir": {"mode": 0o755}}]),
            json!({"securityContext": {"fsGroup": 1234}}),
        );
        let prepared = lab.volumes.prepare(&pod).await.expect("prepares");
        let volume = &prepared.volumes["v"];
        assert!(volume.read_only && mounted(&volume.path).is_some_and(|l| l.contains("tmpfs")));
        let key = fs::metadata(volume.path.join("key")).expect("exists");
        assert_eq!((key.mode() & 0o7777, key.gid()), (0o440, 1234));
        let empty = fs::metadata(&prepared.volumes["e"].path).expect("exists");
        assert_eq!((empty.mode() & 0o7777, empty.gid()), (0o2775, 1234));
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn content_follows_the_objects_and_failures_name_them() {
    lab(|lab| async move {
        let pod = pod(json!([{"name": "x", "configMap": {"name": "y"}}]));
        let missing = lab.volumes.prepare(&pod).await.map_err(|e| e.to_string());
        let text = "MountVolume.SetUp failed for volume \"x\" : configmap \"y\" not found";
        assert_eq!(missing, Err(text.to_owned()));
        lab.cluster.put_config_map("y", json!({"data": {"k": "1"}}));
        let prepared = lab.volumes.prepare(&pod).await.expect("prepares");
        let key = prepared.volumes["x"].path.join("k");
        assert_eq!(fs::read_to_string(&key).ok().as_deref(), Some("1"));
        assert_eq!(mode(&key), 0o644);
        lab.cluster
            .put_config_map("y", json!({"data": {"k": "2", "l": "3"}}));
        lab.volumes.refresh(&pod).await.expect("refreshes");
        assert_eq!(fs::read_to_string(&key).ok().as_deref(), Some("2"));
        lab.cluster.config_maps.lock().expect("lock").clear();
        assert!(lab.volumes.refresh(&pod).await.is_err());
        assert_eq!(
            fs::read_to_string(&key).ok().as_deref(),
            Some("2"),
            "old content stays"
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn projected_volumes_merge_and_refuse_tokens_by_name() {
    lab(|lab| async move {
        lab.cluster.put_config_map("m", json!({"data": {"k": "1"}}));
        lab.cluster.put_secret("s", json!({"data": {"t": "Mg=="}}));
        let sources = json!([{"configMap": {"name": "m", "items": [{"key": "k", "path": "conf/k"}]}},
            {"secret": {"name": "s"}}, {"secret": {"name": "gone", "optional": true}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
        let merged =
            pod(json!([{"name": "p", "projected": {"sources": sources, "defaultMode": 0o600}}]));
        let prepared = lab.volumes.prepare(&merged).await.expect("prepares");
        let path = &prepared.volumes["p"].path;
        for (file, want) in [("conf/k", "1"), ("t", "2"), ("labels", "a=\"1\"")] {
            assert_eq!(
                fs::read_to_string(path.join(file)).ok().as_deref(),
                Some(want),
                "{file}"
            );
        }
        let token = json!([{"serviceAccountToken": {"path": "token"}}]);
        let refused = pod(json!([{"name": "p", "projected": {"sources": token}}]));
        assert_eq!(
            lab.volumes
                .prepare(&refused)
                .await
                .map_err(|e| e.to_string()),
            Err(
                "MountVolume.SetUp failed for volume \"p\" : projected volume source \
                 \"serviceAccountToken\" is not supported"
                    .to_owned()
            )
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn sub_paths_are_bound_and_can_not_be_moved() {
    lab(|lab| async move {
        let pod = pod(json!([{"name": "d", "emptyDir": {}}]));
        let prepared = lab.volumes.prepare(&pod).await.expect("prepares");
        let volume = prepared.volumes["d"].path.clone();
        let ask = json!([{"name": "d", "mountPath": "/x", "subPathExpr": "$(DIR)/app"}]);
        let bound = lab.mounts(&pod, ask.clone()).await.expect("mounts")[0]
            .host_path
            .clone();
        assert_eq!(
            Path::new(&bound),
            lab.pod_dir().join("volume-subpaths/d/c/0")
        );
        fs::write(volume.join("logs/app/f"), "1").expect("writes");
        assert!(Path::new(&bound).join("f").exists(), "writes go through");
        // A container swaps the directory for a link; what was bound stays what it was.
        fs::rename(volume.join("logs"), volume.join("moved")).expect("renames");
        symlink("/", volume.join("logs")).expect("links");
        assert!(Path::new(&bound).join("f").exists());
        assert_eq!(
            lab.mounts(&pod, ask).await,
            Err("failed to prepare subPath for volumeMount \"d\" of container \"c\"".to_owned())
        );
        let file = json!([{"name": "d", "mountPath": "/x", "subPath": "moved/app/f"}]);
        let bound = lab.mounts(&pod, file).await.expect("mounts")[0]
            .host_path
            .clone();
        assert_eq!(
            fs::read_to_string(&bound).ok().as_deref(),
            Some("1"),
            "a file binds on a file"
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
        assert!(mounted(Path::new(&bound)).is_none() && !lab.pod_dir().exists());
    });
}

#[test]
fn sub_paths_of_a_config_map_follow_its_own_links() {
    lab(|lab| async move {
        lab.cluster.put_config_map("m", json!({"data": {"k": "1"}}));
        let pod = pod(json!([{"name": "m", "configMap": {"name": "m"}}]));
        let ask = json!([{"name": "m", "mountPath": "/etc/k", "subPath": "k"}]);
        let mount = lab.mounts(&pod, ask).await.expect("mounts").remove(0);
        assert!(mount.readonly);
        assert_eq!(
            fs::read_to_string(&mount.host_path).ok().as_deref(),
            Some("1")
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn a_forgotten_binding_never_costs_the_node_its_files() {
    lab(|lab| async move {
        let precious = lab.root.join("precious");
        fs::create_dir(&precious).expect("creates");
        fs::write(precious.join("f"), "1").expect("writes");
        let volumes = json!([{"name": "h", "hostPath": {"path": precious, "type": "Directory"}},
                             {"name": "e", "emptyDir": {}}]);
        let pod = pod(volumes);
        let ask = json!([{"name": "h", "mountPath": "/x", "subPath": "sub"}]);
        lab.mounts(&pod, ask).await.expect("mounts");
        // A container with bidirectional propagation leaves a mount in its emptyDir.
        let inner = lab
            .pod_dir()
            .join("volumes/kubernetes.io~empty-dir/e/inner");
        fs::create_dir(&inner).expect("creates");
        mount(
            Some(&precious),
            &inner,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("binds");
        // Killed here; the next kubelet only knows that the pod is gone.
        let known = BTreeSet::from(["other".to_owned()]);
        assert_eq!(
            lab.volumes.reconcile(&known).await.ok(),
            Some(vec!["u-1".to_owned()])
        );
        assert!(!lab.pod_dir().exists() && mounted(&inner).is_none());
        assert_eq!(
            fs::read_to_string(precious.join("f")).ok().as_deref(),
            Some("1")
        );
        assert!(
            precious.join("sub").is_dir(),
            "made in the volume, kept in the volume"
        );
    });
}

#[test]
fn reconcile_keeps_known_pods() {
    lab(|lab| async move {
        let pod = pod(json!([{"name": "e", "emptyDir": {}}]));
        assert_eq!(
            lab.volumes.reconcile(&BTreeSet::new()).await.ok(),
            Some(vec![])
        );
        lab.volumes.prepare(&pod).await.expect("prepares");
        let known = BTreeSet::from(["u-1".to_owned()]);
        assert_eq!(lab.volumes.reconcile(&known).await.ok(), Some(vec![]));
        assert!(lab.pod_dir().exists());
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn a_container_gets_its_hosts_file_and_a_new_termination_log_each_time() {
    lab(|lab| async move {
        let pod = pod(json!([]));
        let first = lab.mounts(&pod, json!([])).await.expect("mounts");
        let paths: Vec<&str> = first.iter().map(|m| m.container_path.as_str()).collect();
        assert_eq!(paths, ["/etc/hosts", "/dev/termination-log"]);
        let hosts = fs::read_to_string(&first[0].host_path).expect("readable");
        assert!(hosts.ends_with("10.42.0.9\tweb\n"), "{hosts}");
        assert_eq!(mode(Path::new(&first[1].host_path)), 0o666);
        let second = lab.mounts(&pod, json!([])).await.expect("mounts");
        assert_ne!(first[1].host_path, second[1].host_path);
        for _ in 0..3 {
            lab.mounts(&pod, json!([])).await.expect("mounts");
        }
        let logs = fs::read_dir(lab.pod_dir().join("containers/c")).expect("readable");
        assert_eq!(logs.count(), 2, "older logs go");
        let host = pod_with(json!([]), json!({"hostNetwork": true}));
        let mounts = lab.mounts(&host, json!([])).await.expect("mounts");
        let hosts = fs::read_to_string(&mounts[0].host_path).expect("readable");
        assert_eq!(
            hosts,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"
        );
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}

#[test]
fn mount_fields_are_passed_on_or_refused_by_name() {
    lab(|lab| async move {
        let pod = pod(json!([{"name": "e", "emptyDir": {}}]));
        let ask = |mut extra: Value| {
            extra["name"] = extra.get("name").cloned().unwrap_or(json!("e"));
            extra["mountPath"] = json!("data");
            json!([extra])
        };
        let made = lab
            .mounts(
                &pod,
                ask(json!({"readOnly": true, "recursiveReadOnly": "Enabled",
            "bindMountOptions": ["noexec"]})),
            )
            .await
            .expect("mounts");
        assert_eq!(made[0].container_path, "/data");
        assert!(made[0].readonly && made[0].recursive_read_only);
        assert_eq!(made[0].mount_options, ["noexec"]);
        for (extra, want) in [
            (
                json!({"name": "nope"}),
                "cannot find volume \"nope\" to mount into container \"c\"",
            ),
            (
                json!({"mountPropagation": "Bidirectional"}),
                "Bidirectional mount propagation is available only to privileged containers",
            ),
            (
                json!({"mountPropagation": "Sideways"}),
                "invalid MountPropagation mode: \"Sideways\"",
            ),
            (
                json!({"recursiveReadOnly": "Enabled"}),
                "volume \"e\" requested recursive read-only mode, but it is not read-only",
            ),
            (
                json!({"subPath": "../x"}),
                "unable to provision SubPath '../x': must not contain '..'",
            ),
            (
                json!({"subPathExpr": "$(NOPE)$(EMPTY)"}),
                "missing value for EMPTY, NOPE",
            ),
            (
                json!({"bindMountOptions": ["suid"]}),
                "invalid bindMountOptions value \"suid\"",
            ),
        ] {
            assert_eq!(lab.mounts(&pod, ask(extra)).await, Err(want.to_owned()));
        }
        lab.volumes.teardown("u-1").await.expect("tears down");
    });
}
