// SPDX-License-Identifier: Apache-2.0
//! `podwright-shim`: parent of every process of one pod.

fn main() -> std::process::ExitCode {
    eprintln!("podwright-shim: not implemented yet");
    std::process::ExitCode::FAILURE
}
