// SPDX-License-Identifier: Apache-2.0
//! Which server, as whom, in which namespace.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConnectionArgs {
    /// Namespace to work in; by default that of the kubeconfig's context
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Kubeconfig; by default $KUBECONFIG, ~/.kube/config, or that of a server on this machine
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
}

/// A server and a namespace.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl ConnectionArgs {
    /// Reads the kubeconfig and makes a client. Nothing is sent yet.
    ///
    /// # Errors
    /// When no kubeconfig is found, or it cannot be read or used.
    pub(crate) async fn connect(&self, data_dir: &Path) -> anyhow::Result<Server> {
        let kubeconfig = self.load(data_dir)?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("reading the kubeconfig")?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        // An answer of "already installed" is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::try_from(config).context("preparing the connection")?;
        Ok(Server { client, namespace })
    }

    fn load(&self, data_dir: &Path) -> anyhow::Result<Kubeconfig> {
        let read = |path: &Path| {
            Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))
        };
        if let Some(path) = &self.kubeconfig {
            return read(path);
        }
        if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) {
            let found = Kubeconfig::from_env().context("reading the files of $KUBECONFIG")?;
            return found.context("$KUBECONFIG names no file that exists");
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        let own = data_dir.join("server/kubeconfig.yaml");
        let found = home
            .into_iter()
            .chain([own.clone()])
            .find(|path| path.exists());
        match found {
            Some(path) => read(&path),
            None => anyhow::bail!(
                "no kubeconfig: give --kubeconfig, set $KUBECONFIG, or run on the machine of the server ({} is not there)",
                own.display()
            ),
        }
    }
}
