// SPDX-License-Identifier: Apache-2.0
//! A wire that several test hosts hang on.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::host::{command_beside, stdout_of};
use crate::{TestHost, sys};

/// A network namespace with a bridge. It is the hosts' router: 192.0.2.1 and 2001:db8::1.
pub struct TestNet {
    holder: Child,
}

impl TestNet {
    pub fn new() -> Result<Self> {
        let mut holder = Command::new("sleep");
        holder.arg("infinity").stdin(Stdio::null());
        let holder = sys::in_new_namespaces(&mut holder)
            .spawn()
            .context("starting the process that holds a test network; this needs root")?;
        let net = Self { holder };
        net.sh("ip link set lo up && ip link add lan0 type bridge \
             && ip addr add 192.0.2.1/24 dev lan0 && ip addr add 2001:db8::1/64 dev lan0 nodad \
             && ip link set lan0 up")?;
        Ok(net)
    }

    /// Runs a shell script on the wire's own host.
    pub fn sh(&self, script: &str) -> Result<String> {
        stdout_of(command_beside(&self.holder, "sh").args(["-ec", script]))
    }

    /// A host with addresses 192.0.2.`number` and 2001:db8::`number`, `number` in decimal in both.
    /// Its node uses the second one only when `dual`.
    pub fn host(&self, number: u8, dual: bool) -> Result<TestHost> {
        let (v4, v6) = (format!("192.0.2.{number}"), format!("2001:db8::{number}"));
        let node_ip = if dual {
            format!("{v4},{v6}")
        } else {
            v4.clone()
        };
        let host = TestHost::bare(&node_ip)?;
        self.sh(&format!(
            "ip link add port{number} type veth peer name uplink0 netns {} \
             && ip link set port{number} master lan0 up",
            host.holder()
        ))?;
        host.sh(&format!(
            "ip addr add {v4}/24 dev uplink0 && ip addr add {v6}/64 dev uplink0 nodad \
             && ip link set uplink0 up \
             && ip route add default via 192.0.2.1 && ip -6 route add default via 2001:db8::1"
        ))?;
        Ok(host)
    }
}

impl Drop for TestNet {
    fn drop(&mut self) {
        // Already gone is as good as ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
