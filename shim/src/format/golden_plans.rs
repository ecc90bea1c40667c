// SPDX-License-Identifier: Apache-2.0
//! Plans of version 1 as they are on the wire, with something in every field. What is said in
//! [`super::golden`] holds here too: a field that is new goes into a test of its own version.

use super::golden::{check, text};
use crate::plan::{
    Capabilities, CgroupJoin, Clock, Device, DeviceKind, ExecAffinity, Executable, External, Hook,
    Hooks, IdMapping, IdMappings, LaunchPlan, MemoryPolicy, Mount, MountAttrs, MountIdmap,
    MountKind, Namespace, Namespaces, ProcessPlan, Propagation, PropagationChange, Rlimit, RootFs,
    Scheduler, Seccomp, SeccompListener, TimeOffset, User, UserNamespace,
};

fn ids() -> IdMappings {
    let id = |container| IdMapping {
        container,
        host: 100_000,
        size: 65_536,
    };
    IdMappings {
        uid: vec![id(1)],
        gid: vec![id(2)],
    }
}

fn namespaces() -> Namespaces {
    let join = |name| Namespace::Join(text(name));
    Namespaces {
        user: UserNamespace::Join {
            path: text("user"),
            ids: ids(),
        },
        pid: Namespace::New,
        net: join("net"),
        ipc: join("ipc"),
        uts: join("uts"),
        cgroup: join("cgroup"),
        time: join("time"),
        time_offsets: vec![TimeOffset {
            clock: Clock::Boottime,
            seconds: -1,
            nanoseconds: 2,
        }],
        mount: None,
    }
}

fn mounts() -> Vec<Mount> {
    let source = || text("s");
    let kinds = [
        MountKind::Bind {
            source: source(),
            recursive: true,
        },
        MountKind::OwnBind {
            source: source(),
            recursive: true,
        },
        MountKind::SandboxBind { source: source() },
        MountKind::Filesystem {
            fstype: text("tmpfs"),
            source: source(),
            options: vec![text("mode=755")],
            copy_up: true,
            fallback: Some(text("f")),
        },
        MountKind::Remount,
    ];
    let to = [
        Propagation::Private,
        Propagation::Slave,
        Propagation::Shared,
        Propagation::Unbindable,
    ];
    let mount = |kind| Mount {
        destination: text("/m"),
        kind,
        attrs: MountAttrs { set: 1, clear: 2 },
        recursive_attrs: MountAttrs { set: 3, clear: 4 },
        propagation: to
            .map(|to| PropagationChange {
                to,
                recursive: true,
            })
            .into(),
        idmap: Some(MountIdmap {
            mappings: ids(),
            recursive: true,
        }),
    };
    kinds.map(mount).into()
}

fn process() -> ProcessPlan {
    ProcessPlan {
        executable: Executable::HostFile(text("/x")),
        args: vec![text("arg")],
        env: vec![text("A=b")],
        cwd: text("/cwd"),
        user: User {
            uid: 1,
            gid: 2,
            additional_gids: vec![3],
            umask: Some(0o27),
        },
        capabilities: Capabilities {
            bounding: 1,
            effective: 2,
            permitted: 3,
            inheritable: 4,
            ambient: 1 << 40,
        },
        rlimits: vec![Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        }],
        no_new_privileges: true,
        seccomp: Some(Seccomp {
            program: vec![0, 255],
            flags: 1,
            listener: Some(SeccompListener {
                path: text("/l"),
                process: text("{}"),
                state: text("{}"),
            }),
        }),
        oom_score_adj: Some(-998),
        terminal: true,
        console_size: Some((80, 24)),
        session_keyring: Some(text("key")),
        // Never on the wire.
        preserved_fds: 0,
        apparmor_profile: Some(text("profile")),
        selinux_label: Some(text("label")),
        scheduler: Some(Scheduler {
            policy: 1,
            flags: 2,
            nice: -3,
            priority: 4,
            runtime: 5,
            deadline: 6,
            period: 7,
        }),
        io_priority: Some(0x4001),
        exec_affinity: ExecAffinity {
            before: vec![1],
            after: vec![2, u64::MAX],
        },
        personality: Some(8),
        memory_policy: Some(MemoryPolicy {
            mode: 3,
            nodes: vec![1],
        }),
        external: None,
    }
}

fn hooks() -> Hooks {
    let hook = |path| {
        vec![Hook {
            path: text(path),
            args: vec![text("a")],
            env: vec![text("E=f")],
            timeout_secs: Some(5),
        }]
    };
    Hooks {
        state: text("{}"),
        prestart: hook("1"),
        create_runtime: hook("2"),
        create_container: hook("3"),
        start_container: hook("4"),
        poststart: hook("5"),
        poststop: hook("6"),
    }
}

fn plan() -> LaunchPlan {
    let device = |kind| Device {
        path: text("/dev/d"),
        kind,
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 4,
        gid: 5,
    };
    LaunchPlan {
        namespaces: namespaces(),
        cgroup: CgroupJoin {
            unified: Some(text("u")),
            v1: vec![text("v")],
            oom_file: Some(text("o")),
        },
        rootfs: RootFs::Overlay {
            lower: vec![text("lower")],
            upper: text("upper"),
            work: text("work"),
        },
        rootfs_idmap: Some(ids()),
        rootfs_readonly: true,
        rootfs_propagation: Some(PropagationChange {
            to: Propagation::Slave,
            recursive: true,
        }),
        mount_label: Some(text("label")),
        no_pivot: true,
        mounts: mounts(),
        devices: [DeviceKind::Char, DeviceKind::Block, DeviceKind::Fifo]
            .map(device)
            .into(),
        symlinks: vec![(text("/link"), text("target"))],
        masked_paths: vec![text("/masked")],
        readonly_paths: vec![text("/readonly")],
        hostname: Some(text("host")),
        domainname: Some(text("domain")),
        sysctls: vec![(text("net/x"), text("1"))],
        process: process(),
        hooks: hooks(),
        external: None,
    }
}

/// Version 2: other runtimes.
#[test]
fn what_other_runtimes_are_told() {
    let external = External {
        command: vec![text("/r"), text("-x")],
        bundle: text("/b"),
        id: text("c"),
        log: text("/l"),
        place: None,
    };
    check(&external, "040702022f72022d7803022f6202016303022f6c");
    let placed = External {
        place: Some(text("/p")),
        ..external
    };
    check(
        &placed,
        "050702022f72022d7803022f6202016303022f6c0401022f70",
    );
    let exec = ProcessPlan {
        external: Some(vec![text("/r")]),
        ..ProcessPlan::default()
    };
    check(
        &exec,
        "150000000000000000000000000000000000000000050101022f72",
    );
}

/// A mount namespace that is joined; without one, plans are as they were.
#[test]
fn mounts_of_others() {
    let joined = Namespaces {
        mount: Some(text("m")),
        ..Namespaces::default()
    };
    check(&joined, "0900000000000000000301016d");
}

#[test]
fn the_parts_of_a_plan() {
    check(
        &namespaces(),
        concat!(
            "082402020504757365721b020c0103010103a08d06038080040c0103010203a08d0603808004",
            "01010502036e65740502036970630502037574730802066367726f757006020474696d650801",
            "03010101010102",
        ),
    );
    check(
        &mounts(),
        concat!(
            "050603022f6d0700020201730101050201010102050201030104140402000101020101010102",
            "0102010102010301012001021b020c0103010103a08d06038080040c0103010203a08d060380",
            "800401010603022f6d0701020201730101050201010102050201030104140402000101020101",
            "0101020102010102010301012001021b020c0103010103a08d06038080040c0103010203a08d",
            "060380800401010603022f6d0502010201730502010101020502010301041404020001010201",
            "010101020102010102010301012001021b020c0103010103a08d06038080040c0103010203a0",
            "8d060380800401010603022f6d1d03050605746d7066730201730a01086d6f64653d37353501",
            "0103010166050201010102050201030104140402000101020101010102010201010201030101",
            "2001021b020c0103010103a08d06038080040c0103010203a08d060380800401010603022f6d",
            "0104050201010102050201030104140402000101020101010102010201010201030101200102",
            "1b020c0103010103a08d06038080040c0103010203a08d06038080040101",
        ),
    );
    check(
        &process(),
        concat!(
            "140401022f78050103617267050103413d6205042f6377640b04010101020201030201171005",
            "01010102010301040680808080802012010301070280080affffffffffffffffff0101011701",
            "03030200ff01010e010303022f6c03027b7d03027b7d0301cb0f0101030150180501036b6579",
            "09010770726f66696c650701056c6162656c1001070101010201050104010501060107040181",
            "800111020201010c0202ffffffffffffffffff010201080701020103020101",
        ),
    );
    check(
        &hooks(),
        concat!(
            "0703027b7d12010402013103010161050103453d660201051201040201320301016105010345",
            "3d6602010512010402013303010161050103453d660201051201040201340301016105010345",
            "3d6602010512010402013503010161050103453d660201051201040201360301016105010345",
            "3d66020105",
        ),
    );
}

#[test]
fn a_whole_plan() {
    check(
        &plan(),
        concat!(
            "1253082402020504757365721b020c0103010103a08d06038080040c0103010203a08d060380",
            "800401010502036e65740502036970630502037574730802066367726f757006020474696d65",
            "0801030101010101020d0303010175030101760301016f1702030701056c6f77657206057570",
            "7065720504776f726b1c01020c0103010103a08d06038080040c0103010203a08d0603808004",
            "0101060102010101010701056c6162656c01019a03050603022f6d0700020201730101050201",
            "0101020502010301041404020001010201010101020102010102010301012001021b020c0103",
            "010103a08d06038080040c0103010203a08d060380800401010603022f6d0701020201730101",
            "0502010101020502010301041404020001010201010101020102010102010301012001021b02",
            "0c0103010103a08d06038080040c0103010203a08d060380800401010603022f6d0502010201",
            "730502010101020502010301041404020001010201010101020102010102010301012001021b",
            "020c0103010103a08d06038080040c0103010203a08d060380800401010603022f6d1d030506",
            "05746d7066730201730a01086d6f64653d373535010103010166050201010102050201030104",
            "1404020001010201010101020102010102010301012001021b020c0103010103a08d06038080",
            "040c0103010203a08d060380800401010603022f6d0104050201010102050201030104140402",
            "0001010201010101020102010102010301012001021b020c0103010103a08d06038080040c01",
            "03010203a08d0603808004010142030707062f6465762f64000101010302b603010401050707",
            "062f6465762f6401010101010302b603010401050707062f6465762f6401020101010302b603",
            "010401050e01052f6c696e6b067461726765740901072f6d61736b65640b01092f726561646f",
            "6e6c79060104686f7374080106646f6d61696e0901056e65742f780131b701140401022f7805",
            "0103617267050103413d6205042f6377640b0401010102020103020117100501010102010301",
            "040680808080802012010301070280080affffffffffffffffff010101170103030200ff0101",
            "0e010303022f6c03027b7d03027b7d0301cb0f0101030150180501036b657909010770726f66",
            "696c650701056c6162656c100107010101020105010401050106010704018180011102020101",
            "0c0202ffffffffffffffffff010201080701020103020101770703027b7d1201040201310301",
            "0161050103453d6602010512010402013203010161050103453d660201051201040201330301",
            "0161050103453d6602010512010402013403010161050103453d660201051201040201350301",
            "0161050103453d6602010512010402013603010161050103453d66020105",
        ),
    );
}

/// The other variants, of which a plan has one.
#[test]
fn variants() {
    let time = |clock| TimeOffset {
        clock,
        seconds: 0,
        nanoseconds: 0,
    };
    check(&[time(Clock::Monotonic), time(Clock::Boottime)], "00010101");
    check(
        &[UserNamespace::Host, UserNamespace::New(ids())],
        "0001020c0103010103a08d06038080040c0103010203a08d0603808004",
    );
    check(&[Namespace::Host, Namespace::New], "0001");
    check(&[RootFs::Empty, RootFs::Dir(text("d"))], "00010164");
    check(&Executable::Args, "00");
}
