// SPDX-License-Identifier: Apache-2.0
//! Pods come and go at random, and whoever attaches or detaches them is killed at random. Afterwards
//! nothing is left of any of them: no link, route, lease, record, rule, element or tracked connection.
//!
//! `PODWRIGHT_CHURN_PODS=1000` makes it as long as the issue wants; the seed is printed, and
//! `PODWRIGHT_CHURN_SEED` repeats a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cni::netns;

use crate::executables::executable;
use crate::host::{Host, inside, report};
use crate::place::{in_new_host, run};

/// Few enough for a short test; the order of steps differs from run to run.
const PODS: usize = 60;
/// Pods at one time.
const LIVING: usize = 12;
/// So often somebody collects what is lost.
const STEPS_PER_GC: usize = 15;

/// Numbers that look random (an xorshift generator), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn is(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

struct Churn<'a> {
    host: &'a Host,
    dice: Dice,
    /// How long an ADD takes here, when nobody disturbs it.
    usual: Duration,
    /// Attached, as far as somebody was told.
    living: Vec<String>,
    kills: usize,
}

impl Churn<'_> {
    fn path(&self, id: &str) -> PathBuf {
        self.host.attachment(id, &[]).netns
    }

    /// Run the executable; killed in the middle when the dice say so. True: it came to its end.
    fn execute(&mut self, verb: &str, id: &str, port: usize, kill: u64) -> bool {
        let dir = self.host.dir.path();
        let mut child = Command::new(executable())
            .arg(verb)
            .arg(dir.join("conf"))
            .arg(dir.join("state"))
            .arg(id)
            .arg(self.path(id))
            .arg(port.to_string())
            .spawn()
            .expect("spawn");
        if !self.dice.is(kill) {
            assert!(child.wait().expect("wait").success(), "{verb} {id}");
            return true;
        }
        let share = u32::try_from(self.dice.roll(100)).expect("small");
        std::thread::sleep(self.usual * share / 100);
        child.kill().expect("kill");
        self.kills += 1;
        child.wait().expect("wait").success()
    }

    fn begin(&mut self, index: usize) {
        let id = format!("pod{index}");
        netns::create(&self.path(&id)).expect("netns");
        if self.execute("add", &id, port(index), 35) {
            self.talk(&id, index);
            self.living.push(id);
            return;
        }
        // The runtime was killed, so somebody cleans up later; or tries again with a new sandbox.
        if self.dice.is(50) {
            self.drop_netns(&id);
        }
    }

    /// Leave tracked connections behind: out of the pod, and into it by its host port.
    fn talk(&mut self, id: &str, index: usize) {
        let datagram = |to: &str| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
            // Whether anybody takes it does not matter.
            let _ = socket.send_to(b"x", to);
        };
        inside(&self.path(id), || datagram("192.0.2.2:9"));
        datagram(&format!("192.0.2.1:{}", port(index)));
    }

    fn end(&mut self) {
        let at = self.dice.roll(self.living.len() as u64);
        let id = self.living.swap_remove(usize::try_from(at).expect("small"));
        let index: usize = id.trim_start_matches("pod").parse().expect("a number");
        match self.dice.roll(4) {
            // The pod's namespace goes before anybody says DEL, and nobody ever does.
            0 => self.drop_netns(&id),
            1 => {
                self.drop_netns(&id);
                self.execute("del", &id, port(index), 30);
            }
            _ => {
                if !self.execute("del", &id, port(index), 35) && self.dice.is(50) {
                    self.execute("del", &id, port(index), 0);
                }
                self.drop_netns(&id);
            }
        }
    }

    fn drop_netns(&self, id: &str) {
        netns::remove(&self.path(id)).expect("remove");
    }

    fn collect(&self) {
        let valid: Vec<_> = self
            .living
            .iter()
            .map(|id| (id.clone(), "eth0".to_owned()))
            .collect();
        let host = self.host;
        host.run(host.network.gc(&valid))
            .unwrap_or_else(|e| panic!("gc: {}", report(&e)));
        for id in &self.living {
            host.run(host.network.check(&host.attachment(id, &[])))
                .unwrap_or_else(|e| panic!("{id} is alive: {}", report(&e)));
        }
    }
}

fn port(index: usize) -> usize {
    20_000 + index
}

/// Files below a directory of the state, except those that are no attachment's.
fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return vec![];
    };
    let names = entries.map(|e| e.expect("entry").file_name().into_string().expect("a name"));
    let of_all = [
        "lock",
        "last_reserved_ip.0",
        "unfinished",
        ".whole",
        ".containers",
    ];
    names
        .filter(|name| !of_all.contains(&name.as_str()))
        .collect()
}

/// Names of links, and routes: without their states, which settle in their own time.
fn links_and_routes() -> (Vec<String>, String) {
    let links = run("ip", &["-o", "link"]);
    let names = links
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    let routes = run("ip", &["route"]).replace(" linkdown", "");
    (names.map(str::to_owned).collect(), routes)
}

#[test]
fn nothing_is_left_of_pods_that_come_and_go_with_kills_in_between() {
    in_new_host(|| {
        let pods =
            number("PODWRIGHT_CHURN_PODS").map_or(PODS, |n| usize::try_from(n).expect("small"));
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = number("PODWRIGHT_CHURN_SEED")
            .unwrap_or_else(|| u64::from(clock.expect("a clock").subsec_nanos()) | 1);
        eprintln!("PODWRIGHT_CHURN_SEED={seed}");
        let host = Host::new();
        crate::host::neighbour(&host);
        run("ip", &["route", "add", "default", "via", "192.0.2.2"]);
        let before = links_and_routes();
        let mut churn = Churn {
            host: &host,
            dice: Dice(seed),
            usual: Duration::from_millis(20),
            living: Vec::new(),
            kills: 0,
        };
        // One pod goes through undisturbed, to learn how long it takes.
        netns::create(&churn.path("pod0")).expect("netns");
        let begun = Instant::now();
        churn.execute("add", "pod0", port(0), 0);
        churn.usual = begun.elapsed();
        churn.living.push("pod0".to_owned());
        for index in 1..pods {
            churn.begin(index);
            while churn.living.len() >= LIVING || (!churn.living.is_empty() && churn.dice.is(40)) {
                churn.end();
            }
            if index % STEPS_PER_GC == 0 {
                churn.collect();
            }
        }
        while !churn.living.is_empty() {
            churn.end();
        }
        churn.collect();
        eprintln!("{pods} pods, {} kills", churn.kills);

        let state = host.dir.path().join("state");
        assert_eq!(
            files(&state.join("networks/podwright")),
            Vec::<String>::new(),
            "leases"
        );
        assert_eq!(
            files(&state.join("networks/podwright/.containers")),
            Vec::<String>::new(),
            "the index"
        );
        let records = files(&state.join("results"));
        assert!(
            !records.iter().any(|name| name.ends_with("json")),
            "{records:?}"
        );
        let rules = run("nft", &["list", "ruleset"]);
        assert!(!rules.contains("elements"), "{rules}");
        // The gateway's own are nobody's leftovers.
        let of_pod = |address: std::net::IpAddr| {
            let text = address.to_string();
            text.starts_with("10.42.0.") && text != "10.42.0.1"
        };
        let flows = cni::conntrack::delete(|flow| {
            let ends = [flow.original.src, flow.original.dst, flow.reply.src];
            ends.into_iter().any(of_pod)
        });
        assert_eq!(flows.expect("conntrack"), 0, "tracked connections");
        for index in 0..pods {
            // Those whose runtime died and that nobody tried again.
            churn.drop_netns(&format!("pod{index}"));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while run("ip", &["-o", "link"]).contains("master pwt0") {
            assert!(Instant::now() < deadline, "{}", run("ip", &["-o", "link"]));
            std::thread::sleep(Duration::from_millis(20));
        }
        cni::cleanup("pwt0", "pwt").expect("cleanup");
        assert_eq!(links_and_routes(), before);
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}
