// SPDX-License-Identifier: Apache-2.0
//! A mount of type `cgroup`: what the machine's version of cgroups makes of it.

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use shim::plan::{self, MountAttrs, MountKind};
use shim::sys::mounts::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID};

use super::Mounts;
use super::words::Words;
use crate::oci::compile::CompileContext;

/// cgroup2 itself, or on v1 a tmpfs with the container's own directory of every controller bound
/// into it, so that no container sees another's.
pub(super) fn compile(
    destination: &str,
    words: &Words,
    spec: &Spec,
    context: &CompileContext,
    all: &mut Mounts,
) {
    let own_namespace = spec
        .linux()
        .iter()
        .flat_map(|linux| linux.namespaces().iter().flatten())
        .any(|space| space.typ() == LinuxNamespaceType::Cgroup);
    let attrs = words.attrs.then(words.recursive_attrs);
    let mount = |destination: String, kind: MountKind, attrs: MountAttrs| plan::Mount {
        destination,
        kind,
        attrs,
        recursive_attrs: MountAttrs::default(),
        propagation: words.propagation.clone(),
        idmap: None,
    };
    if context.cgroup_v2 {
        let own = context.cgroup.unified.clone().filter(|_| own_namespace);
        let kind = filesystem("cgroup2", words.filesystem.clone(), own);
        all.mounts.push(mount(destination.to_owned(), kind, attrs));
        return;
    }
    let defaults = MountAttrs::setting(ATTR_NOEXEC | ATTR_NOSUID | ATTR_NODEV);
    let attrs = defaults.then(attrs);
    let options = vec!["mode=755".to_owned(), "size=64k".to_owned()];
    let kind = filesystem("tmpfs", options, None);
    all.mounts.push(mount(destination.to_owned(), kind, attrs));
    // The hybrid layout has the second version beside the first.
    let unified = context.cgroup.unified.as_ref().map(|dir| (dir, "unified"));
    let v1 = context.cgroup.v1.iter().map(|dir| (dir, controller(dir)));
    for (dir, name) in v1.chain(unified) {
        let kind = MountKind::Bind {
            source: dir.clone(),
            recursive: false,
        };
        all.mounts
            .push(mount(format!("{destination}/{name}"), kind, attrs));
        for part in name.split(',').filter(|part| *part != name) {
            let link = (format!("{destination}/{part}"), name.to_owned());
            all.links.push(link);
        }
    }
}

fn filesystem(fstype: &str, options: Vec<String>, fallback: Option<String>) -> MountKind {
    MountKind::Filesystem {
        fstype: fstype.to_owned(),
        source: "cgroup".to_owned(),
        options,
        copy_up: false,
        fallback,
    }
}

/// Hierarchies are mounted side by side: `/sys/fs/cgroup/<controllers>/<path of the cgroup>`.
fn controller(dir: &str) -> &str {
    const PARTS_OF_THE_ROOT: usize = 4;
    dir.split('/').nth(PARTS_OF_THE_ROOT).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::sys::mounts::ATTR_RDONLY;

    fn compiled(context: &CompileContext) -> Mounts {
        let words = super::super::words::sort(&["ro".to_owned()]);
        let words = words.unwrap_or_else(|word| panic!("{word} is known"));
        let mut all = Mounts::default();
        let spec = crate::oci::spec::container_spec();
        compile("/sys/fs/cgroup", &words, &spec, context, &mut all);
        all
    }

    #[test]
    fn a_v1_cgroup_mount_shows_only_the_containers_directories() {
        let mut context = CompileContext::default();
        context.cgroup.v1 = vec!["/sys/fs/cgroup/cpu,cpuacct/podwright/x".into()];
        context.cgroup.unified = Some("/sys/fs/cgroup/unified/podwright/x".into());
        let all = compiled(&context);
        assert_eq!(all.mounts[1].destination, "/sys/fs/cgroup/cpu,cpuacct");
        assert_ne!(all.mounts[1].attrs.set & ATTR_RDONLY, 0);
        assert_eq!(all.mounts[2].destination, "/sys/fs/cgroup/unified");
        let link = |name: &str| (format!("/sys/fs/cgroup/{name}"), "cpu,cpuacct".to_owned());
        assert_eq!(all.links, [link("cpu"), link("cpuacct")]);
    }

    #[test]
    fn a_v2_cgroup_mount_is_one_filesystem_with_the_own_directory_to_fall_back_to() {
        let mut context = CompileContext {
            cgroup_v2: true,
            ..CompileContext::default()
        };
        context.cgroup.unified = Some("/sys/fs/cgroup/x".into());
        let all = compiled(&context);
        assert_eq!(all.mounts.len(), 1);
        assert!(matches!(&all.mounts[0].kind,
            MountKind::Filesystem { fstype, fallback: Some(own), .. }
                if fstype == "cgroup2" && own == "/sys/fs/cgroup/x"));
    }
}
