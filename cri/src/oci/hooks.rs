// SPDX-License-Identifier: Apache-2.0
//! The hooks of a spec, and the state that they are told.

use oci_spec::runtime::{Hook, Spec};
use serde_json::json;
use shim::plan;

use super::compile::{CompileError, invalid};

pub(super) fn hooks(spec: &Spec, id: &str, bundle: &str) -> Result<plan::Hooks, CompileError> {
    let Some(all) = spec.hooks() else {
        return Ok(plan::Hooks::default());
    };
    let hooks = plan::Hooks {
        state: String::new(),
        prestart: list("prestart", all.prestart())?,
        create_runtime: list("createRuntime", all.create_runtime())?,
        create_container: list("createContainer", all.create_container())?,
        start_container: list("startContainer", all.start_container())?,
        poststart: list("poststart", all.poststart())?,
        poststop: list("poststop", all.poststop())?,
    };
    if hooks == plan::Hooks::default() {
        return Ok(hooks);
    }
    Ok(plan::Hooks {
        state: state(spec, id, bundle),
        ..hooks
    })
}

/// The container's state, as far as it does not change.
pub(super) fn state(spec: &Spec, id: &str, bundle: &str) -> String {
    let mut state = json!({"ociVersion": spec.version(), "id": id, "bundle": bundle});
    if let Some(annotations) = spec.annotations() {
        state["annotations"] = json!(annotations);
    }
    state.to_string()
}

fn list(point: &str, hooks: &Option<Vec<Hook>>) -> Result<Vec<plan::Hook>, CompileError> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks
        .map(|(index, hook)| compiled(hook, &format!("hooks.{point}[{index}]")))
        .collect()
}

fn compiled(hook: &Hook, field: &str) -> Result<plan::Hook, CompileError> {
    if !hook.path().is_absolute() {
        let reason = format!("{:?} is not absolute", hook.path());
        return Err(invalid(format!("{field}.path"), reason));
    }
    let seconds = |timeout: i64| {
        let number = u32::try_from(timeout).ok().filter(|number| *number > 0);
        number.ok_or_else(|| invalid(format!("{field}.timeout"), format!("{timeout} seconds")))
    };
    Ok(plan::Hook {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout_secs: hook.timeout().map(seconds).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(hook: serde_json::Value) -> Result<plan::Hooks, CompileError> {
        let spec = json!({"ociVersion": "1.2.0", "annotations": {"a": "b"},
            "hooks": {"poststop": [hook]}});
        hooks(
            &serde_json::from_value(spec).expect("a spec"),
            "c1",
            "/bundle",
        )
    }

    #[test]
    fn the_state_has_what_does_not_change() {
        let hooks = compiled(json!({"path": "/bin/x", "timeout": 5})).expect("compiles");
        assert_eq!(hooks.poststop[0].timeout_secs, Some(5));
        let state: serde_json::Value = serde_json::from_str(&hooks.state).expect("json");
        let expected = json!({"ociVersion": "1.2.0", "id": "c1", "bundle": "/bundle",
            "annotations": {"a": "b"}});
        assert_eq!(state, expected);
    }

    #[test]
    fn what_is_invalid_is_named() {
        for (hook, field) in [
            (json!({"path": "x"}), "hooks.poststop[0].path"),
            (
                json!({"path": "/x", "timeout": 0}),
                "hooks.poststop[0].timeout",
            ),
            (
                json!({"path": "/x", "timeout": -1}),
                "hooks.poststop[0].timeout",
            ),
        ] {
            let refused = compiled(hook).expect_err("refused").to_string();
            assert!(
                refused.starts_with(&format!("{field} is invalid")),
                "{refused}"
            );
        }
    }
}
