// SPDX-License-Identifier: Apache-2.0
//! Foreign plugins: executables in the plugin directory, spoken to by the CNI protocol (section 2).

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::types::{PluginError, code};

/// A plugin may wait for a DHCP server or an API; after this it is killed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// What is kept of each output; the rest is read and dropped.
const LONGEST_OUTPUT: usize = 1 << 20;
/// How often an ended child with pipes held open by its children is looked for.
const TICK: Duration = Duration::from_millis(20);

/// One call of a plugin.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// `ADD`, `DEL`, `CHECK`, `GC`, `STATUS`, `VERSION`.
    pub(crate) verb: &'static str,
    pub(crate) container_id: String,
    /// Empty: none.
    pub(crate) netns: PathBuf,
    pub(crate) ifname: String,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// Where other plugins are.
    pub(crate) bin_dir: PathBuf,
    /// Where `host-local` keeps leases when the configuration does not say.
    pub(crate) lease_dir: PathBuf,
    /// The caller drops the namespace right after this DEL, and the kernel the links in it.
    pub(crate) drops_netns: bool,
    /// What the plugin gets on its standard input.
    pub(crate) conf: Value,
}

/// A plugin's name must not lead out of the plugin directory (CVE-2021-20206).
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if crate::conf::is_name(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a plugin name: it may have only letters, digits, '_', '.', '-'"
    ))
}

/// Run an executable plugin, and return the result that it printed, if any. Blocks until it ends
/// or is killed at the deadline.
pub(crate) fn run(
    plugin: &str,
    call: &Call,
    deadline: Duration,
) -> Result<Option<Value>, PluginError> {
    check_name(plugin).map_err(|e| PluginError::new(code::INVALID_CONFIG, e))?;
    let path = call.bin_dir.join(plugin);
    let mut command = Command::new(&path);
    command
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", &call.container_id)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_IFNAME", &call.ifname)
        .env("CNI_ARGS", &call.args)
        .env("CNI_PATH", &call.bin_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let failed = |what: &str, error: io::Error| {
        PluginError::new(code::IO, format!("{what} {}: {error}", path.display()))
    };
    let mut child = command.spawn().map_err(|e| failed("starting plugin", e))?;
    let input = call.conf.to_string();
    let outcome = converse(&mut child, input.as_bytes(), Instant::now() + deadline);
    if !matches!(outcome, Ok(Some(_))) {
        // Both may fail when it has just ended by itself; then there is nothing to do.
        let _ = child.kill();
        let _ = child.wait();
    }
    let ended = outcome.map_err(|e| failed("talking to plugin", e))?;
    let Some(output) = ended else {
        let text = format!("plugin {} did not end within {deadline:?}", path.display());
        return Err(PluginError::new(code::TRY_AGAIN, text));
    };
    judge(&path, output)
}

struct Output {
    success: bool,
    status: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn judge(path: &Path, output: Output) -> Result<Option<Value>, PluginError> {
    let decode = |what: &str, e: serde_json::Error| {
        PluginError::new(code::DECODING, format!("{what} of {}: {e}", path.display()))
    };
    if !output.success {
        if let Ok(error) = serde_json::from_slice::<PluginError>(&output.stdout) {
            return Err(error);
        }
        return Err(PluginError {
            code: code::INTERNAL,
            msg: format!("plugin {} ended with {}", path.display(), output.status),
            details: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|e| decode("result", e))
}

/// Feed and read a child until it ends; `None` when the deadline passes first.
fn converse(child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<Option<Output>> {
    let mut stdin = child.stdin.take().expect("piped");
    let mut outputs = [
        (
            Pipe::Out(child.stdout.take().expect("piped")),
            Vec::new(),
            false,
        ),
        (
            Pipe::Err(child.stderr.take().expect("piped")),
            Vec::new(),
            false,
        ),
    ];
    std::thread::scope(|scope| {
        // A plugin that does not read must not block us. When the child is gone so is the pipe's
        // reader, and the write fails: that thread cannot stay behind.
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        let status = loop {
            let now = Instant::now();
            if now >= deadline {
                let _ = child.kill();
                return Ok(None);
            }
            read_some(&mut outputs, TICK.min(deadline - now))?;
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if outputs.iter().all(|o| o.2) {
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        // What it wrote before it ended is in the pipes now.
        while !outputs.iter().all(|o| o.2) && read_some(&mut outputs, Duration::ZERO)? {}
        let [(_, stdout, _), (_, stderr, _)] = outputs;
        Ok(Some(Output {
            success: status.success(),
            status: status.to_string(),
            stdout,
            stderr,
        }))
    })
}

enum Pipe {
    Out(std::process::ChildStdout),
    Err(std::process::ChildStderr),
}

impl Pipe {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Pipe::Out(pipe) => pipe.as_fd(),
            Pipe::Err(pipe) => pipe.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Pipe::Out(pipe) => pipe.read(buffer),
            Pipe::Err(pipe) => pipe.read(buffer),
        }
    }
}

/// Wait for output, and take what is there. False: nothing came.
fn read_some(outputs: &mut [(Pipe, Vec<u8>, bool); 2], wait: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    let ready = ready(outputs, timeout)?;
    let mut buffer = [0; 8192];
    for index in &ready {
        let (pipe, kept, ended) = &mut outputs[*index];
        let length = pipe.read(&mut buffer)?;
        *ended = length == 0;
        let room = LONGEST_OUTPUT.saturating_sub(kept.len()).min(length);
        kept.extend(&buffer[..room]);
    }
    Ok(!ready.is_empty())
}

/// Which outputs can be read now, or have ended.
fn ready(outputs: &[(Pipe, Vec<u8>, bool); 2], timeout: PollTimeout) -> io::Result<Vec<usize>> {
    let open: Vec<usize> = (0..outputs.len()).filter(|i| !outputs[*i].2).collect();
    if open.is_empty() {
        return Ok(open);
    }
    let mut fds: Vec<PollFd<'_>> = open
        .iter()
        .map(|i| PollFd::new(outputs[*i].0.fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let readable = |(_, fd): &(usize, PollFd<'_>)| fd.any() == Some(true);
    Ok(open
        .into_iter()
        .zip(fds)
        .filter(readable)
        .map(|(i, _)| i)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn call(dir: &Path, script: &str) -> Call {
        let path = dir.join("plug");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        Call {
            verb: "ADD",
            container_id: "c1".into(),
            netns: "/n".into(),
            ifname: "eth0".into(),
            args: "A=b".into(),
            bin_dir: dir.to_owned(),
            lease_dir: dir.to_owned(),
            drops_netns: false,
            conf: serde_json::json!({"name": "n"}),
        }
    }

    fn run_script(script: &str, deadline: Duration) -> Result<Option<Value>, PluginError> {
        let dir = tempfile::tempdir().expect("a directory");
        run("plug", &call(dir.path(), script), deadline)
    }

    #[test]
    fn environment_and_input_reach_the_plugin() {
        let script = r#"read -r i; echo "{\"e\": \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\", \"i\": $i}""#;
        let script = format!("i=$(cat); {}", script.trim_start_matches("read -r i; "));
        let out = run_script(&script, DEADLINE)
            .expect("works")
            .expect("a result");
        assert_eq!(out["e"], "ADD c1 /n eth0 A=b");
        assert_eq!(out["i"]["name"], "n");
    }

    #[test]
    fn the_errors_of_a_plugin_come_through() {
        let error = run_script(r#"echo '{"code": 11, "msg": "later"}'; exit 1"#, DEADLINE)
            .expect_err("failed");
        assert_eq!((error.code, error.msg.as_str()), (11, "later"));
        let error = run_script("echo oh >&2; exit 3", DEADLINE).expect_err("failed");
        assert!(error.msg.ends_with("ended with exit status: 3"), "{error}");
        assert_eq!(error.details, "oh");
        let error = run_script("echo '{'", DEADLINE).expect_err("not JSON");
        assert_eq!(error.code, code::DECODING);
    }

    #[test]
    fn a_plugin_that_hangs_is_killed() {
        let begun = Instant::now();
        let error = run_script("exec sleep 30", Duration::from_millis(100)).expect_err("killed");
        assert_eq!(error.code, code::TRY_AGAIN);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        for name in ["../sh", "/bin/sh", "a/b", "", "..", "."] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
