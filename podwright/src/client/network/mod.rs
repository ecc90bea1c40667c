// SPDX-License-Identifier: Apache-2.0
//! `network`: the way of a packet, for a person. Runs on a node, in its network namespace, and reads
//! what the kernel has, beside what the API asks for.

mod pod;
mod policies;
mod service;
mod trace;
mod way;

use clap::Subcommand;

use super::connection::ConnectionArgs;
use super::failure::Outcome;
use crate::node_config::{NodeConfig, NodeFlags};

/// Arguments of `network`.
#[derive(clap::Args)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// How a pod of this node is connected, which Services lead to it, and which policies restrict it
    Pod(OfOne),
    /// Where a Service's addresses lead on this node, and which rules say so
    Service(OfOne),
    /// Connect from a pod of this node, and show each rule that the first packet meets
    Trace(trace::TraceArgs),
}

#[derive(clap::Args)]
struct OfOne {
    /// Its name
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Which server, and which node.
#[derive(clap::Args)]
struct Place {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    node: Box<NodeFlags>,
}

impl Place {
    async fn find(self) -> anyhow::Result<(super::connection::Server, NodeConfig)> {
        let node = self.node.resolve()?;
        let server = self.connection.connect(&node.data_dir).await?;
        Ok((server, node))
    }
}

pub(crate) async fn run(args: NetworkArgs) -> Outcome {
    match args.what {
        What::Pod(args) => pod::run(args).await,
        What::Service(args) => service::run(args).await,
        What::Trace(args) => trace::run(args).await,
    }
}
