// SPDX-License-Identifier: Apache-2.0
//! Id-mapped mounts and root filesystems: other ids inside than on disk, and nothing changes owner.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::{Value, json};
use shim::plan::{IdMapping, IdMappings, LaunchPlan, RootFs};

use cri::oci;

use crate::pod::{Pod, container};

/// Id 1000 on disk is 101000 in the container; root stays root, who has to make mount points.
fn mappings() -> IdMappings {
    let line = |container, host, size| IdMapping {
        container,
        host,
        size,
    };
    let map = vec![line(0, 0, 1), line(1000, 101_000, 1)];
    IdMappings {
        uid: map.clone(),
        gid: map,
    }
}

fn spec_map() -> Value {
    json!([{"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1000, "hostID": 101_000, "size": 1}])
}

fn owned_file(path: &Path) {
    std::fs::write(path, "text").expect("writes");
    chown(path, Some(1000), Some(1000)).expect("changes the owner");
}

fn owner(path: &Path) -> (u32, u32) {
    let file = std::fs::metadata(path).expect("is there");
    (file.uid(), file.gid())
}

/// Starts the plan, or checks that the refusal says why: before 6.3 a tmpfs cannot be id-mapped,
/// and it is all that a machine without disk has.
async fn started(pod: &Pod, id: &str, plan: LaunchPlan) -> bool {
    match pod.shim.create(id, plan, pod.io(id)).await {
        Ok(_) => {
            pod.shim.start(id).await.expect("starts");
            assert_eq!(pod.wait(id).await.code, 0, "{}", pod.output(id));
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("this kernel cannot id-map this type of filesystem"),
                "{text}"
            );
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("reads");
            assert!(release.starts_with("6.1."), "{release}: {text}");
            false
        }
    }
}

/// Shows the owner of a file that is there, and makes another as its user.
const USER: &str = "stat -c %u:%g /data/old; touch /data/new && stat -c %u:%g /data/new";

fn as_user() -> (&'static str, Value) {
    ("/process/user", json!({"uid": 101_000, "gid": 101_000}))
}

#[tokio::test]
async fn a_bind_shows_other_ids_than_are_on_disk() {
    let pod = Pod::start().await;
    let data = pod.path("data");
    std::fs::create_dir(&data).expect("creates");
    chown(&data, Some(1000), Some(1000)).expect("changes the owner");
    owned_file(&data.join("old"));
    let mount = json!({"destination": "/data", "type": "bind", "source": data,
        "options": ["rbind"], "uidMappings": spec_map(), "gidMappings": spec_map()});
    let mut spec = container(USER, &[as_user()]);
    let mount = serde_json::from_value(mount).expect("a mount");
    spec.mounts_mut().get_or_insert_default().push(mount);
    let plan = oci::compile(&spec, &pod.context("c")).expect("compiles");
    if started(&pod, "c", plan).await {
        assert_eq!(pod.output("c"), "101000:101000\n101000:101000\n");
        assert_eq!(owner(&data.join("new")), (1000, 1000));
    }
    assert_eq!(owner(&data.join("old")), (1000, 1000));
    pod.stop().await;
}

/// The copy is made by the container's process, the ids are given by its parent.
#[tokio::test]
async fn a_bind_of_the_containers_own_tree_is_mapped_in_a_user_namespace() {
    let pod = Pod::start().await;
    let data = pod.path("data");
    std::fs::create_dir(&data).expect("creates");
    owned_file(&data.join("old"));
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let show =
        "stat -c %u:%g /plain/old /mapped/old; touch /mapped/new && stat -c %u:%g /mapped/new";
    let mut spec = container(
        show,
        &[
            ("/linux/uidMappings", ids.clone()),
            ("/linux/gidMappings", ids),
        ],
    );
    let mut space = oci_spec::runtime::LinuxNamespace::default();
    space.set_typ(oci_spec::runtime::LinuxNamespaceType::User);
    let linux = spec.linux_mut().as_mut().expect("linux");
    linux.namespaces_mut().get_or_insert_default().push(space);
    for mount in [
        json!({"destination": "/plain", "type": "bind", "source": data, "options": ["rbind"]}),
        json!({"destination": "/mapped", "type": "bind", "source": pod.rootfs().join("plain"),
            "options": ["rbind", "idmap"]}),
    ] {
        let mount = serde_json::from_value(mount).expect("a mount");
        spec.mounts_mut().get_or_insert_default().push(mount);
    }
    let mut context = pod.context("c");
    context.rootfs = RootFs::Dir(pod.rootfs().to_string_lossy().into_owned());
    context.idmapped_rootfs = true;
    let plan = oci::compile(&spec, &context).expect("compiles");
    if started(&pod, "c", plan).await {
        assert_eq!(pod.output("c"), "65534:65534\n1000:1000\n0:0\n");
        assert_eq!(owner(&data.join("new")), (0, 0));
    }
    assert_eq!(owner(&data.join("old")), (1000, 1000));
    pod.stop().await;
}

#[tokio::test]
async fn all_layers_of_a_root_are_mapped_and_none_changes_owner() {
    for overlay in [true, false] {
        let pod = Pod::start().await;
        let data = pod.rootfs().join("data");
        std::fs::create_dir(&data).expect("creates");
        chown(&data, Some(1000), Some(1000)).expect("changes the owner");
        owned_file(&data.join("old"));
        let mut context = pod.context("c");
        if !overlay {
            context.rootfs = RootFs::Dir(pod.rootfs().to_string_lossy().into_owned());
        }
        let spec = container(USER, &[as_user()]);
        let mut plan = oci::compile(&spec, &context).expect("compiles");
        plan.rootfs_idmap = Some(mappings());
        if started(&pod, "c", plan).await {
            assert_eq!(pod.output("c"), "101000:101000\n101000:101000\n");
            let written = match overlay {
                true => pod.path("c-upper/data"),
                false => data.clone(),
            };
            assert_eq!(owner(&written), (1000, 1000));
            assert_eq!(owner(&written.join("new")), (1000, 1000));
        }
        assert_eq!(owner(&data.join("old")), (1000, 1000));
        pod.stop().await;
    }
}

#[tokio::test]
async fn the_words_alone_take_the_containers_maps_and_need_a_bind() {
    for (mount, expected) in [
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
            "id-mapped mounts are only supported for bind-mounts",
        ),
        (
            json!({"destination": "/x", "source": "/tmp", "options": ["bind", "ridmap"]}),
            "must have both uid and gid mappings",
        ),
    ] {
        let spec = container("true", &[("/mounts", json!([mount]))]);
        let refused = oci::compile(&spec, &oci::CompileContext::default());
        let refused = refused.expect_err("refused").to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
