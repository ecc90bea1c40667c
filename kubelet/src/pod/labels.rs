// SPDX-License-Identifier: Apache-2.0
//! Labels and annotations on CRI objects and on pods: upstream's keys, so that `crictl`, log
//! collectors and an upstream kubelet on the same socket understand what they see.

/// CRI label: pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// CRI label: pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// CRI label: pod uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// CRI label: container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// CRI annotation: hash of the spec parts whose change restarts the container.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// CRI annotation: how often the container was started again.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// CRI annotation: `terminationMessagePath`.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// CRI annotation: `terminationMessagePolicy`.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// CRI annotation: the pod's `terminationGracePeriodSeconds`.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// CRI annotation: the container's preStop handler as JSON.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// CRI annotation: the container's ports as JSON.
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";

/// Pod annotation: where the pod came from: `api` or `file`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Pod annotation: hash of a static pod's manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Pod annotation: on a mirror pod, the hash of the static pod it stands for.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Pod annotation: when the kubelet first saw the pod.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
