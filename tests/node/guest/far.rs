// SPDX-License-Identifier: Apache-2.0
//! The other guest, as the first one drives it: a shell that it serves on the wire between them, which
//! is nobody else's.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{TestHost, wait_for};
use vm::Place;

/// What the other guest runs until it is told that all is over.
pub(super) const SCRIPT: &str = "mkfifo /root/end
nc -ll -p 1022 -e sh &
read -r _ </root/end
";

pub(super) const NAME: &str = "far";

/// Generous: an emulated guest boots, or a node starts.
const PATIENCE: Duration = Duration::from_secs(120);

/// The node of the other guest, in the places that a node has when nothing else is said.
pub(super) struct Far {
    place: Place,
    /// As `--node-ip` takes them.
    pub(super) node_ip: String,
}

impl Far {
    /// Waits until the other guest answers.
    pub(super) fn find(place: Place) -> Result<Self> {
        let node_ip = format!("{},{}", place.ipv4(), place.ipv6());
        let far = Self { place, node_ip };
        wait_for("the other guest answers", PATIENCE, || {
            far.sh("true").map_err(|error| format!("{error:#}"))
        })?;
        Ok(far)
    }

    /// Runs a shell script there; an error has its output.
    pub(super) fn sh(&self, script: &str) -> Result<String> {
        let mut stream = TcpStream::connect((self.place.ipv4(), 1022))
            .context("connecting to the other guest")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Read as a whole before it runs, so that nothing in it can read the rest of it.
        let script = format!("(set -e\n{script}\n) </dev/null 2>&1\necho \"exit $?\"\n");
        stream.write_all(script.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut said = String::new();
        let read = stream.read_to_string(&mut said);
        read.with_context(|| format!("the other guest's answer to {script}, so far {said:?}"))?;
        let output = said.strip_suffix("exit 0\n");
        let output = output.with_context(|| format!("in the other guest, {script}said {said}"))?;
        Ok(output.to_owned())
    }

    /// The image that pods run, out of what the guest itself runs.
    pub(super) fn busybox_image(&self) -> Result<()> {
        self.sh("mkdir -p image/etc image/tmp image/www
cp -a /bin image/
cp /etc/passwd /etc/group image/etc/
podwright image build --name localhost/busybox:1 --cmd sh image
rm -r image")?;
        Ok(())
    }

    /// Puts credentials there that the authority of `server` signs.
    pub(super) fn credentials(&self, server: &TestHost) -> Result<()> {
        let files = server.credentials(&server.path().join(NAME), NAME, &self.node_ip)?;
        for (name, file) in [
            ("kubeconfig", files.kubelet_kubeconfig),
            ("serving.crt", files.kubelet_cert),
            ("serving.key", files.kubelet_key),
        ] {
            let text = std::fs::read_to_string(&file)?;
            ensure!(!text.contains("\nEND\n"), "{}", file.display());
            self.sh(&format!("cat >/root/{name} <<'END'\n{text}\nEND"))?;
        }
        Ok(())
    }

    /// Starts the node with the flags of `near`; its log goes to a file there.
    pub(super) fn start(&self, near: &TestHost) -> Result<()> {
        let flags = [near.flags.clone(), near.cluster_flags.clone()].concat();
        self.sh(&format!(
            "podwright agent --kubeconfig /root/kubeconfig --tls-cert-file /root/serving.crt \
             --tls-private-key-file /root/serving.key {} >>/root/agent.log 2>&1 &\n\
             echo $! >/root/agent.pid",
            self.flags(&flags)
        ))?;
        Ok(())
    }

    /// Sends a signal to the node and waits until it is gone.
    pub(super) fn end(&self, signal: &str) -> Result<()> {
        self.sh(&format!(
            "pid=$(cat /root/agent.pid)\nkill -{signal} $pid\n\
             while [ -e /proc/$pid ]; do sleep 0.1; done"
        ))?;
        Ok(())
    }

    pub(super) fn purge(&self, flags: &[String]) -> Result<()> {
        self.sh(&format!("podwright purge {}", self.flags(flags)))?;
        Ok(())
    }

    fn flags(&self, flags: &[String]) -> String {
        format!(
            "--node-name {NAME} --node-ip {} --eviction-hard 'memory.available<1Mi' {}",
            self.node_ip,
            flags.join(" ")
        )
    }

    /// What the node wrote last, for a failure.
    pub(super) fn log_tail(&self) -> String {
        self.sh("tail -n 40 /root/agent.log")
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    /// The other guest powers off. Its answer may not arrive any more, so none is waited for.
    pub(super) fn over(&self) -> Result<()> {
        let mut stream = TcpStream::connect((self.place.ipv4(), 1022))?;
        Ok(stream.write_all(b"echo over >/root/end\n")?)
    }
}
