// SPDX-License-Identifier: Apache-2.0
//! Pods with `hostUsers: false`, from the manifest to the files on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{TestHost, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// The first kernel that maps the ids of a tmpfs, which is what secrets and memory volumes are.
const TMPFS_IDMAP: (u32, u32) = (6, 3);

/// A pod with volumes of every kind behind a Service, and one that ends. Lines that need a mapped
/// tmpfs say so.
const PODS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { colour: blue }
---
apiVersion: v1
kind: Secret
metadata: { name: keys }
stringData: { password: hunter2 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  securityContext: { runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000 }
  initContainers:
  - name: first
    image: localhost/busybox:1
    securityContext: { runAsUser: 0 }
    command: [sh, -c, "echo from-init > /scratch/made; echo $(cat /proc/self/uid_map)"]
    volumeMounts: [{ name: scratch, mountPath: /scratch }]
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c]
    args:
    - |
      echo ids=$(id -u):$(id -g):$(id -G) init=$(cat /scratch/made) colour=$(cat /map/colour)
      echo host=$(cat /from-host/mark) sub=$(cat /only-colour) hosts=$(grep -c web /etc/hosts)
      echo mark=$(stat -c %u:%g:%a /from-host/mark) scratch=$(stat -c %u:%g /scratch)
      echo password=$(cat /secret/password) secret=$(stat -Lc %u:%g /secret/password) # tmpfs
      touch /memory/users && echo remembered # tmpfs
      touch /scratch/users /from-host/users && echo written
      echo $(cat /proc/self/uid_map)
      mkdir /tmp/www && echo reached > /tmp/www/index.html
      httpd -f -p 8080 -h /tmp/www
    readinessProbe: { exec: { command: [test, -e, /tmp/www/index.html] }, periodSeconds: 1 }
    volumeMounts:
    - { name: scratch, mountPath: /scratch }
    - { name: memory, mountPath: /memory } # tmpfs
    - { name: map, mountPath: /map }
    - { name: map, mountPath: /only-colour, subPath: colour }
    - { name: secret, mountPath: /secret } # tmpfs
    - { name: from-host, mountPath: /from-host }
  volumes:
  - { name: scratch, emptyDir: {} }
  - { name: memory, emptyDir: { medium: Memory } } # tmpfs
  - { name: map, configMap: { name: settings } }
  - { name: secret, secret: { secretName: keys, defaultMode: 0440 } } # tmpfs
  - { name: from-host, hostPath: { path: HOST_DIR, type: Directory } }
---
apiVersion: v1
kind: Pod
metadata: { name: other }
spec:
  hostUsers: false
  restartPolicy: Never
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c, "cat /proc/self/uid_map > /dev/termination-log; touch /tmp/x; exit 3"]
"#;

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    (number(), number())
}

/// The first host id of a `uid_map` of one line.
fn first_id(map: &str) -> Result<u32> {
    let words: Vec<&str> = map.split_whitespace().collect();
    match words.as_slice() {
        ["0", first, "65536"] => Ok(first.parse()?),
        _ => anyhow::bail!("not the map of a pod: {map:?}"),
    }
}

fn owner(path: std::path::PathBuf) -> Result<(u32, u32)> {
    let found = fs::metadata(&path).with_context(|| path.display().to_string())?;
    Ok((found.uid(), found.gid()))
}

/// The record of a pod's ids.
fn record(host: &TestHost, pod: &Value) -> Result<Value> {
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    let path = host.path().join("data/kubelet/pods").join(uid);
    Ok(serde_json::from_slice(&fs::read(path.join("userns"))?)?)
}

#[test]
fn a_pod_with_a_user_namespace_has_ids_of_its_own_and_plain_files() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.write("shared/mark", "marked\n")?;
    let shared = host.path().join("shared");
    chown(&shared, Some(1000), Some(3000))?;
    chown(shared.join("mark"), Some(1000), Some(3000))?;
    let pods = PODS.replace("HOST_DIR", &shared.to_string_lossy());
    host.apply(&pods)?;
    let tmpfs = kernel() >= TMPFS_IDMAP;
    if !tmpfs {
        refused_by_mount(&host)?;
        host.kubectl_ok(&["delete", "pod", "web", "--timeout=60s"])?;
        let without = pods.lines().filter(|line| !line.ends_with("# tmpfs"));
        host.apply(&without.collect::<Vec<_>>().join("\n"))?;
    }

    host.wait_pod_ready("web")?;
    host.wait_pod_phase("other", "Failed")?;
    let said = host.kubectl_ok(&["logs", "web", "-c", "main"])?;
    for expected in [
        "ids=1000:3000:3000 2000 init=from-init colour=blue",
        "host=marked sub=blue hosts=1",
        "mark=1000:3000:644 scratch=0:2000",
        "written",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    for expected in ["password=hunter2 secret=0:2000", "remembered"] {
        assert_eq!(said.contains(expected), tmpfs, "{expected:?} in\n{said}");
    }
    let first = first_id(said.lines().last().unwrap_or_default())?;
    let inits = host.kubectl_ok(&["logs", "web", "-c", "first"])?;
    assert_eq!(first_id(&inits)?, first, "all of a pod's containers");
    let ended = host.pod("other")?;
    let terminated = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(terminated["exitCode"], 3);
    let map = terminated["message"].as_str().context("a message")?;
    let others = first_id(map)?;
    assert!(first >= 65536 && others >= 65536 && first != others);

    // What the pod wrote has plain ids on disk, and the kubelet keeps its word across a restart.
    assert_eq!(owner(shared.join("users"))?, (1000, 3000));
    let pod = host.pod("web")?;
    assert_eq!(record(&host, &pod)?["uidMappings"][0]["hostId"], first);
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    let volumes = host
        .path()
        .join("data/kubelet/pods")
        .join(uid)
        .join("volumes");
    let scratch = volumes.join("kubernetes.io~empty-dir/scratch");
    assert_eq!(owner(scratch.join("made"))?, (0, 2000));
    assert_eq!(owner(scratch.join("users"))?, (1000, 2000));

    let service = host.get(&["service", "web"])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("an address")?;
    let fetch = format!("timeout 5 busybox wget -qO- http://{address}/");
    let page = wait_for("the Service's page", PATIENCE, || {
        host.sh(&fetch).map_err(|error| format!("{error:#}"))
    })?;
    assert_eq!(page, "reached\n");
    let inside = host.kubectl_ok(&["exec", "web", "--", "id", "-u"])?;
    assert_eq!(inside, "1000\n");

    server.kill()?;
    let server = host.server()?;
    let map = ["exec", "web", "--", "cat", "/proc/self/uid_map"];
    let map = wait_for("the pod's map after a restart", PATIENCE, || {
        host.kubectl_ok(&map).map_err(|error| format!("{error:#}"))
    })?;
    assert_eq!(first_id(&map)?, first);
    host.apply(LATE)?;
    host.wait_pod_phase("late", "Succeeded")?;
    let late = first_id(&host.kubectl_ok(&["logs", "late"])?)?;
    assert_ne!(late, first, "a running pod's ids are given to nobody");

    host.kubectl_ok(&["delete", "pod", "web", "other", "late", "--timeout=60s"])?;
    wait_until("the record is gone", PATIENCE, || {
        record(&host, &pod).is_err()
    })?;
    server.stop()?;
    host.down()
}

const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: late }
spec:
  hostUsers: false
  restartPolicy: Never
  containers: [{ name: main, image: "localhost/busybox:1", command: [cat, /proc/self/uid_map] }]
"#;

/// An older kernel: the pod is told which mount cannot be, and why.
fn refused_by_mount(host: &TestHost) -> Result<()> {
    let message = host.wait_pod("is refused by the kernel", "web", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        let said = [
            &status["state"]["waiting"]["message"],
            &status["state"]["terminated"]["message"],
            &status["lastState"]["terminated"]["message"],
        ];
        let mut said = said.iter().filter_map(|text| text.as_str());
        said.find(|text| text.contains("id-mapping"))
            .map(str::to_owned)
    })?;
    for expected in [
        "this kernel cannot id-map this type of filesystem",
        "volumes/kubernetes.io~empty-dir/memory",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    Ok(())
}

#[test]
fn the_hosts_namespaces_are_refused_beside_a_user_namespace() -> Result<()> {
    let host = TestHost::new()?;
    let server = host.server()?;
    for (field, named) in [
        ("hostNetwork", "spec.hostNetwork"),
        ("hostPID", "spec.HostPID"),
        ("hostIPC", "spec.HostIPC"),
    ] {
        let pod = LATE.replace(
            "hostUsers: false",
            &format!("hostUsers: false\n  {field}: true"),
        );
        let refused = host.apply(&pod).expect_err("refused").to_string();
        let expected = format!("{named}: Forbidden: when `hostUsers` is false");
        assert!(refused.contains(&expected), "{refused}");
    }
    server.stop()?;
    host.down()
}
