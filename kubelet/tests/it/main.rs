// SPDX-License-Identifier: Apache-2.0
//! The kubelet against real runtimes. Needs root, and Debian's containerd, runc and busybox-static;
//! without them the tests fail and say what is missing.

mod containerd;
mod static_pods;
