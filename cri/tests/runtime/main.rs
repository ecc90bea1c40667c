// SPDX-License-Identifier: Apache-2.0
//! The runtime on this kernel: real shims, real namespaces, a busybox root filesystem.
//!
//! These tests need root and the system's static busybox, and fail without them: a skip would hide
//! that nothing was tested. Each works in its own temporary directory and cgroups, and removes them.

mod attack_binary;
mod attack_descriptors;
mod attack_host;
mod attack_identity;
mod attack_mounts;
mod bad_input;
mod cgroup;
mod container;
mod devices;
mod exec;
mod hooks;
mod idmap;
mod killed;
mod lifetime;
mod mounts;
mod namespaces;
mod oci;
mod pause;
mod pod;
mod process;
mod rootfs;
mod seccomp;
mod streams;
mod systemd;
mod trace;
mod version;
