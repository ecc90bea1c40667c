// SPDX-License-Identifier: Apache-2.0
//! The last word of an exec: a `metav1.Status` on the error channel, from v4 of the protocol on.

use serde_json::{Value, json};

/// The status of a command that ended with `code`.
pub(super) fn exited(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The status of a command that could not be run or watched.
pub(super) fn failed(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

/// How protocols before v4 say it: the message of a failure, and nothing after success.
pub(super) fn text(status: &Value) -> String {
    let message = status["message"].as_str().unwrap_or_default();
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_a_cause() {
        assert_eq!(exited(0)["status"], "Success");
        assert_eq!(exited(3)["details"]["causes"][0]["message"], "3");
        assert_eq!(exited(3)["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failed("no")["code"], 500);
        assert_eq!(
            (text(&exited(0)), text(&failed("no"))),
            (String::new(), "no".to_owned())
        );
    }
}
