// SPDX-License-Identifier: Apache-2.0
//! What a pod sees of its manifest: environment, volumes, limits, security, order of its containers.

use anyhow::Result;
use tests::TestHost;
use tests::pods::{container, script_pod};

const EVERY_SOURCE: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { colour: blue, motto: small }
binaryData: { raw: AAEC }
---
apiVersion: v1
kind: Secret
metadata: { name: keys }
stringData: { password: hunter2 }
---
apiVersion: v1
kind: Pod
metadata:
  name: sources
  labels: { app: sources }
  annotations: { note: "of interest" }
spec:
  restartPolicy: Never
  initContainers:
  - name: first
    image: localhost/busybox:1
    command: [sh, -c, "echo from-init > /scratch/made"]
    volumeMounts: [{ name: scratch, mountPath: /scratch }]
  containers:
  - name: main
    image: localhost/busybox:1
    command: [sh, -c]
    args:
    - |
      echo plain=$PLAIN expanded=$EXPANDED arg=$(PLAIN) colour=$COLOUR password=$PASSWORD
      echo name=$NAME ip=${IP:+set} host=$HOST limit=$LIMIT prefixed=$SET_motto
      echo init=$(cat /scratch/made) map=$(cat /map/colour) renamed=$(cat /map-item/here/it)
      echo secret=$(cat /secret/password) secretmode=$(stat -Lc %a /secret/password)
      echo labels=$(cat /podinfo/labels) shm=$(stat -f -c %T /dev/shm) memory=$(stat -f -c %T /memory)
      echo hostpath=$(cat /from-host/mark) sub=$(cat /only-colour)
      echo raw=$(od -An -tx1 /map/raw | tr -d ' ')
      touch /map/new 2>/dev/null && echo writable || echo readonly
      echo service=$KUBERNETES_SERVICE_HOST
    env:
    - { name: PLAIN, value: plain }
    - { name: EXPANDED, value: "$(PLAIN)-$$(PLAIN)" }
    - { name: COLOUR, valueFrom: { configMapKeyRef: { name: settings, key: colour } } }
    - { name: PASSWORD, valueFrom: { secretKeyRef: { name: keys, key: password } } }
    - { name: NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: HOST, valueFrom: { fieldRef: { fieldPath: status.hostIP } } }
    - { name: LIMIT, valueFrom: { resourceFieldRef: { resource: limits.memory, divisor: 1Mi } } }
    envFrom: [{ prefix: SET_, configMapRef: { name: settings } }]
    resources: { limits: { memory: 64Mi, cpu: 500m } }
    volumeMounts:
    - { name: scratch, mountPath: /scratch }
    - { name: map, mountPath: /map }
    - { name: map-item, mountPath: /map-item }
    - { name: map, mountPath: /only-colour, subPath: colour }
    - { name: secret, mountPath: /secret }
    - { name: podinfo, mountPath: /podinfo }
    - { name: memory, mountPath: /memory }
    - { name: from-host, mountPath: /from-host, readOnly: true }
  volumes:
  - { name: scratch, emptyDir: {} }
  - { name: memory, emptyDir: { medium: Memory } }
  - { name: map, configMap: { name: settings } }
  - { name: map-item, configMap: { name: settings, items: [{ key: colour, path: here/it }] } }
  - { name: secret, secret: { secretName: keys, defaultMode: 0400 } }
  - { name: podinfo, downwardAPI: { items: [{ path: labels, fieldRef: { fieldPath: metadata.labels } }] } }
  - { name: from-host, hostPath: { path: HOST_DIR, type: Directory } }
"#;

#[test]
fn environment_and_volumes_come_from_every_source() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.write("shared/mark", "marked\n")?;
    let directory = host.path().join("shared").to_string_lossy().into_owned();
    host.apply(&EVERY_SOURCE.replace("HOST_DIR", &directory))?;
    host.wait_pod_phase("sources", "Succeeded")?;
    let said = host.kubectl_ok(&["logs", "sources", "-c", "main"])?;
    for expected in [
        "plain=plain expanded=plain-$(PLAIN) arg=plain colour=blue password=hunter2",
        "name=sources ip=set host=192.0.2.10 limit=64 prefixed=small",
        "init=from-init map=blue renamed=blue",
        "secret=hunter2 secretmode=400",
        "labels=app=\"sources\" shm=tmpfs memory=tmpfs",
        "hostpath=marked sub=blue",
        "raw=000102",
        "readonly",
        "service=10.43.0.1",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    server.stop()?;
    host.down()
}

#[test]
fn a_failing_container_backs_off_and_its_restarts_are_counted() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(&script_pod("failing", "Always", "echo once; exit 3"))?;
    host.wait_pod("backs off", "failing", |pod| {
        let main = container(pod, "main")?;
        (main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && main["lastState"]["terminated"]["exitCode"] == 3
            && main["lastState"]["terminated"]["reason"] == "Error"
            && main["restartCount"].as_i64()? >= 1)
            .then_some(())
    })?;
    assert_eq!(
        host.kubectl_ok(&["logs", "failing", "--previous"])?,
        "once\n"
    );
    host.wait_event("failing", "BackOff")?;
    server.stop()?;
    host.down()
}

#[test]
fn a_failing_liveness_probe_restarts_the_container() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"sick"},"spec":{
        "terminationGracePeriodSeconds":1,
        "containers":[{"name":"main","image":"localhost/busybox:1",
        "command":["sh","-c","touch /tmp/well; sleep 3; rm /tmp/well; sleep 1000"],
        "livenessProbe":{"exec":{"command":["cat","/tmp/well"]},"periodSeconds":1,"failureThreshold":2}}]}}"#;
    host.apply(pod)?;
    host.wait_pod("was restarted", "sick", |pod| {
        (container(pod, "main")?["restartCount"].as_i64()? >= 1).then_some(())
    })?;
    let said = host.wait_event("sick", "Killing")?;
    assert!(
        said.contains("failed liveness probe, will be restarted"),
        "{said}"
    );
    server.stop()?;
    host.down()
}

#[test]
fn limits_and_security_are_what_the_kernel_enforces() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bound"},"spec":{
        "restartPolicy":"Never","securityContext":{"runAsUser":1000,"runAsGroup":2000,"seccompProfile":{"type":"RuntimeDefault"}},
        "containers":[{"name":"main","image":"localhost/busybox:1",
        "command":["sh","-c","id -u; id -g; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; touch /x 2>&1; ls /proc/kcore -la; echo; sleep 1000"],
        "resources":{"limits":{"memory":"32Mi","cpu":"250m"}},
        "securityContext":{"readOnlyRootFilesystem":true,"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}},
        {"name":"greedy","image":"localhost/busybox:1",
        "command":["sh","-c","tail /dev/zero"],"resources":{"limits":{"memory":"16Mi"}}}]}}"#;
    host.apply(pod)?;
    let reason = host.wait_pod("its greedy container has ended", "bound", |pod| {
        Some(
            container(pod, "greedy")?["state"]["terminated"]["reason"]
                .as_str()?
                .to_owned(),
        )
    })?;
    assert_eq!(reason, "OOMKilled");
    let said = host.kubectl_ok(&["logs", "bound", "-c", "main"])?;
    let squeezed = said.replace('\t', " ");
    for expected in [
        "1000\n2000\n",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "Read-only file system",
    ] {
        assert!(squeezed.contains(expected), "no {expected:?} in\n{said}");
    }
    server.stop()?;
    host.down()
}
