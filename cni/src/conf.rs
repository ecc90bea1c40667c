// SPDX-License-Identifier: Apache-2.0
//! Network configuration lists (CNI 1.1, section 1): read from a directory, checked, and turned
//! into what each plugin gets on its standard input.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::builtin;
use crate::fields::{FieldError, Fields};
use crate::types::SUPPORTED_VERSIONS;

/// Longest file that is read; a real one has a few KiB.
const LONGEST_BYTES: u64 = 1 << 20;

/// Plugins of a list at most; a real one has half a dozen.
const MOST_PLUGINS: usize = 64;

/// A checked configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// Name of the network.
    pub name: String,
    /// Version that the plugins are spoken to in: the newest that both sides know.
    pub cni_version: String,
    /// Don't call CHECK.
    pub disable_check: bool,
    /// Don't call GC.
    pub disable_gc: bool,
    /// In order of ADD.
    pub plugins: Vec<PluginConf>,
    /// The whole list as it was read, to be remembered with an attachment.
    pub raw: Value,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// Which plugin.
    pub kind: String,
    /// Capabilities that it declares.
    pub capabilities: Vec<String>,
    /// Everything else, as it was read.
    pub fields: Map<String, Value>,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The directory has no configuration.
    #[error("no network configuration (*.conflist, *.conf, *.json) in {0}")]
    None(PathBuf),
    /// Reading failed.
    #[error("reading {path}")]
    Read {
        /// File or directory.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Not JSON; the source says at which line and column.
    #[error("{path} is not valid JSON")]
    Syntax {
        /// File.
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not a configuration.
    #[error("{path}")]
    Field {
        /// File.
        path: PathBuf,
        #[source]
        source: FieldError,
    },
}

/// Read the first configuration of a directory, by file name: `*.conflist`, or a single plugin in
/// `*.conf` or `*.json`. A list may have further plugins in files of a directory that has its name.
pub fn load(dir: &Path) -> Result<NetworkList, ConfError> {
    let path = files(dir, &["conflist", "conf", "json"])?
        .into_iter()
        .next()
        .ok_or_else(|| ConfError::None(dir.to_owned()))?;
    let raw = read(&path)?;
    let single = path.extension().is_some_and(|e| e != "conflist");
    let raw = if single && raw.get("plugins").is_none() {
        as_list(raw)
    } else {
        with_files(dir, raw, &path)?
    };
    parse(raw).map_err(|source| ConfError::Field { path, source })
}

/// Names of the files in a directory that have one of these extensions, in order; none when the
/// directory is not there.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ConfError> {
    let unreadable = |source| ConfError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        if extensions.contains(&extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Value, ConfError> {
    let unreadable = |source| ConfError::Read {
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > LONGEST_BYTES {
        return Err(unreadable(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    let text = fs::read(path).map_err(unreadable)?;
    serde_json::from_slice(&text).map_err(|source| ConfError::Syntax {
        path: path.to_owned(),
        source,
    })
}

/// Append the plugins of `<dir>/<name>/*.conf`, unless the list wants only its own (CNI 1.1,
/// section 1, `loadOnlyInlinedPlugins`). What comes out is complete: it wants only its own.
fn with_files(dir: &Path, mut raw: Value, path: &Path) -> Result<Value, ConfError> {
    let wrong = |source| ConfError::Field {
        path: path.to_owned(),
        source,
    };
    let mut list = Fields::new("(top level)", raw.clone()).map_err(wrong)?;
    if flag(&mut list, ONLY_INLINED).map_err(wrong)? {
        return Ok(raw);
    }
    let name: Option<String> = list.take("name").map_err(top).map_err(wrong)?;
    let Some(name) = name.filter(|name| is_name(name)) else {
        return Ok(raw); // the check says what is wrong with it
    };
    let mut found = Vec::new();
    for path in files(&dir.join(name), &["conf"])? {
        let plugin = read(&path)?;
        parse_plugin("", plugin.clone()).map_err(|source| ConfError::Field { path, source })?;
        found.push(plugin);
    }
    if found.is_empty() {
        return Ok(raw);
    }
    let plugins = raw.as_object_mut().map(|list| {
        list.entry("plugins")
            .or_insert_with(|| Value::Array(Vec::new()))
    });
    if let Some(Value::Array(plugins)) = plugins {
        plugins.extend(found);
        raw[ONLY_INLINED] = true.into();
    }
    Ok(raw)
}

const ONLY_INLINED: &str = "loadOnlyInlinedPlugins";

/// A file with one plugin means a list of one.
fn as_list(plugin: Value) -> Value {
    let mut list = Map::new();
    for name in ["cniVersion", "name"] {
        if let Some(value) = plugin.get(name) {
            list.insert(name.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), Value::Array(vec![plugin]));
    Value::Object(list)
}

/// Check a configuration list. Built-in plugins' fields are checked here too, so that an error
/// shows before the first pod.
pub fn parse(raw: Value) -> Result<NetworkList, FieldError> {
    let mut list = Fields::new("(top level)", raw.clone())?;
    let name: String = list.require("name").map_err(top)?;
    if !is_name(&name) {
        return Err(FieldError::new("name", format!("{name:?} {NAME_RULE}")));
    }
    let one: Option<String> = list.take("cniVersion").map_err(top)?;
    let several: Option<Vec<String>> = list.take("cniVersions").map_err(top)?;
    let cni_version = choose_version(one, several)?;
    let disable_check = flag(&mut list, "disableCheck")?;
    let disable_gc = flag(&mut list, "disableGC")?;
    flag(&mut list, ONLY_INLINED)?;
    let plugins: Vec<Value> = list.require("plugins").map_err(top)?;
    if plugins.is_empty() {
        return Err(FieldError::new("plugins", "must have at least one plugin"));
    }
    if plugins.len() > MOST_PLUGINS {
        let text = format!("has {} plugins, more than {MOST_PLUGINS}", plugins.len());
        return Err(FieldError::new("plugins", text));
    }
    let plugins = plugins
        .into_iter()
        .enumerate()
        .map(|(index, plugin)| parse_plugin(&format!("plugins[{index}]"), plugin))
        .collect::<Result<_, _>>()?;
    Ok(NetworkList {
        name,
        cni_version,
        disable_check,
        disable_gc,
        plugins,
        raw,
    })
}

/// The path of a top-level field is its bare name.
fn top(mut error: FieldError) -> FieldError {
    if let Some(name) = error.path.strip_prefix("(top level).") {
        error.path = name.to_owned();
    }
    error
}

/// `true`, or "true" as a string: libcni accepts both.
fn flag(list: &mut Fields, name: &str) -> Result<bool, FieldError> {
    match list.take::<Value>(name).map_err(top)? {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(FieldError::new(
            name,
            format!("expected a boolean, found {other}"),
        )),
    }
}

fn choose_version(one: Option<String>, several: Option<Vec<String>>) -> Result<String, FieldError> {
    let field = if several.is_some() {
        "cniVersions"
    } else {
        "cniVersion"
    };
    let offered: Vec<String> = several.unwrap_or_default().into_iter().chain(one).collect();
    if offered.is_empty() {
        return Err(FieldError::new("cniVersion", "is missing"));
    }
    let known = SUPPORTED_VERSIONS
        .iter()
        .rev()
        .find(|v| offered.iter().any(|o| o == *v));
    known.map(|v| (*v).to_owned()).ok_or_else(|| {
        let known = SUPPORTED_VERSIONS.join(", ");
        FieldError::new(
            field,
            format!("{} is not one of {known}", offered.join(", ")),
        )
    })
}

/// Does a version of the specification have this verb? The error is in the words of the reference
/// library.
pub(crate) fn has_verb(version: &str, verb: &str) -> Result<(), String> {
    let since = match verb {
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => return Ok(()),
    };
    let known = SUPPORTED_VERSIONS.iter().skip_while(|v| **v != since);
    if known.into_iter().any(|v| *v == version) {
        return Ok(());
    }
    Err(format!("config version {version:?} does not allow {verb}"))
}

const NAME_RULE: &str =
    "must start with a letter or digit and have only letters, digits, '_', '.', '-'";

/// Is this a name of a network or a container (specification, sections 1 and 2)? It never leads out of
/// a directory.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn parse_plugin(path: &str, value: Value) -> Result<PluginConf, FieldError> {
    let mut fields = Fields::new(path, value.clone())?;
    let kind: String = fields.require("type")?;
    crate::exec::check_name(&kind).map_err(|e| FieldError::new(format!("{path}.type"), e))?;
    let declared: Option<Map<String, Value>> = fields.take("capabilities")?;
    let mut capabilities = Vec::new();
    for (name, wanted) in declared.unwrap_or_default() {
        match wanted {
            Value::Bool(true) => capabilities.push(name),
            Value::Bool(false) => {}
            _ => {
                let path = format!("{path}.capabilities.{name}");
                return Err(FieldError::new(path, "expected a boolean"));
            }
        }
    }
    builtin::check_conf(&kind, path, value.clone())?;
    let Value::Object(mut fields) = value else {
        return Err(FieldError::new(path, "expected an object"));
    };
    fields.remove("capabilities");
    Ok(PluginConf {
        kind,
        capabilities,
        fields,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(list: Value) -> String {
        parse(list).expect_err("wrong").to_string()
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let bridge = |extra: Value| {
            let mut plugin =
                json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}});
            plugin
                .as_object_mut()
                .expect("an object")
                .extend(extra.as_object().expect("an object").clone());
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]})
        };
        for (list, expected) in [
            (
                json!([]),
                "field (top level): expected an object, found an array",
            ),
            (json!({"cniVersion": "1.0.0"}), "field name: is missing"),
            (
                json!({"cniVersion": "1.0.0", "name": "../x"}),
                "field name: \"../x\" must start with",
            ),
            (
                json!({"name": "n", "plugins": []}),
                "field cniVersion: is missing",
            ),
            (
                json!({"cniVersion": "0.1.0", "name": "n"}),
                "field cniVersion: 0.1.0 is not one of 0.3.1",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": {}}),
                "field plugins: invalid type: map",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}),
                "field plugins: must have at least one",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
                "field plugins[0].type: is missing",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../../bin/sh"}]}),
                "field plugins[0].type: \"../../bin/sh\" is not a plugin name",
            ),
            (
                bridge(json!({"mtu": "big"})),
                "field plugins[0].mtu: invalid type: string",
            ),
            (
                bridge(json!({"vlan": 4095})),
                "field plugins[0].vlan: 4095 is not between 0 and 4094",
            ),
            (
                bridge(json!({"promiscMode": true, "hairpinMode": true})),
                "field plugins[0].promiscMode: cannot be used with hairpinMode",
            ),
            (
                bridge(json!({"colour": "red"})),
                "field plugins[0].colour: is not supported",
            ),
            (
                json!({"cniVersion": "1.1.0", "name": "n", "loadOnlyInlinedPlugins": 3}),
                "field loadOnlyInlinedPlugins: expected a boolean, found 3",
            ),
            (
                bridge(json!({"ipam": {"type": "host-local", "subnet": "10.0.0.0/33"}})),
                "field plugins[0].ipam.subnet: \"10.0.0.0/33\" is not an address",
            ),
            (
                bridge(json!({"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "x": 1}})),
                "field plugins[0].ipam.x: is not supported",
            ),
        ] {
            let text = problem(list);
            assert!(text.starts_with(expected), "{text}\nwanted {expected}");
        }
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let list = json!({"cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "name": "n", "plugins": [{"type": "loopback"}]});
        assert_eq!(parse(list).expect("valid").cni_version, "1.1.0");
    }

    #[test]
    fn a_list_may_have_plugins_in_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &Value| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, text.to_string()).expect("write");
        };
        let list = |extra: Value| {
            let mut list = json!({"cniVersion": "1.1.0", "name": "n"});
            let fields = extra.as_object().expect("an object").clone();
            list.as_object_mut().expect("an object").extend(fields);
            write("10-n.conflist", &list);
        };
        let kinds = || -> Vec<String> {
            let loaded = load(dir.path()).expect("valid");
            // What is remembered with an attachment needs no files.
            assert_eq!(parse(loaded.raw.clone()).expect("valid"), loaded);
            loaded.plugins.into_iter().map(|p| p.kind).collect()
        };
        let problem = || crate::network::chain(&load(dir.path()).expect_err("wrong"));
        list(json!({}));
        assert!(problem().ends_with("10-n.conflist: field plugins: is missing"));
        write("n/20-b.conf", &json!({"type": "later"}));
        write("n/10-a.conf", &json!({"type": "loopback"}));
        write("n/30-c.json", &json!({"type": "ignored"}));
        assert_eq!(kinds(), ["loopback", "later"]);
        list(json!({"plugins": [{"type": "first"}]}));
        assert_eq!(kinds(), ["first", "loopback", "later"]);
        list(json!({"plugins": [{"type": "first"}], "loadOnlyInlinedPlugins": "True"}));
        assert_eq!(kinds(), ["first"]);
        list(json!({"loadOnlyInlinedPlugins": true}));
        assert!(problem().ends_with("field plugins: is missing"));
        list(json!({}));
        write("n/10-a.conf", &json!({"type": "loopback", "x": 1}));
        let text = problem();
        assert!(
            text.ends_with("n/10-a.conf: field x: is not supported"),
            "{text}"
        );
    }

    #[test]
    fn verbs_have_come_with_versions() {
        for (version, verb, has) in [
            ("0.3.1", "ADD", true),
            ("0.3.1", "CHECK", false),
            ("0.4.0", "CHECK", true),
            ("1.0.0", "GC", false),
            ("1.1.0", "STATUS", true),
            ("2.0.0", "STATUS", false),
        ] {
            assert_eq!(has_verb(version, verb).is_ok(), has, "{version} {verb}");
        }
    }

    #[test]
    fn the_default_list_is_valid_for_both_families() {
        for (pods, cluster) in [
            ("10.42.0.0/24", "10.42.0.0/16"),
            ("fd00:42::/64", "fd00:42::/56"),
            ("10.42.0.0/24,fd00:42::/64", "10.42.0.0/16,fd00:42::/56"),
        ] {
            let network = crate::PodNetwork::new("pw0", "podwright", pods, cluster);
            let mut network = network.expect("lists");
            network.mtu = Some(1450);
            let raw = serde_json::from_str(&crate::default_conflist(&network)).expect("JSON");
            let list = parse(raw).expect("valid");
            assert_eq!(list.plugins.len(), 4);
        }
    }
}
