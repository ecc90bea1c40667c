// SPDX-License-Identifier: Apache-2.0
//! An OCI spec of anybody's making: the compiler refuses it in one clean line, or makes a plan that
//! keeps what the runtime relies on.

use cri::oci::{self, CompileContext, spec};
use oci_spec::runtime::Spec;
use shim::plan::{LaunchPlan, ProcessPlan};
use shim::protocol;

use super::input::Input;

/// A spec in which every part is there.
const WHOLE: &str = include_str!("whole.json");

/// Text that begins like JSON is a spec; anything else is changes to a whole one, or (first byte
/// odd) to the default one.
pub fn check(data: &[u8]) {
    let spec = match data.first() {
        None => return,
        Some(b'{') => serde_json::from_slice::<Spec>(data),
        Some(kind) => {
            let mut document = match kind % 2 {
                0 => serde_json::from_str(WHOLE).expect("is JSON"),
                _ => serde_json::to_value(spec::container_spec()).expect("serialises"),
            };
            Input(&data[1..]).change(&mut document);
            serde_json::from_value(document)
        }
    };
    if let Ok(spec) = spec {
        compile(&spec);
    }
}

fn compile(spec: &Spec) {
    let linux = spec.linux().as_ref();
    if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
        let _ = oci::limits(resources).map_err(|error| one_line(&error.to_string()));
    }
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    let seccomp = match profile.map(spec::oci_seccomp).transpose() {
        Ok(program) => program,
        Err(error) => return one_line(&error.to_string()),
    };
    if let Some(process) = spec.process() {
        match oci::compile_process(process, None) {
            Ok(plan) => check_process(&plan),
            Err(error) => one_line(&error.to_string()),
        }
    }
    for cgroup_v2 in [false, true] {
        let context = CompileContext {
            seccomp: seccomp.clone(),
            cgroup_v2,
            sandbox_binds: vec![("/dev/shm".into(), "/dev/shm".into())],
            does_the_rest: cgroup_v2,
            ..CompileContext::default()
        };
        match oci::compile(spec, &context) {
            Ok(plan) => check_plan(&plan, &context),
            Err(error) => one_line(&error.to_string()),
        }
    }
}

/// An error goes to a log and a terminal: text of the spec must not write there what it likes.
fn one_line(message: &str) {
    assert!(
        !message.chars().any(char::is_control),
        "control characters in {message:?}"
    );
}

fn check_plan(plan: &LaunchPlan, context: &CompileContext) {
    assert_eq!(plan.rootfs, context.rootfs, "the root is the caller's");
    assert_eq!(plan.cgroup, context.cgroup, "the cgroup is the caller's");
    for mount in &plan.mounts {
        assert!(mount.destination.starts_with('/'), "{mount:?}");
    }
    for (path, _) in &plan.sysctls {
        let below = path.starts_with("net/")
            || path.starts_with("fs/mqueue/")
            || path.starts_with("kernel/");
        assert!(below && !path.split('/').any(|part| part == ".."), "{path}");
    }
    check_process(&plan.process);
    let bytes = protocol::encode(plan).expect("a plan can be sent");
    assert_eq!(protocol::decode::<LaunchPlan>(&bytes).as_ref(), Ok(plan));
}

fn check_process(plan: &ProcessPlan) {
    assert!(plan.cwd.starts_with('/'), "{:?}", plan.cwd);
    assert!(plan.args.first().is_some_and(|program| !program.is_empty()));
    let sets = &plan.capabilities;
    assert_eq!(sets.effective & !sets.permitted, 0, "{sets:?}");
    assert_eq!(sets.ambient & !sets.permitted, 0, "{sets:?}");
    assert_eq!(sets.ambient & !sets.inheritable, 0, "{sets:?}");
    for limit in &plan.rlimits {
        assert!(limit.soft <= limit.hard, "{limit:?}");
    }
}
