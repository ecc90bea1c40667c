// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward with a stock kubectl, through the API server and the kubelet: as it
//! speaks today (WebSocket), and as older ones do (SPDY/3.1).

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{TestHost, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// What makes kubectl speak SPDY.
const OLD: [(&str, &str); 2] = [
    ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"),
    ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"),
];
/// Bytes that are piped through `cat`. kubectl takes them in pieces.
const PIPED: usize = 8 << 20;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: talker
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:1
    stdin: true
    command:
    - sh
    - -c
    - |
      mkdir -p /www; for n in 1 2 3 4 5 6 7 8; do echo page $n > /www/$n; done
      busybox httpd -p 127.0.0.1:8080 -h /www; busybox httpd -p '[::1]:8081' -h /www
      while read line; do echo got $line; done; sleep 1000
"#;

fn kubectl(host: &TestHost, old: bool, args: &[&str]) -> Command {
    let mut command = host.kubectl(args);
    if old {
        command.envs(OLD);
    }
    command
}

#[test]
fn a_stock_kubectl_streams_as_it_does_today_and_as_older_ones_do() -> Result<()> {
    let host = TestHost::new()?;
    host.busybox_image()?;
    let server = host.server()?;
    host.apply(POD)?;
    host.wait_pod_ready("talker")?;
    for old in [false, true] {
        runs(&host, old).with_context(|| format!("exec, old: {old}"))?;
        pipes(&host, old).with_context(|| format!("exec -i, old: {old}"))?;
        attaches(&host, old).with_context(|| format!("attach, old: {old}"))?;
        forwards(&host, old).with_context(|| format!("port-forward, old: {old}"))?;
    }
    host.kubectl_ok(&["delete", "pod", "talker", "--timeout=60s"])?;
    server.stop()?;
    host.down()
}

fn runs(host: &TestHost, old: bool) -> Result<()> {
    let script = "echo out; echo err >&2; exit 7";
    let output = kubectl(host, old, &["exec", "talker", "--", "sh", "-c", script]).output()?;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"out\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.starts_with("err\n"), "{errors}");
    let none = kubectl(host, old, &["exec", "talker", "--", "/no/such/program"]).output()?;
    assert!(!none.status.success());
    let errors = String::from_utf8_lossy(&none.stderr);
    assert!(errors.contains("no/such/program"), "{errors}");
    // A terminal of kubectl's own, of a known size.
    let exec =
        "stty rows 31 cols 117; exec kubectl exec -it talker -- sh -c 'sleep 0.5; stty size'";
    let mut terminal = host.command("script");
    terminal.args(["-qec", exec, "/dev/null"]);
    terminal
        .env("KUBECONFIG", host.kubeconfig())
        .env("HOME", host.path());
    if old {
        terminal.envs(OLD);
    }
    let output = terminal.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("31 117"),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// As `kubectl cp` does: much goes in, and its end is heard.
fn pipes(host: &TestHost, old: bool) -> Result<()> {
    let data: Vec<u8> = (0..PIPED as u32 / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let mut child = kubectl(host, old, &["exec", "-i", "talker", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let sent = data.clone();
    let sending = std::thread::spawn(move || stdin.write_all(&sent));
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .context("stdout")?
        .read_to_end(&mut received)?;
    sending
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(child.wait()?.success(), "kubectl failed");
    ensure!(
        received == data,
        "{} of {} bytes came back",
        received.len(),
        data.len()
    );
    Ok(())
}

fn attaches(host: &TestHost, old: bool) -> Result<()> {
    let mut child = kubectl(host, old, &["attach", "-i", "talker"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let word = if old { "older" } else { "newer" };
    writeln!(stdin, "{word}")?;
    let line = lines.next().context("a line")??;
    assert_eq!(line, format!("got {word}"));
    end(child)
}

fn forwards(host: &TestHost, old: bool) -> Result<()> {
    let ports = ["port-forward", "pod/talker", "18080:8080", "18081:8081"];
    let mut child = kubectl(host, old, &ports)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    for _ in 0..2 {
        let line = lines.next().context("kubectl says what it forwards")??;
        ensure!(line.starts_with("Forwarding from"), "{line}");
    }
    // Both ports, many connections at once.
    let fetch = "for n in 1 2 3 4 5 6 7 8; do for port in 18080 18081; do \
        timeout 20 busybox wget -qO- http://127.0.0.1:$port/$n & done; done; wait";
    let pages = wait_for("the pages", PATIENCE, || {
        host.sh(fetch).map_err(|e| format!("{e:#}"))
    })?;
    let mut pages: Vec<&str> = pages.lines().collect();
    pages.sort_unstable();
    let expected: Vec<String> = (1..=8)
        .flat_map(|n| [format!("page {n}"), format!("page {n}")])
        .collect();
    assert_eq!(pages, expected);
    end(child)
}

/// kubectl goes away in the middle. Not by SIGINT: one that is started in the background ignores it.
fn end(mut child: Child) -> Result<()> {
    let pid = i32::try_from(child.id())?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    wait_until("kubectl ends", PATIENCE, || {
        matches!(child.try_wait(), Ok(Some(_)))
    })
}
