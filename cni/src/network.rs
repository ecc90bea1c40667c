// SPDX-License-Identifier: Apache-2.0
//! The pod network: one configuration list, and the operations on it.

mod claims;
mod gone;
mod input;
mod keep;
mod losses;
mod operations;
mod repair;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use crate::attachment::{Attachment, Capabilities, PortMapping, Protocol};
use crate::types::{AddResult, PluginError};

use claims::Claims;
use gone::Gone;
use input::Extra;
use repair::Owned;

/// An attachment as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Name of the network.
    pub network: String,
    /// Who is attached.
    pub attachment: Attachment,
    /// What ADD returned.
    pub result: Option<AddResult>,
}

/// Why an operation on the network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration on disk cannot be used; the text names the file and the field.
    #[error("network configuration: {0}")]
    Config(String),
    /// A plugin failed.
    #[error("plugin {plugin} of network {network} failed at {verb}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// Type of the plugin.
        plugin: String,
        /// `ADD`, `DEL` and so on.
        verb: &'static str,
        #[source]
        source: PluginError,
    },
    /// Reading or writing the state of attachments failed.
    #[error("{what} {path}")]
    State {
        /// What was attempted: "writing", "reading" …
        what: &'static str,
        /// On which file.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// An argument of the caller breaks the rules of the specification.
    #[error("{0}")]
    Argument(String),
    /// The pod's network namespace could not be dropped.
    #[error(transparent)]
    Namespace(#[from] crate::netns::NetnsError),
    /// The thread that did the work ended without an answer.
    #[error("the thread of a network operation died")]
    Died,
}

/// The pod network. Cheap to clone; all clones are the same network.
///
/// Operations on one attachment are the caller's to order; operations on different attachments
/// may run side by side. Once begun, an operation runs to its end even when its future is dropped.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    state_dir: PathBuf,
    /// With all plugins of an operation.
    patience: Duration,
    /// Attachments that somebody works on.
    claims: Claims,
    /// What [`Network::keep`] looks after.
    kept: Mutex<Owned>,
    /// Addresses that the kernel must forget.
    gone: Gone,
}

impl Network {
    /// The network described in `conf_dir`. Reads nothing yet: [`Network::status`] says whether it
    /// can be used. Foreign plugins are looked for in `bin_dir`; what is attached is remembered in
    /// `state_dir` (leases too), which is made when it is needed.
    pub fn load(conf_dir: &Path, bin_dir: &Path, state_dir: &Path) -> Network {
        Network {
            inner: Arc::new(Inner {
                conf_dir: conf_dir.to_owned(),
                bin_dir: bin_dir.to_owned(),
                state_dir: state_dir.to_owned(),
                patience: PATIENCE,
                claims: Claims::default(),
                kept: Mutex::default(),
                gone: Gone::default(),
            }),
        }
    }

    /// The same network, with another patience than 40 s with all executables of an operation
    /// together. One that has not ended by then is killed; the error has its complaints.
    pub fn with_patience(self, patience: Duration) -> Network {
        let Inner {
            conf_dir,
            bin_dir,
            state_dir,
            ..
        } = &*self.inner;
        Network {
            inner: Arc::new(Inner {
                conf_dir: conf_dir.clone(),
                bin_dir: bin_dir.clone(),
                state_dir: state_dir.clone(),
                patience,
                claims: Claims::default(),
                kept: Mutex::default(),
                gone: Gone::default(),
            }),
        }
    }

    /// Can a pod be attached now? Reads the configuration, and asks every plugin (STATUS) when the
    /// configuration is 1.1 or later. The error's text is fit for the `NetworkReady` message.
    pub async fn status(&self) -> Result<(), Error> {
        self.in_thread(|inner| inner.status()).await
    }

    /// Attach a pod: every plugin in order. On error everything that was done is undone.
    pub async fn add(&self, attachment: &Attachment) -> Result<AddResult, Error> {
        let attachment = attachment.clone();
        self.in_thread(move |inner| inner.add(&attachment)).await
    }

    /// Restore what is missing on the host of pods that are attached: bridges with their addresses
    /// and ports, and rules. Idempotent; what is not ours is left alone. Pods that somebody works on
    /// are passed over; the number of these is returned.
    pub async fn repair(&self) -> Result<usize, Error> {
        self.in_thread(|inner| inner.repair()).await
    }

    /// Is the pod still attached as [`Network::add`] left it?
    pub async fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        let attachment = attachment.clone();
        self.in_thread(move |inner| inner.check(&attachment)).await
    }

    /// Detach a pod. Idempotent: succeeds when nothing is attached (any more), when the namespace
    /// is gone, and when the configuration has changed since (what was used at ADD is used again).
    pub async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        let attachment = attachment.clone();
        self.in_thread(move |inner| inner.del(&attachment, Extra::None))
            .await
    }

    /// [`Network::del`], and then drop the file that holds the pod's namespace
    /// ([`crate::netns::remove`]). The way to end a pod: its links need not be deleted one by one,
    /// which takes the kernel 15 ms. They carry nothing any more when this returns, and go with the
    /// namespace, in the background. When a plugin fails the namespace stays, for another attempt.
    pub async fn del_with_netns(&self, attachment: &Attachment) -> Result<(), Error> {
        let attachment = attachment.clone();
        self.in_thread(move |inner| {
            inner.del(&attachment, Extra::DropsNetns)?;
            Ok(crate::netns::remove(&attachment.netns)?)
        })
        .await
    }

    /// Release everything that belongs to no attachment of `valid`: (container id, interface name).
    pub async fn gc(&self, valid: &[(String, String)]) -> Result<(), Error> {
        let valid = valid.to_vec();
        self.in_thread(move |inner| inner.gc(&valid)).await
    }

    /// What is attached, as it is remembered, in no order. For people to look at: an ADD that is
    /// under way is among them, without a result.
    pub async fn attached(&self) -> Result<Vec<Attached>, Error> {
        self.in_thread(|inner| {
            let records = inner.records().readable()?;
            Ok(records.into_iter().map(Attached::from).collect())
        })
        .await
    }

    /// The result of an earlier [`Network::add`], if the pod is still attached.
    pub async fn result(&self, attachment: &Attachment) -> Result<Option<AddResult>, Error> {
        let attachment = attachment.clone();
        self.in_thread(move |inner| {
            let record = inner
                .records()
                .find(&attachment.container_id, &attachment.ifname)?;
            Ok(record.and_then(|record| record.result))
        })
        .await
    }

    /// Blocking work runs to its end on a thread of its own, whatever becomes of the caller.
    async fn in_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|_| Error::Died)?
    }
}

/// Patience with all plugins of an operation. A runtime waits a minute for ADD: there must be time to
/// undo what was done, and to say which plugin it was.
const PATIENCE: Duration = Duration::from_secs(40);
/// Patience when a failed ADD is undone.
const PATIENCE_TO_UNDO: Duration = Duration::from_secs(15);

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
