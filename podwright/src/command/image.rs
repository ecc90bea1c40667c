// SPDX-License-Identifier: Apache-2.0
//! `podwright image`: the images of a data directory, beside a running node or without one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// Data directory of the node whose images are meant
    #[arg(
        long,
        value_name = "DIR",
        env = "PODWRIGHT_DATA_DIR",
        default_value = "/var/lib/podwright",
        global = true
    )]
    data_dir: PathBuf,

    /// Directory of registry configuration, a folder with a hosts.toml per registry
    #[arg(
        long,
        value_name = "DIR",
        env = "PODWRIGHT_REGISTRIES_DIR",
        default_value = "/etc/podwright/registries.d",
        global = true
    )]
    registries_dir: PathBuf,

    #[command(flatten)]
    image: cri::image::cli::ImageArgs,
}

pub(crate) fn main(args: ImageArgs) -> anyhow::Result<ExitCode> {
    super::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the executor's threads")?;
    Ok(runtime.block_on(cri::image::cli::run(
        args.image,
        &args.data_dir,
        &args.registries_dir,
    )))
}
