// SPDX-License-Identifier: Apache-2.0
//! What several plugins want of one container, put together: the core of NRI. Pure.
//!
//! Plugins are asked one after the other. Each sees the container as those before it have changed
//! it; what a plugin sets belongs to it, and another that sets the same is a [`Conflict`], unless it
//! removed the setting first (a name that begins with `-`).

mod lists;
mod owners;
pub(crate) mod resources;

use std::collections::BTreeMap;

pub use owners::{Conflict, Owners};

use super::api::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Field, Hooks,
    LinuxContainerAdjustment, LinuxRdt, LinuxResources,
};

/// Why an answer cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("plugin {plugin:?} asked update of {container:?} during creation")]
    UpdateOfNew { plugin: String, container: String },
}

/// The removal mark of a name, taken off.
pub(crate) fn removed(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// A container that is being created, and what has been asked for until now.
#[derive(Debug, Clone, Default)]
pub struct Creation {
    /// As the next plugin sees it.
    pub container: Container,
    pub adjust: ContainerAdjustment,
    pub updates: Updates,
    pub owners: Owners,
}

impl Creation {
    pub fn new(container: Container) -> Creation {
        Creation {
            container,
            ..Creation::default()
        }
    }

    /// Takes the answer of one plugin.
    ///
    /// # Errors
    /// When it wants what another plugin has set. The creation then fails as a whole.
    pub fn apply(
        &mut self,
        adjust: Option<ContainerAdjustment>,
        updates: Vec<ContainerUpdate>,
        plugin: &str,
    ) -> Result<(), MergeError> {
        if let Some(adjust) = adjust {
            self.adjust(adjust, plugin)?;
        }
        if let Some(own) = updates.iter().find(|u| u.container_id == self.container.id) {
            return Err(MergeError::UpdateOfNew {
                plugin: plugin.to_owned(),
                container: own.container_id.clone(),
            });
        }
        self.updates.apply(updates, plugin, &mut self.owners)
    }

    fn adjust(&mut self, said: ContainerAdjustment, plugin: &str) -> Result<(), MergeError> {
        self.annotations(said.annotations, plugin)?;
        self.mounts(said.mounts, plugin)?;
        self.env(said.env, plugin)?;
        self.args(said.args, plugin)?;
        self.hooks(said.hooks, plugin);
        if let Some(linux) = said.linux {
            self.linux(linux, plugin)?;
        }
        for limit in said.rlimits {
            self.claim(Field::Rlimits, Some(&limit.r#type), plugin)?;
            let same = |known: &super::api::PosixRlimit| known.r#type == limit.r#type;
            self.container.rlimits.retain(|known| !same(known));
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        for device in said.cdi_devices {
            self.claim(Field::CdiDevices, Some(&device.name), plugin)?;
            self.adjust.cdi_devices.push(device);
        }
        Ok(())
    }

    fn claim(&mut self, field: Field, key: Option<&str>, plugin: &str) -> Result<(), Conflict> {
        self.owners.claim(&self.container.id, field, key, plugin)
    }

    /// A first argument that is empty removes what another plugin has set.
    fn args(&mut self, mut args: Vec<String>, plugin: &str) -> Result<(), Conflict> {
        if args.is_empty() {
            return Ok(());
        }
        if args.first().is_some_and(String::is_empty) {
            self.owners
                .clear(&self.container.id, Field::Args, None, plugin);
            args.remove(0);
        }
        self.claim(Field::Args, None, plugin)?;
        self.container.args.clone_from(&args);
        self.adjust.args = args;
        Ok(())
    }

    fn hooks(&mut self, said: Option<Hooks>, plugin: &str) {
        let Some(said) = said.filter(|said| *said != Hooks::default()) else {
            return;
        };
        self.owners.add_hooks(&self.container.id, plugin);
        for into in [&mut self.container.hooks, &mut self.adjust.hooks] {
            let into = into.get_or_insert_default();
            into.prestart.extend(said.prestart.iter().cloned());
            into.create_runtime
                .extend(said.create_runtime.iter().cloned());
            into.create_container
                .extend(said.create_container.iter().cloned());
            into.start_container
                .extend(said.start_container.iter().cloned());
            into.poststart.extend(said.poststart.iter().cloned());
            into.poststop.extend(said.poststop.iter().cloned());
        }
    }

    fn linux(&mut self, said: LinuxContainerAdjustment, plugin: &str) -> Result<(), MergeError> {
        self.devices(said.devices.clone(), plugin)?;
        if let Some(limits) = &said.resources {
            for (field, key) in resources::claims(limits) {
                self.claim(field, key, plugin)?;
            }
            let shown = self.container.linux.get_or_insert_default();
            resources::overlay(shown.resources.get_or_insert_default(), limits);
            resources::overlay(self.wanted().resources.get_or_insert_default(), limits);
        }
        self.single_values(&said, plugin)?;
        self.namespaces(said.namespaces, plugin)?;
        self.sysctls(said.sysctl, plugin)?;
        self.net_devices(said.net_devices, plugin)?;
        self.rdt(said.rdt, plugin)
    }

    fn wanted(&mut self) -> &mut LinuxContainerAdjustment {
        self.adjust.linux.get_or_insert_default()
    }

    fn single_values(
        &mut self,
        said: &LinuxContainerAdjustment,
        plugin: &str,
    ) -> Result<(), Conflict> {
        let claims = [
            (Field::CgroupsPath, !said.cgroups_path.is_empty()),
            (Field::OomScoreAdj, said.oom_score_adj.is_some()),
            (Field::IoPriority, said.io_priority.is_some()),
            (Field::SeccompPolicy, said.seccomp_policy.is_some()),
            (Field::LinuxSched, said.scheduler.is_some()),
            (Field::MemoryPolicy, said.memory_policy.is_some()),
        ];
        for (field, _) in claims.into_iter().filter(|(_, said)| *said) {
            self.claim(field, None, plugin)?;
        }
        fn put<T: Clone>(said: &Option<T>, into: [&mut Option<T>; 2]) {
            if said.is_some() {
                for into in into {
                    into.clone_from(said);
                }
            }
        }
        let shown = self.container.linux.get_or_insert_default();
        let wanted = self.adjust.linux.get_or_insert_default();
        if !said.cgroups_path.is_empty() {
            shown.cgroups_path.clone_from(&said.cgroups_path);
            wanted.cgroups_path.clone_from(&said.cgroups_path);
        }
        put(
            &said.oom_score_adj,
            [&mut shown.oom_score_adj, &mut wanted.oom_score_adj],
        );
        put(
            &said.io_priority,
            [&mut shown.io_priority, &mut wanted.io_priority],
        );
        put(
            &said.seccomp_policy,
            [&mut shown.seccomp_policy, &mut wanted.seccomp_policy],
        );
        put(
            &said.scheduler,
            [&mut shown.scheduler, &mut wanted.scheduler],
        );
        if said.memory_policy.is_some() {
            wanted.memory_policy.clone_from(&said.memory_policy);
        }
        Ok(())
    }

    fn rdt(&mut self, said: Option<LinuxRdt>, plugin: &str) -> Result<(), MergeError> {
        let Some(said) = said else { return Ok(()) };
        let fields = [
            (Field::RdtClosId, said.clos_id.is_some()),
            (Field::RdtSchemata, said.schemata.is_some()),
            (Field::RdtEnableMonitoring, said.enable_monitoring.is_some()),
        ];
        if said.remove {
            for (field, _) in fields {
                self.owners.clear(&self.container.id, field, None, plugin);
            }
            self.wanted().rdt = Some(LinuxRdt {
                remove: true,
                ..LinuxRdt::default()
            });
        }
        for (field, _) in fields.into_iter().filter(|(_, said)| *said) {
            self.claim(field, None, plugin)?;
        }
        let into = self.wanted().rdt.get_or_insert_default();
        if said.clos_id.is_some() {
            into.clos_id = said.clos_id;
        }
        if said.schemata.is_some() {
            into.schemata = said.schemata;
        }
        if said.enable_monitoring.is_some() {
            into.enable_monitoring = said.enable_monitoring;
        }
        Ok(())
    }
}

/// New limits for containers that exist, one set for each.
#[derive(Debug, Clone, Default)]
pub struct Updates {
    all: BTreeMap<String, ContainerUpdate>,
    order: Vec<String>,
    pub evictions: Vec<ContainerEviction>,
}

impl Updates {
    /// For a request that itself updates a container: plugins start from what it asks for.
    pub fn of_request(container: &str, wanted: LinuxResources) -> Updates {
        let mut updates = Updates::default();
        let entry = updates.entry(container, false);
        *entry = wanted;
        updates
    }

    fn entry(&mut self, container: &str, ignore_failure: bool) -> &mut LinuxResources {
        if !self.all.contains_key(container) {
            self.order.push(container.to_owned());
        }
        let update = self
            .all
            .entry(container.to_owned())
            .or_insert_with(|| ContainerUpdate {
                container_id: container.to_owned(),
                ignore_failure,
                ..ContainerUpdate::default()
            });
        update.ignore_failure &= ignore_failure;
        let linux = update.linux.get_or_insert_default();
        linux.resources.get_or_insert_default()
    }

    /// Takes what one plugin wants.
    ///
    /// # Errors
    /// When another plugin wants the same, unless this one says that its failure may be ignored.
    pub fn apply(
        &mut self,
        updates: Vec<ContainerUpdate>,
        plugin: &str,
        owners: &mut Owners,
    ) -> Result<(), MergeError> {
        for update in updates {
            let id = &update.container_id;
            let Some(said) = update.linux.as_ref().and_then(|l| l.resources.as_ref()) else {
                continue;
            };
            let claimed = resources::claims(said)
                .into_iter()
                .try_for_each(|(field, key)| owners.claim(id, field, key, plugin));
            match claimed {
                Ok(()) => resources::overlay(self.entry(id, update.ignore_failure), said),
                Err(_) if update.ignore_failure => {}
                Err(conflict) => return Err(conflict.into()),
            }
        }
        Ok(())
    }

    /// The limits for one container until now.
    pub fn peek(&self, container: &str) -> Option<&LinuxResources> {
        let update = self.all.get(container)?;
        update.linux.as_ref()?.resources.as_ref()
    }

    /// The limits for one container, taken out.
    pub fn take(&mut self, container: &str) -> Option<LinuxResources> {
        self.order.retain(|id| id != container);
        self.all.remove(container)?.linux?.resources
    }

    /// All that is left, in the order in which containers were first named.
    pub fn into_list(mut self) -> Vec<ContainerUpdate> {
        let order = std::mem::take(&mut self.order);
        let taken = order.iter().filter_map(|id| self.all.remove(id));
        taken.collect()
    }
}

#[cfg(test)]
mod tests;
