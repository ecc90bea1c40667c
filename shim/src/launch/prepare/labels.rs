// SPDX-License-Identifier: Apache-2.0
//! Labels of Linux security modules: whether this kernel has them, and where they are written.

use std::ffi::CString;

use super::{Prepare, text};
use crate::launch::report::LaunchError;
use crate::plan::ProcessPlan;

/// What the child writes to files of its own process.
#[derive(Default)]
pub(in crate::launch) struct Labels {
    /// For the program.
    pub exec: Option<CString>,
    /// Where: AppArmor's own file where there are several modules (kernel 5.8), or the shared one.
    pub exec_file: &'static std::ffi::CStr,
    /// For the session keyring.
    pub keyring: Option<CString>,
}

const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const APPARMOR_FILE: &std::ffi::CStr = c"/proc/self/attr/apparmor/exec";
const SHARED_FILE: &std::ffi::CStr = c"/proc/self/attr/exec";

pub(super) fn labels(plan: &ProcessPlan) -> Prepare<Labels> {
    if let Some(profile) = &plan.apparmor_profile {
        let enabled = std::fs::read_to_string(APPARMOR_ENABLED);
        if !enabled.is_ok_and(|text| text.starts_with('Y')) {
            return Err(missing("process.apparmorProfile", "AppArmor"));
        }
        let own = std::path::Path::new("/proc/self/attr/apparmor/exec").exists();
        return Ok(Labels {
            exec: Some(text(&format!("exec {profile}"))?),
            exec_file: if own { APPARMOR_FILE } else { SHARED_FILE },
            keyring: None,
        });
    }
    let Some(label) = &plan.selinux_label else {
        return Ok(Labels::default());
    };
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(missing("process.selinuxLabel", "SELinux"));
    }
    let label = text(label)?;
    Ok(Labels {
        exec: Some(label.clone()),
        exec_file: SHARED_FILE,
        keyring: Some(label),
    })
}

fn missing(field: &str, module: &str) -> LaunchError {
    LaunchError {
        message: format!("{field} is not supported: {module} is not enabled on this kernel"),
        ..LaunchError::prepare("", libc::EOPNOTSUPP)
    }
}
