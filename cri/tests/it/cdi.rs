// SPDX-License-Identifier: Apache-2.0
//! Devices that vendors describe, given to containers by name.

use cri::v1;

use crate::node::{self, Handle, shell, test};

const SPEC: &str = "
cdiVersion: 0.7.0
kind: vendor.test/thing
containerEdits:
  env: [THINGS=yes]
devices:
- name: one
  containerEdits:
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/null}
    mounts:
    - {hostPath: /proc/version, containerPath: /lib/thing/version, options: [rbind, ro]}
    additionalGids: [4321]
- name: two
  containerEdits:
    env: [TWO=2]
";

fn write(node: &Handle, name: &str, text: &str) {
    let dir = node.config().settings.get().cdi.spec_dirs[0].clone();
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), text).unwrap();
}

fn with_device(mut config: v1::ContainerConfig, name: &str) -> v1::ContainerConfig {
    let name = name.to_owned();
    config.cdi_devices.push(v1::CdiDevice { name });
    config
}

#[test]
fn a_container_gets_what_its_devices_need() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("devices")).await;
        let absent = with_device(shell("absent", "true"), "vendor.test/thing=one");
        let refused = node.create(&pod, absent).await.unwrap_err();
        let expected = "unresolvable CDI devices vendor.test/thing=one";
        assert!(refused.message().contains(expected), "{refused:?}");
        // No restart: the vendor has written it meanwhile.
        write(&node, "thing.yaml", SPEC);
        write(&node, "broken.json", "{");
        let command = "echo x > /dev/thing && echo wrote; echo $THINGS $TWO; id -G; \
                       grep -c Linux /lib/thing/version; echo end; sleep 1000";
        let mut config = with_device(shell("c", command), "vendor.test/thing=one");
        let (key, value) = ("cdi.k8s.io/plugin", "vendor.test/thing=two");
        config.annotations.insert(key.to_owned(), value.to_owned());
        let id = node.launch(&pod, config).await;
        let log = node.status(&id).await.log_path;
        let said = node::log_with(&log, " end\n").await;
        for line in ["wrote", "yes 2", "1"] {
            assert!(said.contains(&format!(" {line}\n")), "no {line} in {said}");
        }
        assert!(said.contains(" 4321\n"), "{said}");
        let request = v1::StatusRequest { verbose: true };
        let status = node.cri().await.status(request).await.unwrap().into_inner();
        let report = &status.info["cdi"];
        for word in ["vendor.test/thing=one", "broken.json"] {
            assert!(report.contains(word), "{report}");
        }
        let bad = with_device(shell("bad", "true"), "thing");
        let refused = node.create(&pod, bad).await.unwrap_err();
        assert!(
            refused.message().contains("invalid CDI device name"),
            "{refused:?}"
        );
    });
}
