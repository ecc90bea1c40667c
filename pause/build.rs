// SPDX-License-Identifier: Apache-2.0
//! The program has its own entry point, so the C start-up files must stay out. (The pause that
//! ships is built by `cri/build.rs` with more flags; this makes `cargo build -p pause` work.)

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-nostartfiles");
}
