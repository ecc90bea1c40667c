// SPDX-License-Identifier: Apache-2.0
//! Compiles the CRI contract for the benchmark's client, which measures any runtime through it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../cri/proto/api.proto");
    let contract = protox::compile(["api.proto"], ["../cri/proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(contract)?;
    Ok(())
}
