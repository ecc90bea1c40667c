// SPDX-License-Identifier: Apache-2.0
//! Which plugin has set which field of which container, so that two that disagree are found out.

use super::super::api::{self, Field};

/// Two plugins want one thing, or one plugin wants it twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugins {plugin:?} and {other:?} both tried to set {field}")]
pub struct Conflict {
    pub plugin: String,
    pub other: String,
    /// The field, and the entry of it.
    pub field: String,
}

/// The owners, in the form in which plugins that validate see them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Owners(pub api::OwningPlugins);

/// Marks an owner that has removed what another plugin had set: it alone may set it again.
const REMOVED: char = '-';

impl Owners {
    fn of(&mut self, container: &str) -> &mut api::FieldOwners {
        self.0.owners.entry(container.to_owned()).or_default()
    }

    /// `plugin` sets a field, or one entry of it where `key` is given.
    ///
    /// # Errors
    /// When somebody has set it before.
    pub fn claim(
        &mut self,
        container: &str,
        field: Field,
        key: Option<&str>,
        plugin: &str,
    ) -> Result<(), Conflict> {
        let owners = self.of(container);
        let number = field as i32;
        let other = match key {
            None => owners.simple.get(&number),
            Some(key) => owners.compound.get(&number).and_then(|c| c.owners.get(key)),
        };
        if let Some(other) = other {
            let removed = other.strip_prefix(REMOVED);
            if removed != Some(plugin) {
                return Err(Conflict {
                    plugin: plugin.to_owned(),
                    other: removed.unwrap_or(other).to_owned(),
                    field: name(field, key),
                });
            }
        }
        self.set(container, field, key, plugin.to_owned());
        Ok(())
    }

    /// `plugin` removes what another one had set.
    pub fn clear(&mut self, container: &str, field: Field, key: Option<&str>, plugin: &str) {
        self.set(container, field, key, format!("{REMOVED}{plugin}"));
    }

    /// Hooks add up: every plugin that adds some is named.
    pub fn add_hooks(&mut self, container: &str, plugin: &str) {
        let number = Field::OciHooks as i32;
        let before = self.of(container).simple.get(&number);
        let all = before.map_or(plugin.to_owned(), |before| format!("{before},{plugin}"));
        self.set(container, Field::OciHooks, None, all);
    }

    fn set(&mut self, container: &str, field: Field, key: Option<&str>, owner: String) {
        let owners = self.of(container);
        match key {
            None => owners.simple.insert(field as i32, owner),
            Some(key) => {
                let entries = owners.compound.entry(field as i32).or_default();
                entries.owners.insert(key.to_owned(), owner)
            }
        };
    }
}

fn name(field: Field, key: Option<&str>) -> String {
    match key {
        None => field.as_str_name().to_owned(),
        Some(key) => format!("{} {key}", field.as_str_name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_owner_is_refused_and_both_are_named() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Env, Some("A"), "00-a").unwrap();
        owners.claim("c", Field::Env, Some("B"), "01-b").unwrap();
        owners.claim("d", Field::Env, Some("A"), "01-b").unwrap();
        let conflict = owners
            .claim("c", Field::Env, Some("A"), "01-b")
            .unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "plugins \"01-b\" and \"00-a\" both tried to set Env A"
        );
        owners.claim("c", Field::Args, None, "00-a").unwrap();
        assert!(owners.claim("c", Field::Args, None, "01-b").is_err());
    }

    #[test]
    fn whoever_removes_a_setting_may_make_another() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Args, None, "00-a").unwrap();
        owners.clear("c", Field::Args, None, "01-b");
        assert!(owners.claim("c", Field::Args, None, "02-c").is_err());
        owners.claim("c", Field::Args, None, "01-b").unwrap();
        assert!(owners.claim("c", Field::Args, None, "01-b").is_err());
    }

    #[test]
    fn hooks_have_many_owners() {
        let mut owners = Owners::default();
        owners.add_hooks("c", "00-a");
        owners.add_hooks("c", "01-b");
        let said = owners.0.owners["c"].simple[&(Field::OciHooks as i32)].clone();
        assert_eq!(said, "00-a,01-b");
    }
}
