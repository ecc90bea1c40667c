// SPDX-License-Identifier: Apache-2.0
//! What an operator may tune: the `cri` section of the node's file, with a default for everything.
//!
//! [`Live`] hands the settings to every part and takes new ones while the daemon runs. A part asks
//! [`Live::get`] each time it needs a value; what is fixed at start stays as it was, and
//! [`Live::reload`] names it. Names of fields are those of containerd's configuration where it has one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// All settings of the runtime that have no flag of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Exec, attach and port-forward.
    pub streaming: Streaming,
    /// Pulling and keeping images.
    pub images: Images,
    /// Attaching pods to the network.
    pub network: Network,
    /// External OCI runtimes, by the name that a RuntimeClass gives as its handler.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// Node Resource Interface: plugins that see and adjust containers.
    pub nri: Nri,
    /// Container Device Interface.
    pub cdi: Cdi,
    /// Bounds on what clients and containers can make the daemon hold.
    pub limits: Limits,
}

/// Who makes cgroups, as RuntimeConfig tells the kubelet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupDriver {
    /// Directories in the cgroup filesystem.
    #[default]
    Cgroupfs,
    /// Slices and scopes, made by systemd.
    Systemd,
}

/// Where and how streams are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Streaming {
    /// Port 0 picks a free one. Fixed at start.
    pub address: SocketAddr,
    /// A stream that carries nothing for this long is closed; 0 never.
    #[serde(with = "friendly")]
    pub idle_timeout: Duration,
    /// How long a SPDY client may take to open the channels of its stream.
    #[serde(with = "friendly")]
    pub creation_timeout: Duration,
    /// Whether streams are served over TLS. Without files the certificate is made at each start, for
    /// localhost and the address. Fixed at start.
    pub enable_tls: bool,
    /// PEM files of a certificate chain and its key, for `enable_tls`. Fixed at start.
    pub tls_cert_file: Option<PathBuf>,
    /// See `tls_cert_file`.
    pub tls_key_file: Option<PathBuf>,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            creation_timeout: Duration::from_secs(30),
            enable_tls: false,
            tls_cert_file: None,
            tls_key_file: None,
        }
    }
}

/// Pulling and keeping images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Images {
    /// Layers of one image that are fetched at once.
    pub max_concurrent_downloads: usize,
    /// A pull from which no byte arrives for this long has failed; 0 waits for ever.
    #[serde(with = "friendly")]
    pub progress_timeout: Duration,
    /// Images that are shown as pinned, so that a kubelet never collects them: names in any spelling,
    /// ids, `name*` for all that begin so, `*word*` for all that have the word.
    pub pinned: Vec<String>,
    /// Credentials for pulls that bring none, in the form of docker's config.json.
    pub auth_file: Option<PathBuf>,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: 3,
            progress_timeout: Duration::from_secs(5 * 60),
            pinned: Vec::new(),
            auth_file: None,
        }
    }
}

/// Attaching pods to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// How long the CNI plugins outside of podwright may take for one operation, all together. One
    /// that has not ended by then is killed. Fixed at start.
    #[serde(with = "friendly")]
    pub plugin_timeout: Duration,
}

/// There must be time to undo what was done before CRI's own deadline passes.
const PLUGIN_TIMEOUT_MAX: Duration = Duration::from_secs(40);

impl Default for Network {
    fn default() -> Self {
        Self {
            plugin_timeout: PLUGIN_TIMEOUT_MAX,
        }
    }
}

/// A runtime outside of podwright.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RuntimeHandler {
    /// The executable, absolute.
    pub path: PathBuf,
    /// How it is spoken to.
    #[serde(default)]
    pub kind: RuntimeKind,
    /// The directory that it keeps its state in; one below the run directory when it is not said.
    #[serde(default)]
    pub root: Option<PathBuf>,
}

/// How an external runtime is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// By runc's command line, as the OCI runtimes have it.
    #[default]
    Oci,
}

/// Node Resource Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Nri {
    /// Whether plugins may connect. Fixed at start.
    pub enable: bool,
    /// Where external plugins connect to. Without it, `/var/run/nri/nri.sock`, which all plugins
    /// know, for a node with the usual run directory; for any other, of which one machine may have
    /// several, `nri/nri.sock` in its run directory. Fixed at start.
    pub socket_path: Option<PathBuf>,
    /// No socket: only pre-installed plugins. Fixed at start.
    pub disable_connections: bool,
    /// Programs named `10-name` here are plugins that start with the runtime. Fixed at start.
    pub plugin_path: PathBuf,
    /// `10-name.conf` or `name.conf` here is the configuration of such a plugin. Fixed at start.
    pub plugin_config_path: PathBuf,
    /// How long a plugin that connected may take to register, and to be synchronized.
    #[serde(with = "friendly")]
    pub plugin_registration_timeout: Duration,
    /// How long a plugin may take to answer.
    #[serde(with = "friendly")]
    pub plugin_request_timeout: Duration,
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            enable: true,
            socket_path: None,
            disable_connections: false,
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            plugin_registration_timeout: Duration::from_secs(5),
            plugin_request_timeout: Duration::from_secs(2),
        }
    }
}

/// Where upstream's plugins look for a runtime.
const WELL_KNOWN_NRI: &str = "/var/run/nri/nri.sock";
/// The run directory of a node that has the machine for itself.
const USUAL_RUN_DIR: &str = "/run/podwright";

impl Nri {
    /// The socket of a node with this run directory.
    pub fn socket_in(&self, run_dir: &Path) -> PathBuf {
        match &self.socket_path {
            Some(path) => path.clone(),
            None if run_dir == Path::new(USUAL_RUN_DIR) => WELL_KNOWN_NRI.into(),
            None => run_dir.join("nri/nri.sock"),
        }
    }
}

/// Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cdi {
    /// Where device specifications are read from; later directories win.
    pub spec_dirs: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        Self {
            spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

/// Bounds on what clients and containers can make the daemon hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// How many events a subscriber may fall behind before it is dropped. Fixed at start.
    pub event_queue: usize,
    /// Bytes of output that ExecSync keeps, both streams together.
    pub exec_sync_output: usize,
}

/// What one CRI message may have, less a little for the rest of the message.
const EXEC_OUTPUT_MAX: usize = (16 << 20) - (4 << 10);

impl Default for Limits {
    fn default() -> Self {
        Self {
            event_queue: 1024,
            exec_sync_output: EXEC_OUTPUT_MAX,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cri.{field}: {reason}")]
pub struct SettingError {
    /// Its place in the file, as `streaming.tls-key-file`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Settings {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn check(&self) -> Result<(), SettingError> {
        let wrong = |field: &str, reason: &str| {
            Err(SettingError {
                field: field.to_owned(),
                reason: reason.to_owned(),
            })
        };
        let streaming = &self.streaming;
        if streaming.tls_cert_file.is_some() != streaming.tls_key_file.is_some() {
            return wrong(
                "streaming.tls-cert-file",
                "it and tls-key-file need each other",
            );
        }
        if streaming.tls_cert_file.is_some() && !streaming.enable_tls {
            return wrong(
                "streaming.tls-cert-file",
                "it is set, but enable-tls is not",
            );
        }
        if streaming.creation_timeout.is_zero() {
            return wrong("streaming.creation-timeout", "it must be longer than zero");
        }
        if !(1..=64).contains(&self.images.max_concurrent_downloads) {
            return wrong(
                "images.max-concurrent-downloads",
                "it must be between 1 and 64",
            );
        }
        let patience = self.network.plugin_timeout;
        if patience.is_zero() || patience > PLUGIN_TIMEOUT_MAX {
            return wrong(
                "network.plugin-timeout",
                "it must be longer than zero, and at most 40s",
            );
        }
        if !(1..=1 << 20).contains(&self.limits.event_queue) {
            return wrong("limits.event-queue", "it must be between 1 and 1048576");
        }
        if !(1..=EXEC_OUTPUT_MAX).contains(&self.limits.exec_sync_output) {
            return wrong(
                "limits.exec-sync-output",
                "it must be between 1 and 16773120: one message holds no more",
            );
        }
        self.runtimes
            .iter()
            .try_for_each(|(name, handler)| check_runtime(name, handler))?;
        let paths = self.cdi.spec_dirs.iter().map(|dir| ("cdi.spec-dirs", dir));
        let nri = &self.nri;
        let paths = paths.chain(nri.socket_path.iter().map(|path| ("nri.socket-path", path)));
        let mut paths = paths.chain([
            ("nri.plugin-path", &nri.plugin_path),
            ("nri.plugin-config-path", &nri.plugin_config_path),
        ]);
        match paths.find(|(_, path)| !path.is_absolute()) {
            Some((field, path)) => wrong(field, &not_absolute(path)),
            None => Ok(()),
        }
    }
}

fn not_absolute(path: &Path) -> String {
    format!("{:?} is not an absolute path", path.display().to_string())
}

fn check_runtime(name: &str, handler: &RuntimeHandler) -> Result<(), SettingError> {
    let wrong = |field: String, reason: String| Err(SettingError { field, reason });
    // A RuntimeClass's handler is a DNS label (KEP-585).
    let label = !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !label {
        return wrong(
            format!("runtimes.{name}"),
            "a handler's name has lower case letters, digits and '-', 63 at most".to_owned(),
        );
    }
    if name == "podwright" {
        return wrong(
            "runtimes.podwright".to_owned(),
            "this handler is built in".to_owned(),
        );
    }
    let paths = [
        ("path", Some(&handler.path)),
        ("root", handler.root.as_ref()),
    ];
    for (field, path) in paths {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return wrong(format!("runtimes.{name}.{field}"), not_absolute(path));
        }
    }
    Ok(())
}

/// The settings as they are now, shared by all parts of one daemon.
#[derive(Debug, Clone)]
pub struct Live(Arc<watch::Sender<Arc<Settings>>>);

impl Live {
    /// Starts from settings that were checked.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(settings))))
    }

    /// The present settings. Ask anew each time: they may have changed.
    pub fn get(&self) -> Arc<Settings> {
        self.0.borrow().clone()
    }

    /// Wakes whoever must act on a change.
    pub fn changes(&self) -> watch::Receiver<Arc<Settings>> {
        self.0.subscribe()
    }

    /// Takes new settings, which were checked. What is fixed at start stays as it is.
    /// Returns the fields that differ and wait for a restart.
    pub fn reload(&self, mut new: Settings) -> Vec<&'static str> {
        let old = self.get();
        let mut waiting = Vec::new();
        macro_rules! fixed {
            ($($name:literal => $($field:ident).+),* $(,)?) => { $(
                if new.$($field).+ != old.$($field).+ {
                    waiting.push($name);
                    new.$($field).+.clone_from(&old.$($field).+);
                }
            )* };
        }
        fixed!(
            "cgroup-driver" => cgroup_driver,
            "streaming.address" => streaming.address,
            "streaming.enable-tls" => streaming.enable_tls,
            "streaming.tls-cert-file" => streaming.tls_cert_file,
            "streaming.tls-key-file" => streaming.tls_key_file,
            "network.plugin-timeout" => network.plugin_timeout,
            "nri.enable" => nri.enable,
            "nri.socket-path" => nri.socket_path,
            "nri.disable-connections" => nri.disable_connections,
            "nri.plugin-path" => nri.plugin_path,
            "nri.plugin-config-path" => nri.plugin_config_path,
            "limits.event-queue" => limits.event_queue,
        );
        self.0.send_if_modified(|current| {
            let changed = **current != new;
            *current = Arc::new(new);
            changed
        });
        waiting
    }
}

impl Default for Live {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_right_and_survive_a_round_trip() {
        let defaults = Settings::default();
        assert_eq!(defaults.check(), Ok(()));
        let text = serde_json::to_string(&defaults).unwrap();
        assert!(text.contains("\"idle-timeout\":\"4h\""), "{text}");
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), defaults);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let check = |text: &str| match serde_json::from_str::<Settings>(text) {
            Ok(settings) => settings.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        let cases = [
            (r#"{"streaming":{"idle":"1s"}}"#, "idle"),
            (
                r#"{"streaming":{"tls-key-file":"/k"}}"#,
                "streaming.tls-cert-file",
            ),
            (
                r#"{"runtimes":{"crun":{"path":"crun"}}}"#,
                "runtimes.crun.path",
            ),
            (r#"{"runtimes":{"Crun":{"path":"/crun"}}}"#, "runtimes.Crun"),
            (r#"{"runtimes":{"podwright":{"path":"/x"}}}"#, "built in"),
            (r#"{"runtimes":{"c":{"path":"/c","kind":"vm"}}}"#, "vm"),
            (r#"{"cgroup-driver":"openrc"}"#, "openrc"),
            (r#"{"limits":{"event-queue":0}}"#, "limits.event-queue"),
            (
                r#"{"network":{"plugin-timeout":"2m"}}"#,
                "network.plugin-timeout",
            ),
            (r#"{"images":{"progress-timeout":"soon"}}"#, "duration"),
            (r#"{"cdi":{"spec-dirs":["cdi"]}}"#, "cdi.spec-dirs"),
        ];
        for (text, word) in cases {
            let error = check(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_reload_changes_what_it_can_and_names_the_rest() {
        let live = Live::default();
        let mut changes = live.changes();
        let mut new = Settings::default();
        new.images.pinned = vec!["pause:1".into()];
        new.nri.enable = false;
        assert_eq!(live.reload(new), ["nri.enable"]);
        assert!(changes.has_changed().unwrap());
        let now = changes.borrow_and_update().clone();
        assert_eq!(now.images.pinned, ["pause:1"]);
        assert!(now.nri.enable);
    }
}
