// SPDX-License-Identifier: Apache-2.0
//! Messages, for a person at stderr or for the caller that reads the file of `--log`.

use std::io::Write;
use std::path::PathBuf;

use shim::plan::ProcessPlan;

use super::args::{Global, LogFormat};

#[derive(Debug)]
pub(super) struct Log {
    path: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    pub(super) fn new(global: &Global) -> Log {
        Log {
            path: global.log.clone(),
            format: global.log_format,
            debug: global.debug,
        }
    }

    /// A failure. As with runc, stderr gets it too: containerd and podman read the file, people don't.
    pub(super) fn error(&self, message: &str) {
        self.write("error", message);
        if self.path.is_some() {
            say(message);
        }
    }

    pub(super) fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    pub(super) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write("debug", &message());
        }
    }

    /// What a new process gets that it cannot show itself.
    pub(super) fn launching(&self, process: &ProcessPlan) {
        if let Some(filter) = &process.seccomp {
            let listener = match filter.listener {
                Some(_) => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                None => 0,
            };
            let flags = libc::c_ulong::from(filter.flags) | listener;
            self.debug(|| format!("seccomp filter flags: {flags}"));
        }
        self.debug(|| "launching".to_owned());
    }

    /// The file is opened for each message: most commands have none.
    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.path else {
            return match (self.format, level) {
                // Who asked for debugging is a program as likely as a person.
                (LogFormat::Text, "error" | "warning") => say(message),
                // Nothing can be done if the stream is closed.
                _ => {
                    let _ = write!(std::io::stderr(), "{}", self.line(level, message));
                }
            };
        };
        let mut options = std::fs::OpenOptions::new();
        let file = options.append(true).create(true).open(path);
        // A log that cannot be written must not hide the message itself.
        if file
            .and_then(|mut file| file.write_all(self.line(level, message).as_bytes()))
            .is_err()
            && level != "error"
        {
            say(message);
        }
    }

    fn line(&self, level: &str, message: &str) -> String {
        let time = jiff::Timestamp::now();
        match self.format {
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
            LogFormat::Json => {
                let line =
                    serde_json::json!({"level": level, "msg": message, "time": time.to_string()});
                format!("{line}\n")
            }
        }
    }
}

fn say(message: &str) {
    let message = shim::launch::plain(message);
    // Nothing can be done if the stream is closed.
    let _ = writeln!(std::io::stderr(), "podwright oci: {message}");
}
