// SPDX-License-Identifier: Apache-2.0
//! Changes to an OCI spec that somebody else asks for: NRI plugins and CDI devices. Pure.
//!
//! A spec is edited in its JSON form, which is what both of them are written in; what comes out is
//! parsed as a spec again, so a value that a spec cannot hold is found here.

use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

use crate::fault::{Fault, Result};

/// A spec that is being changed.
#[derive(Debug)]
pub(crate) struct SpecEdit(Value);

impl SpecEdit {
    pub(crate) fn new(spec: &Spec) -> Result<SpecEdit> {
        serde_json::to_value(spec)
            .map(SpecEdit)
            .map_err(|e| Fault::internal("encoding an OCI spec", e))
    }

    /// The spec with all changes. `by` says who made them.
    ///
    /// # Errors
    /// When it is no spec any more, naming what is wrong.
    pub(crate) fn finish(self, by: &str) -> Result<Spec> {
        serde_path_to_error::deserialize(self.0)
            .map_err(|e| Fault::invalid(format!("the OCI spec as changed by {by}: {e}")))
    }

    /// The changed spec in its JSON form, for who wants no more of it.
    pub(crate) fn into_value(self) -> Value {
        self.0
    }

    /// What is at these names, if anything is.
    pub(crate) fn get(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.0, |value, name| value.get(name))
    }

    fn object(&mut self, path: &[&str]) -> &mut Map<String, Value> {
        let mut value = &mut self.0;
        for name in path {
            value = object_of(value).entry(*name).or_insert_with(|| json!({}));
        }
        object_of(value)
    }

    fn list(&mut self, path: &[&str]) -> &mut Vec<Value> {
        let Some((name, parents)) = path.split_last() else {
            return list_of(&mut self.0);
        };
        let value = self
            .object(parents)
            .entry(*name)
            .or_insert_with(|| json!([]));
        list_of(value)
    }

    /// Sets one value; objects on the way are made.
    pub(crate) fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        if let Some((name, parents)) = path.split_last() {
            self.object(parents)
                .insert((*name).to_owned(), value.into());
        }
    }

    /// Removes one value; absent is fine.
    pub(crate) fn unset(&mut self, path: &[&str]) {
        if let Some((name, parents)) = path.split_last()
            && self.get(parents).is_some()
        {
            self.object(parents).remove(*name);
        }
    }

    pub(crate) fn push(&mut self, path: &[&str], value: Value) {
        self.list(path).push(value);
    }

    /// Puts an entry into a list in place of one with the same `key`, or at its end.
    pub(crate) fn put(&mut self, path: &[&str], key: &str, value: Value) {
        let list = self.list(path);
        let same = |entry: &&mut Value| entry.get(key) == value.get(key);
        match list.iter_mut().find(same) {
            Some(entry) => *entry = value,
            None => list.push(value),
        }
    }

    /// Removes the entries of a list whose `key` is `value`.
    pub(crate) fn remove(&mut self, path: &[&str], key: &str, value: &str) {
        if self.get(path).is_some() {
            self.list(path)
                .retain(|entry| entry.get(key).and_then(Value::as_str) != Some(value));
        }
    }

    /// Sets a variable: where one of that name was, or at the end.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        let entry = Value::from(format!("{name}={value}"));
        let list = self.list(&["process", "env"]);
        match list.iter_mut().find(|known| is_variable(known, name)) {
            Some(known) => *known = entry,
            None => list.push(entry),
        }
    }

    pub(crate) fn unset_env(&mut self, name: &str) {
        self.list(&["process", "env"])
            .retain(|known| !is_variable(known, name));
    }

    /// Adds a device node and lets the container use it.
    pub(crate) fn put_device(&mut self, device: Value, access: &str) {
        let field = |name: &str| device.get(name).cloned().unwrap_or_default();
        let rule = json!({
            "allow": true, "type": field("type"), "access": access,
            "major": field("major"), "minor": field("minor"),
        });
        let has_rule = matches!(field("type").as_str(), Some("b" | "c" | "u"));
        self.put(&["linux", "devices"], "path", device);
        if has_rule {
            self.push(&["linux", "resources", "devices"], rule);
        }
    }

    /// Makes the root pass on mounts at least as far as a mount of this propagation needs.
    pub(crate) fn widen_root_propagation(&mut self, options: &[String]) {
        let has = |word: &str| options.iter().any(|option| option == word);
        let path = ["linux", "rootfsPropagation"];
        let now = self.get(&path).and_then(Value::as_str).unwrap_or_default();
        if has("rshared") {
            self.set(&path, "rshared");
        } else if has("rslave") && !matches!(now, "rshared" | "rslave") {
            self.set(&path, "rslave");
        }
    }

    /// Orders mounts so that none hides one that comes later: fewer parts first, as others do it.
    pub(crate) fn sort_mounts(&mut self) {
        let parts = |mount: &Value| {
            let destination = mount.get("destination").and_then(Value::as_str);
            let path = std::path::Path::new(destination.unwrap_or_default());
            path.components().count()
        };
        self.list(&["mounts"]).sort_by_key(parts);
    }
}

fn is_variable(entry: &Value, name: &str) -> bool {
    let entry = entry.as_str().unwrap_or_default();
    entry.split_once('=').map_or(entry, |(known, _)| known) == name
}

/// The value as an object. What is something else, or null, becomes an empty one.
fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made one above")
}

fn list_of(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("made one above")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit() -> SpecEdit {
        SpecEdit::new(&crate::oci::spec::container_spec()).unwrap()
    }

    #[test]
    fn variables_keep_their_place() {
        let mut spec = edit();
        spec.set_env("A", "1");
        spec.set_env("B", "2");
        spec.set_env("A", "3");
        spec.set_env("AB", "4");
        spec.unset_env("B");
        let spec = spec.finish("a test").unwrap();
        let env = spec.process().clone().unwrap().env().clone().unwrap();
        assert_eq!(env, ["A=3", "AB=4"]);
    }

    #[test]
    fn entries_are_replaced_by_name_and_devices_get_a_rule() {
        let mut spec = edit();
        let device =
            |minor: i64| json!({"path": "/dev/x", "type": "c", "major": 1, "minor": minor});
        spec.put_device(device(3), "rw");
        spec.put_device(device(5), "r");
        spec.put(
            &["mounts"],
            "destination",
            json!({"destination": "/proc", "type": "tmpfs"}),
        );
        spec.remove(&["mounts"], "destination", "/sys");
        spec.set(&["process", "oomScoreAdj"], 7);
        spec.unset(&["hooks", "none"]);
        let spec = spec.finish("a test").unwrap();
        let linux = spec.linux().clone().unwrap();
        let devices = linux.devices().clone().unwrap();
        assert_eq!((devices.len(), devices[0].minor()), (1, 5));
        let rules = linux
            .resources()
            .clone()
            .unwrap()
            .devices()
            .clone()
            .unwrap();
        assert_eq!(rules.len(), 3);
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(
            mounts
                .iter()
                .filter(|m| m.destination().ends_with("proc"))
                .count(),
            1
        );
        assert!(!mounts.iter().any(|m| m.destination().ends_with("sys")));
        assert_eq!(spec.process().clone().unwrap().oom_score_adj(), Some(7));
    }

    #[test]
    fn what_is_no_spec_is_refused_with_the_place() {
        let mut spec = edit();
        spec.set(&["process", "oomScoreAdj"], "high");
        let error = spec.finish("plugin x").unwrap_err().to_string();
        assert!(
            error.contains("plugin x") && error.contains("oomScoreAdj"),
            "{error}"
        );
    }
}
