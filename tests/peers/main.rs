// SPDX-License-Identifier: Apache-2.0
//! Other people's engines with `podwright oci` as their runtime: Debian's podman, and Debian's
//! containerd with its own shim. They run the whole path that their users see.

mod containerd;
mod guest;
mod podman;
mod runtime;
