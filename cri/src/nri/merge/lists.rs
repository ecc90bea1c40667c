// SPDX-License-Identifier: Apache-2.0
//! Fields with entries: each entry has its own owner, can be replaced, and be removed by name.

use std::collections::{BTreeMap, BTreeSet};

use super::super::api::{
    Container, ContainerAdjustment, Field, KeyValue, LinuxDevice, LinuxNamespace, LinuxNetDevice,
    Mount,
};
use super::owners::{Conflict, Owners};
use super::{Creation, removed};

/// An entry of a list, known by its name.
trait Named {
    fn name(&self) -> &str;
}

impl Named for Mount {
    fn name(&self) -> &str {
        &self.destination
    }
}

impl Named for LinuxDevice {
    fn name(&self) -> &str {
        &self.path
    }
}

impl Named for KeyValue {
    fn name(&self) -> &str {
        &self.key
    }
}

/// A plugin's list, sorted out.
struct Sorted<T> {
    add: Vec<T>,
    /// Names of the container's present entries that do not stay.
    gone: BTreeSet<String>,
}

/// Puts a plugin's list into what was asked for until now. Removals stay in it, marked, unless the
/// same list sets the entry anew.
fn adjust_list<T: Named + Clone>(
    (owners, container): (&mut Owners, &str),
    field: Field,
    said: Vec<T>,
    plugin: &str,
    wanted: &mut Vec<T>,
) -> Result<Sorted<T>, Conflict> {
    let (removals, add): (Vec<T>, Vec<T>) =
        said.into_iter().partition(|e| removed(e.name()).is_some());
    let names = |list: &[T]| -> BTreeSet<String> {
        let bare = |entry: &T| removed(entry.name()).unwrap_or(entry.name()).to_owned();
        list.iter().map(bare).collect()
    };
    let (removed_names, added_names) = (names(&removals), names(&add));
    wanted.retain(|entry| {
        let goes = removed_names.contains(entry.name());
        if goes {
            owners.clear(container, field, Some(entry.name()), plugin);
        }
        !goes
    });
    for entry in &add {
        owners.claim(container, field, Some(entry.name()), plugin)?;
    }
    let lasting = |entry: &T| removed(entry.name()).is_some_and(|name| !added_names.contains(name));
    wanted.extend(removals.into_iter().filter(lasting));
    wanted.extend(add.iter().cloned());
    let gone = removed_names.union(&added_names).cloned().collect();
    Ok(Sorted { add, gone })
}

/// A map of the container as plugins see it, and the same map of what was asked for.
type Maps<'a, V> = (&'a mut BTreeMap<String, V>, &'a mut BTreeMap<String, V>);

impl Creation {
    /// The same as [`adjust_list`] for a map, which `pick` finds in the container and in what was
    /// asked for until now.
    fn map<V: Clone + Default>(
        &mut self,
        field: Field,
        said: BTreeMap<String, V>,
        plugin: &str,
        pick: impl for<'a> FnOnce(&'a mut Container, &'a mut ContainerAdjustment) -> Maps<'a, V>,
    ) -> Result<(), Conflict> {
        let container = self.container.id.clone();
        let (shown, wanted) = pick(&mut self.container, &mut self.adjust);
        let (removals, add): (BTreeMap<_, _>, BTreeMap<_, _>) =
            said.into_iter().partition(|(k, _)| removed(k).is_some());
        for name in removals.keys().filter_map(|key| removed(key)) {
            if wanted.remove(name).is_some() {
                self.owners.clear(&container, field, Some(name), plugin);
            }
            shown.remove(name);
            wanted.insert(format!("-{name}"), V::default());
        }
        for (name, value) in add {
            self.owners.claim(&container, field, Some(&name), plugin)?;
            shown.insert(name.clone(), value.clone());
            wanted.insert(name, value);
        }
        Ok(())
    }

    pub(super) fn annotations(
        &mut self,
        said: BTreeMap<String, String>,
        plugin: &str,
    ) -> Result<(), Conflict> {
        self.map(Field::Annotations, said, plugin, |shown, wanted| {
            (&mut shown.annotations, &mut wanted.annotations)
        })
    }

    pub(super) fn sysctls(
        &mut self,
        said: BTreeMap<String, String>,
        plugin: &str,
    ) -> Result<(), Conflict> {
        self.map(Field::Sysctl, said, plugin, |shown, wanted| {
            let shown = shown.linux.get_or_insert_default();
            let wanted = wanted.linux.get_or_insert_default();
            (&mut shown.sysctl, &mut wanted.sysctl)
        })
    }

    pub(super) fn net_devices(
        &mut self,
        said: BTreeMap<String, LinuxNetDevice>,
        plugin: &str,
    ) -> Result<(), Conflict> {
        self.map(Field::LinuxNetDevices, said, plugin, |shown, wanted| {
            let shown = shown.linux.get_or_insert_default();
            let wanted = wanted.linux.get_or_insert_default();
            (&mut shown.net_devices, &mut wanted.net_devices)
        })
    }

    pub(super) fn mounts(&mut self, said: Vec<Mount>, plugin: &str) -> Result<(), Conflict> {
        let who = (&mut self.owners, self.container.id.as_str());
        let wanted = &mut self.adjust.mounts;
        let sorted = adjust_list(who, Field::Mounts, said, plugin, wanted)?;
        let shown = &mut self.container.mounts;
        shown.retain(|mount| !sorted.gone.contains(&mount.destination));
        shown.extend(sorted.add);
        Ok(())
    }

    pub(super) fn devices(&mut self, said: Vec<LinuxDevice>, plugin: &str) -> Result<(), Conflict> {
        let who = (&mut self.owners, self.container.id.as_str());
        let wanted = &mut self.adjust.linux.get_or_insert_default().devices;
        let sorted = adjust_list(who, Field::Devices, said, plugin, wanted)?;
        let shown = &mut self.container.linux.get_or_insert_default().devices;
        shown.retain(|device| !sorted.gone.contains(&device.path));
        shown.extend(sorted.add);
        Ok(())
    }

    pub(super) fn env(&mut self, said: Vec<KeyValue>, plugin: &str) -> Result<(), Conflict> {
        let who = (&mut self.owners, self.container.id.as_str());
        let sorted = adjust_list(who, Field::Env, said, plugin, &mut self.adjust.env)?;
        let shown = &mut self.container.env;
        shown.retain(|entry| {
            let name = entry
                .split_once('=')
                .map_or(entry.as_str(), |(name, _)| name);
            !sorted.gone.contains(name)
        });
        let words = |entry: KeyValue| format!("{}={}", entry.key, entry.value);
        shown.extend(sorted.add.into_iter().map(words));
        Ok(())
    }

    /// A removal is a claim too: nobody else may give the namespace back.
    pub(super) fn namespaces(
        &mut self,
        said: Vec<LinuxNamespace>,
        plugin: &str,
    ) -> Result<(), Conflict> {
        for namespace in said {
            let kind = removed(&namespace.r#type).unwrap_or(&namespace.r#type);
            self.owners
                .claim(&self.container.id, Field::Namespace, Some(kind), plugin)?;
            let shown = &mut self.container.linux.get_or_insert_default().namespaces;
            shown.retain(|known| known.r#type != kind);
            if kind == namespace.r#type {
                shown.push(namespace.clone());
            }
            let wanted = self.adjust.linux.get_or_insert_default();
            wanted.namespaces.push(namespace);
        }
        Ok(())
    }
}
