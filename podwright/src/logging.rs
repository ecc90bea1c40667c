// SPDX-License-Identifier: Apache-2.0
//! Log lines on stderr, as text or JSON; data goes to stdout and never here.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::node_config::LogFormat;

/// Libraries that say more at `info` than an operator wants to read.
const QUIETER: &str = "kube_client=warn,kube_client::client::builder=off,kube_runtime=warn,hyper=warn,h2=warn,tower=warn,rustls=warn";

/// Installs the process's subscriber.
///
/// # Errors
/// A level that is no tracing filter.
pub(crate) fn init(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIETER},{level}"))
        .with_context(|| format!("log-level: {level:?} is neither a level nor a filter"))?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry
            .with(layer().with_writer(std::io::stderr).with_ansi(false))
            .init(),
        LogFormat::Json => registry
            .with(layer().json().with_writer(std::io::stderr))
            .init(),
    }
    Ok(())
}
