// SPDX-License-Identifier: Apache-2.0
//! The child's half: from clone to exec. Nothing in here allocates or takes a lock.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::hooks::{self, Failure, Tail};
use super::prepare::Prepared;
use super::report::{self, Step};
use super::{Gate, Stdio, filesystem, identity};
use crate::sys::{self, Clone, Errno, mounts, socket};

/// What failed: the step, the index within the plan's list, and why.
pub(super) type Failed = (Step, usize, Errno);

/// Adds the step to an errno.
pub(super) fn at(step: Step) -> impl Fn(Errno) -> Failed {
    move |errno| (step, 0, errno)
}

/// Sets the process up, waits at the gate, and becomes the program. Never returns.
pub(super) fn run(
    prepared: &mut Prepared,
    stdio: &Stdio,
    gate: &Gate,
    channel: BorrowedFd<'_>,
) -> ! {
    let (step, index, errno) = match set_up_and_exec(prepared, stdio, gate, channel) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    give_up(gate, channel, (step, index, errno), &[])
}

/// Tells why, and ends. `output` is what a hook printed.
fn give_up(
    gate: &Gate,
    channel: BorrowedFd<'_>,
    (step, index, number): Failed,
    output: &[u8],
) -> ! {
    let mut report = [0; report::REPORT_MAX];
    let words = report::encode(step, index, number);
    let mut length = 0;
    for (slot, byte) in report.iter_mut().zip(words.iter().chain(output)) {
        *slot = *byte;
        length += 1;
    }
    let report = report.get(..length).unwrap_or(&words);
    if socket::send(channel, report, &[]).is_err() {
        // The parent is gone, which is usual with a FIFO gate: who opened that may still be there.
        if let Gate::Fifo(fifo) = gate {
            let _ = sys::write(fifo.as_fd(), report);
        }
        let _ = sys::write(
            sys::stdio(2),
            b"podwright: the program could not be executed\n",
        );
    }
    sys::exit(if number == libc::ENOENT { 127 } else { 126 })
}

/// What a process does from clone to exec. The first half happens with the privileges of the host,
/// the second with those over the container's namespaces, and then with the user's.
fn set_up_and_exec(
    prepared: &mut Prepared,
    stdio: &Stdio,
    gate: &Gate,
    channel: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, Failed> {
    // Until exec, nobody may look into this copy of the runtime through /proc/<pid>.
    hide_from_debuggers()?;
    sys::reset_signals().map_err(at(Step::Session))?;
    sys::umask(0);
    identity::affinity(&prepared.process.affinity.before)?;
    join_cgroups(prepared)?;
    identity::affinity(&prepared.process.affinity.after)?;
    identity::any_processor(&prepared.process.affinity);
    oom_score(prepared)?;
    give_streams(prepared, stdio)?;
    let (in_two_steps, new_users) = (
        prepared.spaces.in_two_steps(),
        prepared.spaces.user.is_some(),
    );
    if new_users {
        identity::raise_limits(&prepared.process)?;
        identity::schedule(&prepared.process)?;
    }
    // A descriptor of a process's own file, so that of the process that goes on.
    let mut label = None;
    if !in_two_steps {
        label = identity::label_file(&prepared.process)?;
    }
    join_namespaces(prepared)?;
    if in_two_steps {
        go_on_as_child(prepared, channel)?;
        label = identity::label_file(&prepared.process)?;
    }
    new_cgroup_namespace(prepared)?;
    sys::setsid().map_err(at(Step::Session))?;
    names(prepared)?;
    sysctls(prepared, new_users)?;
    if new_users {
        identity::become_root()?;
        sysctls(prepared, false)?;
    }
    identity::session_keyring(&prepared.process)?;
    let callbacks = filesystem::Callbacks {
        hooks: &|| create_hooks(prepared, gate, channel),
        idmap: &|index, what| idmap(new_users, channel, index, what),
    };
    let wants_terminal = matches!(stdio, Stdio::Terminal);
    let terminal = filesystem::set_up(prepared, wants_terminal, &callbacks)?;
    standard_streams(prepared, stdio, terminal.as_ref())?;
    close_descriptors(prepared, gate, channel, terminal.as_ref(), label.as_ref())?;
    identity::limits(&prepared.process)?;
    if !new_users {
        identity::schedule(&prepared.process)?;
    }
    identity::environment(&prepared.process)?;
    identity::enter_directory(prepared)?;
    identity::become_user(&prepared.process)?;
    let program = identity::find_program(&prepared.process)?;
    sys::cloexec_from(3 + prepared.process.preserved_fds).map_err(at(Step::Stdio))?;
    let master = terminal.as_ref().map(|pair| [pair.master.as_fd()]);
    let fds: &[BorrowedFd<'_>] = master.as_ref().map_or(&[], |fd| fd.as_slice());
    identity::label(&prepared.process, label.as_ref())?;
    let listened = usize::from(prepared.process.is_listened());
    let ready = report::encode(Step::Ready, listened, 0);
    socket::send(channel, &ready, fds).map_err(at(Step::Channel))?;
    // The parent has its own now, and 0, 1 and 2 are what the process needs of it.
    drop(terminal);
    sys::end_when_asked().map_err(at(Step::Gate))?;
    if let Some(number) = identity::load_filter(&prepared.process)? {
        hand_over(number, channel)?;
    }
    wait_at(gate, channel)?;
    start_hooks(prepared, gate, channel);
    identity::confine(&mut prepared.process)?;
    let process = &prepared.process;
    let errno = match (&process.executable, process.candidates.get(program)) {
        (Some(file), _) => sys::fexecve(file.as_fd(), &process.args, &process.env),
        (None, Some(path)) => sys::execve(path, &process.args, &process.env),
        (None, None) => libc::ENOENT,
    };
    Err((Step::Exec, 0, errno))
}

/// Closes all that is not needed any more, now, and not only on exec: the image says which working
/// directory, program and interpreter are opened until then, and may say /proc/self/fd/7/../.. of
/// a directory of the host (CVE-2024-21626). None of those that stay is a directory.
fn close_descriptors(
    prepared: &Prepared,
    gate: &Gate,
    channel: BorrowedFd<'_>,
    terminal: Option<&filesystem::Terminal>,
    label: Option<&OwnedFd>,
) -> Result<(), Failed> {
    let fifo = match gate {
        Gate::Fifo(fifo) => Some(fifo.as_fd()),
        Gate::Parent => None,
    };
    let keep = [
        Some(channel),
        fifo,
        prepared.process.executable.as_ref().map(AsFd::as_fd),
        terminal.map(|pair| pair.master.as_fd()),
        terminal.map(|pair| pair.slave.as_fd()),
        label.map(AsFd::as_fd),
    ];
    let first = 3 + prepared.process.preserved_fds;
    sys::close_all_from(first, &keep).map_err(at(Step::Stdio))
}

fn hide_from_debuggers() -> Result<(), Failed> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(at(Step::Session))
}

fn wait_at(gate: &Gate, channel: BorrowedFd<'_>) -> Result<(), Failed> {
    let mut byte = [0];
    let read = match gate {
        Gate::Parent => sys::read(channel, &mut byte),
        Gate::Fifo(fifo) => sys::read(fifo.as_fd(), &mut byte),
    };
    match read {
        Ok(1) => Ok(()),
        // The parent is gone without a word: this process was never wanted.
        Ok(_) => sys::exit(0),
        Err(errno) => Err((Step::Gate, 0, errno)),
    }
}

/// Lets the parent take the notify descriptor of the filter that was just loaded. By a plain write,
/// which may not be among the calls that are left to its reader.
fn hand_over(number: usize, channel: BorrowedFd<'_>) -> Result<(), Failed> {
    let report = report::encode(Step::Listener, number, 0);
    sys::write(channel, &report).map_err(at(Step::Listener))?;
    wait_at(&Gate::Parent, channel)
}

/// Id-maps a copy of what the container has mounted. Ids of the host are the host's to give: in a
/// user namespace, the parent does it.
fn idmap(
    in_users: bool,
    channel: BorrowedFd<'_>,
    index: usize,
    (tree, users, recursive): filesystem::Copied<'_>,
) -> sys::Sys<()> {
    if !in_users {
        return mounts::set_idmap(tree, users, recursive);
    }
    let report = report::encode(Step::Idmap, index, recursive.into());
    socket::send(channel, &report, &[tree, users])?;
    wait_at(&Gate::Parent, channel).map_err(|(_, _, errno)| errno)
}

/// Lets the parent run its hooks, then runs those that belong into the new mount namespace.
fn create_hooks(prepared: &Prepared, gate: &Gate, channel: BorrowedFd<'_>) -> Result<(), Failed> {
    if prepared.hooks.parent {
        let report = report::encode(Step::Hooks, 0, 0);
        socket::send(channel, &report, &[]).map_err(at(Step::Channel))?;
        wait_at(&Gate::Parent, channel)?;
    }
    let ready = &prepared.hooks.create_container;
    let exec = &mut |hook: &hooks::ReadyHook| {
        // It is zero while the file system is made.
        sys::umask(0o022);
        // As runc has it, in the root.
        match prepared
            .root
            .as_ref()
            .map(|root| root.tree.as_fd())
            .map(mounts::fchdir)
        {
            Some(Err(errno)) => errno,
            _ => hook.exec(None),
        }
    };
    let mut tail = Tail::default();
    if let Err(Failure { index, cause }) = ready.run(sys::getpid(), &mut tail, exec) {
        let failed = (Step::CreateContainerHook, index, cause.encode());
        give_up(gate, channel, failed, tail.bytes());
    }
    Ok(())
}

/// As the container's process: with its user, environment, capabilities and seccomp filter.
fn start_hooks(prepared: &mut Prepared, gate: &Gate, channel: BorrowedFd<'_>) {
    let (ready, process) = (&prepared.hooks.start_container, &mut prepared.process);
    let exec = &mut |hook: &hooks::ReadyHook| match identity::confine(process) {
        Ok(()) => hook.exec(Some(&process.env)),
        Err((_, _, errno)) => errno,
    };
    let mut tail = Tail::default();
    if let Err(Failure { index, cause }) = ready.run(sys::getpid(), &mut tail, exec) {
        let failed = (Step::StartContainerHook, index, cause.encode());
        give_up(gate, channel, failed, tail.bytes());
    }
}

fn join_cgroups(prepared: &Prepared) -> Result<(), Failed> {
    for (index, procs) in prepared.v1.iter().enumerate() {
        sys::write(procs.as_fd(), b"0").map_err(|errno| (Step::JoinCgroup, index, errno))?;
    }
    Ok(())
}

/// Written before the mount namespace is left: this /proc is the host's.
fn oom_score(prepared: &Prepared) -> Result<(), Failed> {
    match &prepared.process.oom_score_adj {
        None => Ok(()),
        Some(score) => {
            write_file(c"/proc/self/oom_score_adj", score.to_bytes()).map_err(at(Step::OomScore))
        }
    }
}

/// Writes to a file of /proc, which has to be one.
fn write_file(path: &std::ffi::CStr, value: &[u8]) -> sys::Sys<()> {
    let file = mounts::openat(mounts::cwd(), path, libc::O_WRONLY, 0)?;
    if !filesystem::on_proc(file.as_fd())? {
        return Err(libc::EXDEV);
    }
    sys::write(file.as_fd(), value).map(drop)
}

/// The user namespace comes last: in it, the privileges to join others are gone.
fn join_namespaces(prepared: &Prepared) -> Result<(), Failed> {
    let spaces = &prepared.spaces;
    let failed = |index| move |errno| (Step::JoinNamespace, index, errno);
    if let (Some(pid), true) = (&spaces.pid, spaces.in_two_steps()) {
        sys::setns(pid.as_fd(), libc::CLONE_NEWPID).map_err(failed(0))?;
    }
    for (index, (file, kinds)) in spaces.join.iter().enumerate() {
        sys::setns(file.as_fd(), *kinds).map_err(failed(index))?;
    }
    if let Some(users) = &spaces.user {
        sys::setns(users.file.as_fd(), libc::CLONE_NEWUSER).map_err(at(Step::UserNamespace))?;
        hide_from_debuggers()?;
    }
    Ok(())
}

/// Makes the process that becomes the container's, in namespaces that belong to the user namespace
/// entered before, and with the clocks of a new time namespace, which only children get. It takes
/// this one's place: as child of the same parent, and on the same channel.
fn go_on_as_child(prepared: &Prepared, channel: BorrowedFd<'_>) -> Result<(), Failed> {
    if let Some(offsets) = &prepared.spaces.time {
        let failed = at(Step::TimeNamespace);
        sys::unshare(sys::namespaces::CLONE_NEWTIME).map_err(&failed)?;
        if !offsets.is_empty() {
            write_file(c"/proc/self/timens_offsets", offsets).map_err(&failed)?;
        }
    }
    match sys::clone3_sibling(prepared.spaces.new, None).map_err(at(Step::Clone))? {
        Clone::Child => Ok(()),
        Clone::Parent { pid, pidfd } => {
            let report = report::encode(Step::Replaced, pid as usize, 0);
            // If nobody hears it any more, the other will find the same, and end.
            let _ = socket::send(channel, &report, &[pidfd.as_fd()]);
            sys::exit(0)
        }
    }
}

fn new_cgroup_namespace(prepared: &Prepared) -> Result<(), Failed> {
    match prepared.spaces.new_cgroup {
        true => sys::unshare(libc::CLONE_NEWCGROUP).map_err(at(Step::JoinCgroup)),
        false => Ok(()),
    }
}

fn names(prepared: &Prepared) -> Result<(), Failed> {
    if let Some(name) = &prepared.hostname {
        sys::sethostname(name.to_bytes()).map_err(at(Step::Hostname))?;
    }
    if let Some(name) = &prepared.domainname {
        sys::setdomainname(name.to_bytes()).map_err(at(Step::Domainname))?;
    }
    Ok(())
}

/// Through the host's /proc, which shows the values of the writer's own namespaces. In a user
/// namespace, some belong to the host's root and some to the namespace's, depending on the kernel
/// (IPC since 6.10): what the first may not write is left to the second try.
fn sysctls(prepared: &mut Prepared, again_as_root: bool) -> Result<(), Failed> {
    for (index, sysctl) in prepared.sysctls.iter_mut().enumerate() {
        if sysctl.written {
            continue;
        }
        match write_file(&sysctl.path, sysctl.value.to_bytes()) {
            Ok(()) => sysctl.written = true,
            Err(libc::EACCES | libc::EPERM) if again_as_root => {}
            Err(errno) => return Err((Step::Sysctl, index, errno)),
        }
    }
    Ok(())
}

/// Gives the streams to the process's user, so that it may open /dev/stdout. In a user namespace
/// they could not be given any more: they are the host's.
fn give_streams(prepared: &Prepared, stdio: &Stdio) -> Result<(), Failed> {
    if let Stdio::Streams(streams) = stdio {
        for stream in streams {
            give_to(stream, prepared.stream_owner, KEEP).map_err(at(Step::Stdio))?;
        }
    }
    Ok(())
}

/// Makes 0, 1 and 2 the new process's streams. A terminal is the container's own, and is given to
/// its user here.
fn standard_streams(
    prepared: &Prepared,
    stdio: &Stdio,
    terminal: Option<&filesystem::Terminal>,
) -> Result<(), Failed> {
    let failed = at(Step::Stdio);
    let streams: [&OwnedFd; 3] = match (stdio, terminal) {
        (Stdio::Streams([stdin, stdout, stderr]), _) => [stdin, stdout, stderr],
        (Stdio::Terminal, Some(pair)) => [&pair.slave, &pair.slave, &pair.slave],
        (Stdio::Terminal, None) => return Err(failed(libc::ENOTTY)),
    };
    if let Some(pair) = terminal {
        give_to(&pair.slave, prepared.process.uid, KEEP).map_err(&failed)?;
    }
    let null = filesystem::own_null();
    for (number, stream) in streams.into_iter().enumerate() {
        let stream = match &null {
            Some(own) if filesystem::is_null(stream.as_fd()).map_err(&failed)? => own,
            _ => stream,
        };
        sys::dup_to(stream.as_fd(), number as i32).map_err(&failed)?;
    }
    if terminal.is_some() {
        sys::set_controlling_terminal(sys::stdio(0)).map_err(&failed)?;
    }
    if let (Some(_), Some((columns, rows))) = (terminal, prepared.process.console_size) {
        sys::set_window_size(sys::stdio(0), columns, rows).map_err(&failed)?;
    }
    Ok(())
}

/// No other group (chown(2)).
const KEEP: u32 = u32::MAX;

/// Device files that are no terminals stay as they are: they are the host's.
pub(super) fn give_to(stream: &OwnedFd, uid: u32, gid: u32) -> sys::Sys<()> {
    const UNIX98_SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
    let stat = mounts::fstat(stream.as_fd())?;
    let device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    let terminal = device && UNIX98_SLAVES.contains(&libc::major(stat.st_rdev));
    if stat.st_uid == uid || regular || (device && !terminal) {
        return Ok(());
    }
    match mounts::fchown(stream.as_fd(), uid, gid) {
        // Not every kind of stream has an owner that can be changed.
        Err(libc::EINVAL | libc::EPERM | libc::EROFS) | Ok(()) => Ok(()),
        Err(errno) => Err(errno),
    }
}
