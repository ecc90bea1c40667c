// SPDX-License-Identifier: Apache-2.0
//! The pod network: one configuration list, and the operations on it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::builtin;
use crate::conf::{self, NetworkList, PluginConf};
use crate::exec::Call;
use crate::record::{Record, Records};
use crate::types::{AddResult, PluginError, code};

/// A pod's connection to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox's id: `CNI_CONTAINERID`.
    pub container_id: String,
    /// File that holds the pod's network namespace. May be gone at DEL.
    pub netns: PathBuf,
    /// Name of the interface in the pod: `eth0`.
    pub ifname: String,
    /// Pod name, namespace and uid, for plugins that look at `CNI_ARGS`.
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    /// What plugins may be asked for, if they declare that they can.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// Wishes that reach a plugin as `runtimeConfig`, when it lists the capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `portMappings`: host ports of the pod's containers.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Any other capability by name, passed as it is (`bandwidth`, `dns`, `ips`, `mac` …).
    #[serde(default)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host, 1–65535.
    pub host_port: u16,
    /// Port in the pod, 1–65535.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Only on this address of the host; `None`: on all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
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

/// STATUS and GC came with this version.
const HAS_STATUS_AND_GC: &str = "1.1.0";
/// CHECK came with 0.4.
const WITHOUT_CHECK: &str = "0.3";

impl Inner {
    fn records(&self) -> Records {
        Records::new(&self.state_dir.join("results"))
    }

    fn list(&self) -> Result<NetworkList, Error> {
        conf::load(&self.conf_dir).map_err(|error| Error::Config(chain(&error)))
    }

    fn status(&self) -> Result<(), Error> {
        let list = self.list()?;
        if list.cni_version != HAS_STATUS_AND_GC {
            return Ok(());
        }
        let nobody = Attachment::nobody();
        list.plugins.iter().try_for_each(|p| {
            self.call(&list, p, "STATUS", &nobody, None, Extra::None)
                .map(drop)
        })
    }

    fn add(&self, attachment: &Attachment) -> Result<AddResult, Error> {
        attachment.check()?;
        let list = self.list()?;
        let records = self.records();
        // Before the first step, so that a crash in the middle leaves something to clean up by.
        let mut record = Record::new(attachment, &list);
        records.write(&record)?;
        let added = self.add_all(&list, &records, &mut record);
        if added.is_err() {
            match self.del_all(&list, attachment, record.result.as_ref(), Extra::None) {
                Ok(()) => records.remove(&record)?,
                Err(second) => tracing::warn!(
                    container = attachment.container_id,
                    error = %chain(&second),
                    "undoing a failed attachment; GC will try again"
                ),
            }
        }
        added
    }

    /// Every plugin in order. The result so far is written after each, so that whatever interrupts
    /// this, DEL knows what there is to undo.
    fn add_all(
        &self,
        list: &NetworkList,
        records: &Records,
        record: &mut Record,
    ) -> Result<AddResult, Error> {
        for plugin in &list.plugins {
            let previous = record.result.as_ref();
            let said = self.call(
                list,
                plugin,
                "ADD",
                &record.attachment,
                previous,
                Extra::None,
            )?;
            let Some(value) = said else { continue };
            let result: AddResult = serde_json::from_value(value).map_err(|e| {
                let text = format!("its result is not one: {e}");
                plugin_error(list, plugin, "ADD", PluginError::new(code::DECODING, text))
            })?;
            if record.result.as_ref() != Some(&result) {
                record.result = Some(result);
                records.write(record)?;
            }
        }
        Ok(record.result.clone().unwrap_or_default())
    }

    fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        let record = self
            .records()
            .find(&attachment.container_id, &attachment.ifname)?;
        let Some(record) = record else {
            return Err(Error::Argument(format!(
                "container {} is not attached",
                attachment.container_id
            )));
        };
        let list = record.list()?;
        if list.disable_check || list.cni_version.starts_with(WITHOUT_CHECK) {
            return Ok(());
        }
        let result = record.result.as_ref();
        list.plugins.iter().try_for_each(|p| {
            self.call(&list, p, "CHECK", &record.attachment, result, Extra::None)
                .map(drop)
        })
    }

    fn del(&self, attachment: &Attachment, extra: Extra<'_>) -> Result<(), Error> {
        attachment.check()?;
        let records = self.records();
        if let Some(record) = records.find(&attachment.container_id, &attachment.ifname)? {
            return self.del_record(&records, &record, extra);
        }
        // Not known: ask the plugins all the same, they may have something left.
        match self.list() {
            Ok(list) => self.del_all(&list, attachment, None, extra),
            Err(_) => Ok(()),
        }
    }

    fn del_record(
        &self,
        records: &Records,
        record: &Record,
        extra: Extra<'_>,
    ) -> Result<(), Error> {
        let (list, result) = (record.list()?, record.result.as_ref());
        self.del_all(&list, &record.attachment, result, extra)?;
        records.remove(record)
    }

    /// Every plugin in reverse order; the first error is returned at the end.
    fn del_all(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        result: Option<&AddResult>,
        extra: Extra<'_>,
    ) -> Result<(), Error> {
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let done = self.call(list, plugin, "DEL", attachment, result, extra);
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    fn gc(&self, valid: &[(String, String)]) -> Result<(), Error> {
        let records = self.records();
        let mut outcome = Ok(());
        for record in records.all()? {
            let one = &record.attachment;
            if !valid
                .iter()
                .any(|(id, ifname)| *id == one.container_id && *ifname == one.ifname)
            {
                outcome = outcome.and(self.del_record(&records, &record, Extra::None));
            }
        }
        let list = match conf::load(&self.conf_dir) {
            // Without a network there is nothing that could have leaked from it.
            Err(conf::ConfError::None(_)) => return outcome,
            loaded => loaded.map_err(|error| Error::Config(chain(&error)))?,
        };
        if list.disable_gc || list.cni_version != HAS_STATUS_AND_GC {
            return outcome;
        }
        let nobody = Attachment::nobody();
        for plugin in &list.plugins {
            let done = self.call(&list, plugin, "GC", &nobody, None, Extra::Valid(valid));
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }

    fn call(
        &self,
        list: &NetworkList,
        plugin: &PluginConf,
        verb: &'static str,
        attachment: &Attachment,
        previous: Option<&AddResult>,
        extra: Extra<'_>,
    ) -> Result<Option<Value>, Error> {
        let call = Call {
            verb,
            container_id: attachment.container_id.clone(),
            netns: attachment.netns.clone(),
            ifname: attachment.ifname.clone(),
            args: attachment.args(),
            bin_dir: self.bin_dir.clone(),
            lease_dir: self.state_dir.join("networks"),
            drops_netns: matches!(extra, Extra::DropsNetns),
            conf: input(list, plugin, attachment, previous, extra),
        };
        builtin::run(&plugin.kind, &call).map_err(|source| plugin_error(list, plugin, verb, source))
    }
}

/// What some calls say beside configuration and attachment.
#[derive(Clone, Copy)]
enum Extra<'a> {
    None,
    /// GC: what is attached.
    Valid(&'a [(String, String)]),
    /// DEL: the namespace goes next.
    DropsNetns,
}

fn plugin_error(
    list: &NetworkList,
    plugin: &PluginConf,
    verb: &'static str,
    source: PluginError,
) -> Error {
    Error::Plugin {
        network: list.name.clone(),
        plugin: plugin.kind.clone(),
        verb,
        source,
    }
}

/// What a plugin gets on its standard input (specification, section 3, "Deriving execution
/// configuration").
fn input(
    list: &NetworkList,
    plugin: &PluginConf,
    attachment: &Attachment,
    previous: Option<&AddResult>,
    extra: Extra<'_>,
) -> Value {
    let mut conf = plugin.fields.clone();
    conf.insert("cniVersion".to_owned(), list.cni_version.clone().into());
    conf.insert("name".to_owned(), list.name.clone().into());
    let wanted = attachment.capabilities.as_map();
    let granted: Map<String, Value> = wanted
        .into_iter()
        .filter(|(name, _)| plugin.capabilities.contains(name))
        .collect();
    if !granted.is_empty() {
        conf.insert("runtimeConfig".to_owned(), granted.into());
    }
    if let Some(previous) = previous {
        conf.insert("prevResult".to_owned(), previous.to_json(&list.cni_version));
    }
    if let Extra::Valid(valid) = extra {
        let listed: Vec<Value> = valid
            .iter()
            .map(|(id, ifname)| serde_json::json!({"containerID": id, "ifname": ifname}))
            .collect();
        conf.insert("cni.dev/valid-attachments".to_owned(), listed.into());
    }
    conf.into()
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

impl Capabilities {
    fn as_map(&self) -> Map<String, Value> {
        let mut map = self.other.clone();
        if !self.port_mappings.is_empty() {
            let listed =
                serde_json::to_value(&self.port_mappings).expect("plain data always encodes");
            map.insert("portMappings".to_owned(), listed);
        }
        map
    }
}

impl Attachment {
    /// STATUS and GC are about no container.
    fn nobody() -> Attachment {
        Attachment {
            container_id: String::new(),
            netns: PathBuf::new(),
            ifname: String::new(),
            pod_name: String::new(),
            pod_namespace: String::new(),
            pod_uid: String::new(),
            capabilities: Capabilities::default(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if !conf::is_name(&self.container_id) {
            return Err(Error::Argument(format!(
                "{:?} is not a container id",
                self.container_id
            )));
        }
        check_ifname(&self.ifname).map_err(Error::Argument)
    }

    /// `CNI_ARGS` as container runtimes set them for Kubernetes.
    fn args(&self) -> String {
        if self.container_id.is_empty() {
            return String::new();
        }
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.pod_namespace, self.pod_name, self.container_id, self.pod_uid
        )
    }
}

/// The rules of the kernel and of the specification for an interface name.
pub(crate) fn check_ifname(name: &str) -> Result<(), String> {
    const LONGEST: usize = 15;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.is_empty() || name.len() > LONGEST || name == "." || name == ".." || name.contains(bad)
    {
        return Err(format!("{name:?} is not an interface name"));
    }
    Ok(())
}
