// SPDX-License-Identifier: Apache-2.0
//! Foreign plugins: executables in the plugin directory, spoken to by the CNI protocol (section 2).

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::types::{PluginError, code};

/// What is kept of each output; the rest is read and dropped.
const LONGEST_OUTPUT: usize = 1 << 20;
/// How much of what a plugin printed is told in an error.
const LONGEST_QUOTE: usize = 1000;
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
    /// Where other plugins are; the first that has one counts.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Where plugins keep what they must remember.
    pub(crate) dirs: Dirs,
    /// When an executable that has not ended is killed.
    pub(crate) until: Instant,
    /// The caller drops the namespace right after this DEL, and the kernel the links in it.
    pub(crate) drops_netns: bool,
    /// What the plugin gets on its standard input.
    pub(crate) conf: Value,
}

/// Directories for plugins whose configuration does not say where.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// Of `host-local`, with a directory for each network.
    pub(crate) leases: PathBuf,
    /// Of `tuning`.
    pub(crate) tuning: PathBuf,
    /// Does nobody but podwright use them? Then what no attachment owns is left over.
    pub(crate) own: bool,
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
/// or is killed at the call's deadline, with everything that it started and that stayed with it.
pub(crate) fn run(plugin: &str, call: &Call) -> Result<Option<Value>, PluginError> {
    check_name(plugin).map_err(|e| PluginError::new(code::INVALID_CONFIG, e))?;
    let path = find(plugin, &call.bin_dirs)?;
    let search = std::env::join_paths(&call.bin_dirs)
        .map_err(|e| PluginError::new(code::INVALID_CONFIG, format!("plugin directories: {e}")))?;
    let mut command = Command::new(&path);
    command
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", &call.container_id)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_IFNAME", &call.ifname)
        .env("CNI_ARGS", &call.args)
        .env("CNI_PATH", search)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let failed = |what: &str, error: io::Error| {
        PluginError::new(code::IO, format!("{what} {}: {error}", path.display()))
    };
    let begun = Instant::now();
    let mut child = command.spawn().map_err(|e| failed("starting plugin", e))?;
    let input = call.conf.to_string();
    let outcome = converse(&mut child, input.as_bytes(), call.until);
    if !matches!(
        outcome,
        Ok(Output {
            status: Some(_),
            ..
        })
    ) {
        kill(&child);
        // Fails when it has just ended by itself; then there is nothing to do.
        let _ = child.wait();
    }
    let output = outcome.map_err(|e| failed("talking to plugin", e))?;
    judge(&path, &output, begun.elapsed())
}

/// The executable of a plugin. When there is none, the error of starting it names the place.
fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let mut places = dirs.iter().map(|dir| dir.join(plugin));
    places.find(|path| path.is_file()).ok_or_else(|| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let text = format!("no plugin {plugin} in {}", dirs.join(", "));
        PluginError::new(code::IO, text)
    })
}

/// A plugin leads a process group, so what it started goes with it.
fn kill(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // Fails when all of the group have ended.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[derive(Debug, Default)]
struct Output {
    /// None: it did not end in time.
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// What a plugin has printed, cut to a length that fits a message.
fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn judge(path: &Path, output: &Output, took: Duration) -> Result<Option<Value>, PluginError> {
    let place = path.display();
    let failed = |code: u32, msg: String| PluginError {
        code,
        msg,
        details: quote(&output.stderr),
    };
    let Some(status) = output.status else {
        let text = format!("plugin {place} did not end within {took:.1?}");
        return Err(failed(code::TRY_AGAIN, text));
    };
    if !status.success() {
        return Err(
            match serde_json::from_slice::<PluginError>(&output.stdout) {
                Ok(mut error) => {
                    if error.details.is_empty() {
                        error.details = quote(&output.stderr);
                    }
                    error
                }
                Err(_) => failed(
                    code::INTERNAL,
                    format!("plugin {place} ended with {status}"),
                ),
            },
        );
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|e| {
            let printed = quote(&output.stdout);
            let text = format!("plugin {place} printed {printed:?}, which is no result: {e}");
            failed(code::DECODING, text)
        })
}

/// Feed and read a child until it ends, or until the deadline.
fn converse(child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<Output> {
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
                kill(child);
                break None;
            }
            read_some(&mut outputs, TICK.min(deadline - now))?;
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if outputs.iter().all(|o| o.2) {
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        // What it wrote before it ended is in the pipes now.
        while !outputs.iter().all(|o| o.2) && read_some(&mut outputs, Duration::ZERO)? {}
        let [(_, stdout, _), (_, stderr, _)] = outputs;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
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
impl Call {
    /// A call for container `c1`, with everything below `dir`.
    pub(crate) fn of_test(dir: &Path, verb: &'static str, conf: Value) -> Call {
        Call {
            verb,
            container_id: "c1".into(),
            netns: "/n".into(),
            ifname: "eth0".into(),
            args: String::new(),
            bin_dirs: vec![dir.to_owned()],
            dirs: Dirs {
                leases: dir.to_owned(),
                tuning: dir.join("tuning"),
                own: true,
            },
            until: Instant::now() + Duration::from_secs(60),
            drops_netns: false,
            conf,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn run_script(script: &str, patience: Duration) -> Result<Option<Value>, PluginError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plug");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut call = Call::of_test(dir.path(), "ADD", serde_json::json!({"name": "n"}));
        call.bin_dirs.insert(0, "/nowhere".into());
        call.until = Instant::now() + patience;
        call.args = "A=b".into();
        run("plug", &call)
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn environment_and_input_reach_the_plugin() {
        let script = r#"i=$(cat); echo "{\"e\": \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\", \"i\": $i}""#;
        let out = run_script(script, PATIENCE)
            .expect("works")
            .expect("a result");
        assert_eq!(out["e"], "ADD c1 /n eth0 A=b");
        assert_eq!(out["i"]["name"], "n");
    }

    #[test]
    fn the_errors_of_a_plugin_come_through() {
        let error = run_script(
            r#"echo '{"code": 11, "msg": "later"}'; echo why >&2; exit 1"#,
            PATIENCE,
        )
        .expect_err("failed");
        assert_eq!((error.code, error.to_string().as_str()), (11, "later: why"));
        let error = run_script("echo oh >&2; exit 3", PATIENCE).expect_err("failed");
        assert!(error.msg.ends_with("ended with exit status: 3"), "{error}");
        assert_eq!(error.details, "oh");
    }

    #[test]
    fn rubbish_is_quoted_with_what_the_plugin_complained_of() {
        let error = run_script("echo 'hello there'; echo lost >&2", PATIENCE).expect_err("no JSON");
        assert_eq!(error.code, code::DECODING);
        let text = error.to_string();
        assert!(
            text.contains("printed \"hello there\"") && text.ends_with(": lost"),
            "{text}"
        );
        let long = run_script("yes | head -c 100000", PATIENCE).expect_err("no JSON");
        assert!(long.to_string().len() < 3 * LONGEST_QUOTE, "{long}");
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_what_it_started() {
        let begun = Instant::now();
        // The pipe ends when nobody holds it any more; the background sleep does, if it lives.
        let script = "echo waiting for nobody >&2; sleep 300 & sleep 300";
        let error = run_script(script, Duration::from_millis(300)).expect_err("killed");
        assert_eq!(error.code, code::TRY_AGAIN);
        let text = error.to_string();
        assert!(
            text.contains("did not end within") && text.ends_with(": waiting for nobody"),
            "{text}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named_with_the_places() {
        let call = Call::of_test(Path::new("/nowhere"), "ADD", Value::Null);
        let error = run("calico", &call).expect_err("not there");
        assert_eq!(error.msg, "no plugin calico in /nowhere");
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        for name in ["../sh", "/bin/sh", "a/b", "", "..", "."] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
