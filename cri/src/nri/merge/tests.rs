// SPDX-License-Identifier: Apache-2.0
//! What several plugins say together, and what they may not.

use super::*;
use crate::nri::api::{
    KeyValue, LinuxContainerUpdate, LinuxCpu, LinuxMemory, LinuxNamespace, Mount, OptionalInt64,
    OptionalUInt64,
};

fn creation() -> Creation {
    Creation::new(Container {
        id: "c".into(),
        env: vec!["A=1".into(), "B=2".into()],
        annotations: [("x".to_owned(), "1".to_owned())].into(),
        mounts: vec![mount("/m", "/old")],
        args: vec!["run".into()],
        ..Container::default()
    })
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: source.into(),
        ..Mount::default()
    }
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn adjust(creation: &mut Creation, plugin: &str, said: ContainerAdjustment) -> Result<(), String> {
    creation
        .apply(Some(said), Vec::new(), plugin)
        .map_err(|e| e.to_string())
}

#[test]
fn the_next_plugin_sees_what_the_former_did() {
    let mut all = creation();
    let said = ContainerAdjustment {
        env: vec![env("A", "9"), env("-B", ""), env("C", "3")],
        annotations: [("-x".to_owned(), String::new()), ("y".into(), "2".into())].into(),
        mounts: vec![mount("/m", "/new"), mount("/n", "/n")],
        args: vec!["other".into()],
        ..ContainerAdjustment::default()
    };
    adjust(&mut all, "00-a", said).unwrap();
    assert_eq!(all.container.env, ["A=9", "C=3"]);
    assert_eq!(
        all.container.annotations,
        [("y".to_owned(), "2".to_owned())].into()
    );
    let sources: Vec<_> = all
        .container
        .mounts
        .iter()
        .map(|m| m.source.as_str())
        .collect();
    assert_eq!(sources, ["/new", "/n"]);
    assert_eq!(all.container.args, ["other"]);
    let keys: Vec<_> = all.adjust.env.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["-B", "A", "C"]);
    assert_eq!(
        all.adjust.annotations.keys().collect::<Vec<_>>(),
        ["-x", "y"]
    );
}

#[test]
fn two_plugins_may_not_set_the_same() {
    let with = |said: fn(&mut ContainerAdjustment)| {
        let mut adjustment = ContainerAdjustment::default();
        said(&mut adjustment);
        adjustment
    };
    let cases = [
        (with(|a| a.env = vec![env("C", "1")]), "Env C"),
        (with(|a| a.args = vec!["x".into()]), "Args"),
        (with(|a| a.mounts = vec![mount("/z", "/z")]), "Mounts /z"),
        (
            with(|a| a.annotations = [("k".to_owned(), "v".to_owned())].into()),
            "Annotations k",
        ),
        (
            with(|a| a.linux.get_or_insert_default().cgroups_path = "/p".into()),
            "CgroupsPath",
        ),
        (
            with(|a| {
                let linux = a.linux.get_or_insert_default();
                let cpu = LinuxCpu {
                    cpus: "0".into(),
                    ..LinuxCpu::default()
                };
                linux.resources.get_or_insert_default().cpu = Some(cpu);
            }),
            "CPUSetCPUs",
        ),
        (
            with(|a| {
                let namespace = LinuxNamespace {
                    r#type: "-ipc".into(),
                    path: String::new(),
                };
                a.linux.get_or_insert_default().namespaces = vec![namespace];
            }),
            "Namespace ipc",
        ),
    ];
    for (said, field) in cases {
        let mut all = creation();
        adjust(&mut all, "00-a", said.clone()).unwrap();
        let error = adjust(&mut all, "10-b", said).unwrap_err();
        let expected = format!("plugins \"10-b\" and \"00-a\" both tried to set {field}");
        assert_eq!(error, expected);
    }
}

#[test]
fn a_plugin_that_removes_what_another_set_may_replace_it() {
    let mut all = creation();
    let said = |entries: Vec<KeyValue>| ContainerAdjustment {
        env: entries,
        ..ContainerAdjustment::default()
    };
    adjust(&mut all, "00-a", said(vec![env("C", "1")])).unwrap();
    adjust(&mut all, "10-b", said(vec![env("-C", ""), env("C", "2")])).unwrap();
    assert_eq!(all.adjust.env, [env("C", "2")]);
    assert_eq!(all.container.env, ["A=1", "B=2", "C=2"]);
    assert!(adjust(&mut all, "20-c", said(vec![env("C", "3")])).is_err());
}

#[test]
fn hooks_of_all_plugins_add_up() {
    let mut all = creation();
    let hook = |path: &str| crate::nri::api::Hook {
        path: path.into(),
        ..Default::default()
    };
    for (plugin, path) in [("00-a", "/one"), ("10-b", "/two")] {
        let said = ContainerAdjustment {
            hooks: Some(Hooks {
                poststop: vec![hook(path)],
                ..Hooks::default()
            }),
            ..ContainerAdjustment::default()
        };
        adjust(&mut all, plugin, said).unwrap();
    }
    let hooks = all.adjust.hooks.unwrap();
    assert_eq!(hooks.poststop, [hook("/one"), hook("/two")]);
}

fn limit(container: &str, bytes: i64) -> ContainerUpdate {
    ContainerUpdate {
        container_id: container.into(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources {
                memory: Some(LinuxMemory {
                    limit: Some(OptionalInt64 { value: bytes }),
                    ..LinuxMemory::default()
                }),
                ..LinuxResources::default()
            }),
        }),
        ignore_failure: false,
    }
}

#[test]
fn updates_of_others_are_collected_and_the_new_one_is_off_limits() {
    let mut all = creation();
    all.apply(None, vec![limit("d", 1), limit("e", 2)], "00-a")
        .unwrap();
    let error = all.apply(None, vec![limit("c", 1)], "10-b").unwrap_err();
    assert_eq!(
        error.to_string(),
        "plugin \"10-b\" asked update of \"c\" during creation"
    );
    assert!(all.apply(None, vec![limit("d", 5)], "10-b").is_err());
    let mut mild = limit("d", 5);
    mild.ignore_failure = true;
    all.apply(None, vec![mild], "10-b").unwrap();
    assert_eq!(all.updates.into_list(), [limit("d", 1), limit("e", 2)]);
}

#[test]
fn an_updated_request_starts_from_what_the_client_wants() {
    let shares = |value| LinuxResources {
        cpu: Some(LinuxCpu {
            shares: Some(OptionalUInt64 { value }),
            ..LinuxCpu::default()
        }),
        ..LinuxResources::default()
    };
    let mut updates = Updates::of_request("c", shares(7));
    let mut owners = Owners::default();
    updates
        .apply(vec![limit("c", 100), limit("d", 1)], "00-a", &mut owners)
        .unwrap();
    let own = updates.take("c").unwrap();
    assert_eq!(own.cpu, shares(7).cpu);
    assert_eq!(own.memory.unwrap().limit.unwrap().value, 100);
    assert_eq!(updates.into_list(), [limit("d", 1)]);
}

#[test]
fn rdt_can_be_removed_and_set_anew() {
    use crate::nri::api::OptionalString;
    let mut all = creation();
    let said = |rdt: LinuxRdt| ContainerAdjustment {
        linux: Some(LinuxContainerAdjustment {
            rdt: Some(rdt),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let class = |name: &str, remove| LinuxRdt {
        clos_id: Some(OptionalString { value: name.into() }),
        remove,
        ..LinuxRdt::default()
    };
    adjust(&mut all, "00-a", said(class("gold", false))).unwrap();
    assert!(adjust(&mut all.clone(), "10-b", said(class("tin", false))).is_err());
    adjust(&mut all, "10-b", said(class("tin", true))).unwrap();
    assert_eq!(all.adjust.linux.unwrap().rdt.unwrap(), class("tin", true));
}
