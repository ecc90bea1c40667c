// SPDX-License-Identifier: Apache-2.0
//! Strategic merge patch (apimachinery, `pkg/util/strategicpatch/patch.go`; the directives are
//! described in sig-api-machinery's `strategic-merge-patch.md`).

use serde_json::{Map, Value};

use super::rules::{ListRule, list_rule};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of a kind.
///
/// # Errors
/// A sentence that names the directive or list element that cannot be understood.
pub(crate) fn strategic(kind: &str, object: &mut Value, patch: &Value) -> Result<(), String> {
    let Value::Object(patch) = patch else {
        return Err("cannot restore slice from map: the patch must be an object".to_owned());
    };
    let mut merge = Merge {
        kind,
        path: Vec::new(),
    };
    let old = std::mem::take(object);
    let Value::Object(old) = old else {
        return Err("the object to patch is not an object".to_owned());
    };
    *object = Value::Object(merge.maps(old, patch)?);
    Ok(())
}

struct Merge<'a> {
    kind: &'a str,
    path: Vec<String>,
}

impl Merge<'_> {
    fn maps(
        &mut self,
        mut old: Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("")) {
            None | Some("merge") => {}
            Some("replace") => {
                let mut new = patch.clone();
                new.remove(DIRECTIVE);
                return Ok(new);
            }
            Some("delete") => return Ok(Map::new()),
            Some(other) => return Err(format!("unknown patch type: {other}")),
        }
        if let Some(keep) = patch.get(RETAIN_KEYS) {
            let keep = values(keep, RETAIN_KEYS)?;
            old.retain(|field, _| keep.iter().any(|k| k == field));
        }
        for (field, wanted) in patch {
            if field == DIRECTIVE || field == RETAIN_KEYS {
                continue;
            }
            if let Some(field) = field.strip_prefix(DELETE_VALUES) {
                let gone = values(wanted, DELETE_VALUES)?;
                if let Some(Value::Array(found)) = old.get_mut(field) {
                    found.retain(|v| !gone.contains(v));
                }
            } else if let Some(field) = field.strip_prefix(ORDER) {
                // With a patch of the list itself, the order is applied there.
                if !patch.contains_key(field) {
                    self.order(&mut old, field, wanted)?;
                }
            } else {
                self.field(&mut old, field, wanted)?;
                if let Some(order) = patch.get(&format!("{ORDER}{field}")) {
                    self.order(&mut old, field, order)?;
                }
            }
        }
        Ok(old)
    }

    fn field(
        &mut self,
        old: &mut Map<String, Value>,
        field: &str,
        wanted: &Value,
    ) -> Result<(), String> {
        match wanted {
            Value::Null => {
                old.remove(field);
            }
            Value::Object(wanted) => {
                let before = match old.remove(field) {
                    Some(Value::Object(before)) => before,
                    _ => Map::new(),
                };
                self.path.push(field.to_owned());
                let merged = self.maps(before, wanted)?;
                self.path.pop();
                // A deletion by directive removes the field as a whole.
                if wanted.get(DIRECTIVE).is_none_or(|d| d != "delete") {
                    old.insert(field.to_owned(), Value::Object(merged));
                }
            }
            Value::Array(wanted) => {
                let before = match old.remove(field) {
                    Some(Value::Array(before)) => before,
                    _ => Vec::new(),
                };
                let merged = match list_rule(self.kind, &self.path, field) {
                    ListRule::Atomic => wanted.clone(),
                    ListRule::Set => set(before, wanted),
                    ListRule::ByKey(key) => self.lists(before, wanted, field, key)?,
                };
                old.insert(field.to_owned(), Value::Array(merged));
            }
            plain => {
                old.insert(field.to_owned(), plain.clone());
            }
        }
        Ok(())
    }

    fn lists(
        &mut self,
        mut old: Vec<Value>,
        patch: &[Value],
        field: &str,
        key: &str,
    ) -> Result<Vec<Value>, String> {
        let replace = |item: &Value| item.get(DIRECTIVE).is_some_and(|d| d == "replace");
        if patch.iter().any(replace) {
            // The directive replaces the whole list; an element with nothing else only says so.
            let mut new: Vec<_> = patch.to_vec();
            new.retain(|item| !replace(item) || item.get(key).is_some());
            for item in &mut new {
                if let Some(fields) = item.as_object_mut() {
                    fields.remove(DIRECTIVE);
                }
            }
            return Ok(new);
        }
        self.path.push(field.to_owned());
        for item in patch {
            let Value::Object(wanted) = item else {
                return Err(format!(
                    "list {field}: expected objects with the field {key}, got {item}"
                ));
            };
            let name = wanted
                .get(key)
                .ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
            let at = old.iter().position(|o| o.get(key) == Some(name));
            if wanted.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                old.retain(|o| o.get(key) != Some(name));
                continue;
            }
            let before = match at.map(|at| std::mem::take(&mut old[at])) {
                Some(Value::Object(before)) => before,
                _ => Map::new(),
            };
            let merged = Value::Object(self.maps(before, wanted)?);
            match at {
                Some(at) => old[at] = merged,
                None => old.push(merged),
            }
        }
        self.path.pop();
        Ok(old)
    }

    /// Sorts a merged list: what the patch's author knows goes in the author's order, and the
    /// rest stays where it was relative to it.
    fn order(
        &self,
        object: &mut Map<String, Value>,
        field: &str,
        order: &Value,
    ) -> Result<(), String> {
        let order = values(order, ORDER)?;
        let Some(Value::Array(items)) = object.get_mut(field) else {
            return Ok(());
        };
        let key = match list_rule(self.kind, &self.path, field) {
            ListRule::Atomic => return Ok(()),
            ListRule::Set => None,
            ListRule::ByKey(key) => Some(key),
        };
        let name = |item: &Value| match key {
            Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
            None => item.clone(),
        };
        let wanted: Vec<Value> = order.iter().map(name).collect();
        let rank = |item: &Value| wanted.iter().position(|w| *w == name(item));
        let known_before = |at: usize, items: &[Value]| items[..at].iter().rev().find_map(&rank);
        // An element that the author doesn't know follows the one that stood before it.
        let mut keyed: Vec<(isize, usize, Value)> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let place = match rank(item) {
                Some(rank) => (to_signed(rank), 0),
                None => (known_before(at, items).map_or(-1, to_signed), at + 1),
            };
            keyed.push((place.0, place.1, item.clone()));
        }
        keyed.sort_by_key(|(rank, at, _)| (*rank, *at));
        *items = keyed.into_iter().map(|(_, _, item)| item).collect();
        Ok(())
    }
}

fn to_signed(n: usize) -> isize {
    isize::try_from(n).unwrap_or(isize::MAX)
}

fn set(mut old: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    for value in patch {
        if !old.contains(value) {
            old.push(value.clone());
        }
    }
    old
}

fn values<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], String> {
    let list = value.as_array().map(Vec::as_slice);
    list.ok_or_else(|| format!("{what} must be a list, got {value}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(kind: &str, mut object: Value, patch: &Value, expected: &Value) {
        strategic(kind, &mut object, patch).expect("patch applies");
        assert_eq!(&object, expected);
    }

    #[test]
    fn containers_are_merged_by_name_and_their_ports_by_number() {
        check(
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x:1", "ports": [{"containerPort": 80}], "env": [{"name": "A", "value": "1"}]},
                {"name": "b", "image": "y"}]}}}}),
            &json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x:2", "ports": [{"containerPort": 81}], "env": [{"name": "A", "value": "2"}]}]}}}}),
            &json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x:2", "ports": [{"containerPort": 80}, {"containerPort": 81}], "env": [{"name": "A", "value": "2"}]},
                {"name": "b", "image": "y"}]}}}}),
        );
    }

    #[test]
    fn elements_are_deleted_and_ordered_by_directive() {
        check(
            "Pod",
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
            &json!({"spec": {
                "$setElementOrder/containers": [{"name": "d"}, {"name": "c"}],
                "containers": [{"name": "a", "$patch": "delete"}, {"name": "d", "image": "x"}]}}),
            &json!({"spec": {"containers": [{"name": "b"}, {"name": "d", "image": "x"}, {"name": "c"}]}}),
        );
    }

    #[test]
    fn whole_lists_and_maps_are_replaced_by_directive() {
        check(
            "Pod",
            json!({"spec": {"volumes": [{"name": "a", "emptyDir": {}}], "tolerations": [{"key": "x"}], "nodeSelector": {"a": "b"}}}),
            &json!({"spec": {"volumes": [{"$patch": "replace"}, {"name": "b"}], "tolerations": [{"key": "y"}],
                "nodeSelector": {"$patch": "replace", "c": "d"}}}),
            &json!({"spec": {"volumes": [{"name": "b"}], "tolerations": [{"key": "y"}], "nodeSelector": {"c": "d"}}}),
        );
    }

    #[test]
    fn retain_keys_clears_the_other_members_of_a_union() {
        check(
            "Deployment",
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            &json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            &json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
    }

    #[test]
    fn finalizers_are_a_set_and_null_removes() {
        check(
            "Pod",
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}),
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"], "labels": {"x": null}}}),
            &json!({"metadata": {"finalizers": ["b", "c"], "labels": {"y": "2"}}}),
        );
    }

    #[test]
    fn conditions_are_merged_by_type() {
        check(
            "Node",
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}}),
            &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
        );
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let mut pod = json!({"spec": {}});
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        let error = strategic("Pod", &mut pod, &patch).expect_err("no name");
        assert!(
            error.contains("does not contain declared merge key: name"),
            "{error}"
        );
        let patch = json!({"spec": {"$patch": "frobnicate"}});
        assert!(strategic("Pod", &mut json!({"spec": {}}), &patch).is_err());
    }
}
