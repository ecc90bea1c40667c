// SPDX-License-Identifier: Apache-2.0
//! Compiles the CRI contract (the client is for tests), without needing protoc on the machine, and builds the
//! two small executables that the runtime carries inside: pause and podwright-shim.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto/api.proto");
    println!("cargo::rerun-if-changed=proto/nri.proto");
    let contract = protox::compile(["proto/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .compile_fds(contract)?;
    // In order, so that what plugins are sent, and what they are told of conflicts, is the same each time.
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(protox::compile(["proto/nri.proto"], ["proto"])?)?;
    let workspace = workspace()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    build_pause(&workspace, &out)?;
    build_shim(&workspace, &out)
}

fn workspace() -> Result<PathBuf> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    Ok(here.parent().ok_or("cri lies in the workspace")?.to_owned())
}

/// pause has no dependencies: one compiler call, with flags that leave one page of code, no
/// relocations and nothing writable.
fn build_pause(workspace: &Path, out: &Path) -> Result<()> {
    let source = workspace.join("pause/src/main.rs");
    println!("cargo::rerun-if-changed=../pause/src/main.rs");
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc
        .args(["--edition=2024", "--crate-name=pause", "--crate-type=bin"])
        .arg(format!("--target={}", env::var("TARGET")?))
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nodefaultlibs"])
        .args(["-Clink-arg=-static", "-Clink-arg=-Wl,--build-id=none"])
        .args(["-Clink-arg=-Wl,-z,norelro,-z,noseparate-code"])
        .arg("-Clink-arg=-Wl,-z,max-page-size=4096,--no-eh-frame-hdr")
        .arg("-o")
        .arg(out.join("pause"))
        .arg(source)
        .env("CARGO_PKG_VERSION", env::var("CARGO_PKG_VERSION")?);
    run(rustc, "building pause")
}

/// The shim is built by cargo, in a target directory of its own (the outer cargo holds the lock of
/// the other), always optimised for size, whatever the outer profile is.
fn build_shim(workspace: &Path, out: &Path) -> Result<()> {
    // Relative, so that a target directory that was copied from another work tree looks at this one.
    println!("cargo::rerun-if-changed=../shim/src");
    println!("cargo::rerun-if-changed=../shim/Cargo.toml");
    let target = env::var("TARGET")?;
    let target_dir = out.join("shim-target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(workspace)
        // Its dependencies are dependencies of this crate too, so they are there: no network.
        .args(["build", "--release", "--locked", "--offline"])
        .args(["--package=shim", "--bin=podwright-shim"])
        .arg(format!("--target={target}"))
        .arg("--target-dir")
        .arg(&target_dir)
        .args(["--config", "profile.release.opt-level='s'"])
        .args(["--config", "profile.release.panic='abort'"])
        .args(["--config", "profile.release.lto=true"])
        .args(["--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.strip='symbols'"])
        // A fixed address means no relocations, and so no dirty pages for them in every pod.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static",
        )
        // Checkers of the outer build have no business with this one.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET_DIR");
    run(cargo, "building podwright-shim")?;
    let built = target_dir.join(target).join("release/podwright-shim");
    std::fs::copy(built, out.join("podwright-shim"))?;
    Ok(())
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let output = command
        .output()
        .map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what} failed ({}):\n{said}", output.status).into())
}
