// SPDX-License-Identifier: Apache-2.0
//! Compiles the CRI contract (server side), without needing protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let contract = protox::compile(["proto/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(contract)?;
    Ok(())
}
