// SPDX-License-Identifier: Apache-2.0
//! System calls behind safe signatures. Nothing here allocates, so all of it may be called between
//! clone and exec. Errors are errno values: the caller knows what was attempted.
#![expect(
    unsafe_code,
    reason = "this module is the crate's door to the kernel; callers see borrowed descriptors and C strings"
)]

pub mod events;
pub mod files;
pub mod mounts;
pub mod namespaces;
pub mod scheduling;
pub mod socket;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// An errno value.
pub type Errno = i32;
pub type Sys<T> = Result<T, Errno>;

pub(crate) fn errno() -> Errno {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

pub(crate) fn check(result: i64) -> Sys<i64> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Takes ownership of a descriptor number that a system call has just returned.
pub(crate) fn fresh_fd(result: i64) -> Sys<OwnedFd> {
    let raw = check(result)? as RawFd;
    // SAFETY: every caller passes the return value of a call that made a new descriptor, and it was
    // checked not to be negative, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Borrows one of the first three descriptors, which every process here has open.
pub fn stdio(number: RawFd) -> BorrowedFd<'static> {
    debug_assert!((0..3).contains(&number));
    // SAFETY: 0, 1 and 2 are open for the life of the process: nothing in this crate closes them.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A bare system call of up to five word arguments that only names plain numbers.
fn numbers(call: libc::c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> Sys<i64> {
    // SAFETY: private to this file; every caller passes calls whose arguments are all numbers, so
    // the kernel follows no pointer of ours.
    check(unsafe { libc::syscall(call, a, b, c, d, e) })
}

/// The arguments of clone3(2), kernel 5.7 for `cgroup`.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// CLONE_CLEAR_SIGHAND (kernel 5.5) and CLONE_INTO_CGROUP (5.7), which exceed libc's `int`.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone we are on.
pub enum Clone {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

/// Forks with namespaces (CLONE_NEW*) and, on cgroup v2, straight into a cgroup.
///
/// The child is a copy with one thread. It must not return to code that allocates or locks: if
/// another thread of the parent held the allocator's lock, it is held for ever in the child.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Sys<Clone> {
    clone_with(flags, libc::SIGCHLD as u64, cgroup)
}

/// Forks a sibling: its parent is the parent of this process, which is told of its end by SIGCHLD.
/// This process only gets its descriptor. See [`clone3`] for what the child may not do.
pub fn clone3_sibling(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Sys<Clone> {
    // The signal is that of this process, and may not be named.
    clone_with(flags | libc::CLONE_PARENT as u64, 0, cgroup)
}

fn clone_with(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> Sys<Clone> {
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `arguments` and `pidfd`, whose address is in it, live across the call, and its size is
    // passed; no new stack and no shared memory is asked for, so the child continues on its own copy
    // of this stack.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            std::mem::size_of::<CloneArgs>(),
        )
    };
    match check(result)? {
        0 => Ok(Clone::Child),
        pid => {
            // SAFETY: the kernel has just written to this live variable, through an address that the
            // compiler does not see as its.
            let pidfd = unsafe { (&raw const pidfd).read_volatile() };
            Ok(Clone::Parent {
                pid: pid as u32,
                pidfd: fresh_fd(i64::from(pidfd))?,
            })
        }
    }
}

/// Ends the process at once, without any destructor.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}

pub fn setns(fd: BorrowedFd<'_>, kinds: i32) -> Sys<()> {
    numbers(
        libc::SYS_setns,
        fd.as_raw_fd() as usize,
        kinds as usize,
        0,
        0,
        0,
    )
    .map(drop)
}

pub fn unshare(kinds: i32) -> Sys<()> {
    numbers(libc::SYS_unshare, kinds as usize, 0, 0, 0, 0).map(drop)
}

/// prctl(2) operations that take numbers only.
pub fn prctl(operation: i32, a: usize, b: usize) -> Sys<()> {
    numbers(libc::SYS_prctl, operation as usize, a, b, 0, 0).map(drop)
}

pub fn setsid() -> Sys<()> {
    numbers(libc::SYS_setsid, 0, 0, 0, 0, 0).map(drop)
}

pub fn umask(mask: u32) {
    // umask(2) cannot fail.
    let _ = numbers(libc::SYS_umask, mask as usize, 0, 0, 0, 0);
}

/// Sets real, effective and saved user id of the calling thread only (the raw call; glibc's wrapper
/// would signal other threads).
pub fn setresuid(uid: u32) -> Sys<()> {
    let uid = uid as usize;
    numbers(libc::SYS_setresuid, uid, uid, uid, 0, 0).map(drop)
}

/// As [`setresuid`], for the group.
pub fn setresgid(gid: u32) -> Sys<()> {
    let gid = gid as usize;
    numbers(libc::SYS_setresgid, gid, gid, gid, 0, 0).map(drop)
}

/// Sets the ids that this thread makes and looks at files with; returns those it had. There is no
/// failure: with CAP_SETUID and CAP_SETGID the kernel obeys, without it changes nothing (setfsuid(2)).
pub fn set_filesystem_ids(uid: u32, gid: u32) -> (u32, u32) {
    let set = |call, id: u32| numbers(call, id as usize, 0, 0, 0, 0).map_or(0, |old| old as u32);
    let old_gid = set(libc::SYS_setfsgid, gid);
    (set(libc::SYS_setfsuid, uid), old_gid)
}

pub fn setgroups(groups: &[u32]) -> Sys<()> {
    // SAFETY: pointer and length come from one slice, which the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets effective, permitted and inheritable capabilities (capset(2), version 3).
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Sys<()> {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data elements, which is what the pointers show.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The permitted capabilities of this process.
pub fn permitted_capabilities() -> Sys<u64> {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 fills two data elements, which is what the array holds.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

#[repr(C)]
struct SockFprog {
    length: u16,
    filter: *const u8,
}

/// The flag that makes [`seccomp_filter`] return a descriptor (kernel 5.0).
pub const SECCOMP_NEW_LISTENER: u32 = 8;

/// Installs a seccomp filter. `program` is an array of `struct sock_filter` (8 bytes each). With
/// [`SECCOMP_NEW_LISTENER`], returns the number of the descriptor at which calls are notified.
pub fn seccomp_filter(program: &[u8], flags: u32) -> Sys<i64> {
    let length = u16::try_from(program.len() / 8).map_err(|_| libc::EINVAL)?;
    let fprog = SockFprog {
        length,
        filter: program.as_ptr(),
    };
    const SET_MODE_FILTER: usize = 1;
    // SAFETY: `fprog` describes exactly the whole instructions in `program`; the kernel copies them
    // and needs no alignment of ours (copy_from_user).
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            flags as usize,
            &raw const fprog,
        )
    })
}

/// A copy of another process's descriptor (kernel 5.6).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: usize) -> Sys<OwnedFd> {
    let pidfd = pidfd.as_raw_fd() as usize;
    fresh_fd(numbers(libc::SYS_pidfd_getfd, pidfd, number, 0, 0, 0)?)
}

pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit is read from a live struct; no old limit is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0usize,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// (soft, hard) of this process.
pub fn rlimit(resource: u32) -> Sys<(u64, u64)> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the old limit is written to a live struct; no new limit is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0usize,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

pub fn sethostname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length come from one slice.
    check(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) }).map(drop)
}

pub fn setdomainname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length come from one slice.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

/// A null-terminated array of C strings for execve(2). The strings must outlive it.
#[derive(Debug)]
pub struct PointerArray(Vec<*const libc::c_char>);

impl PointerArray {
    /// `spare` further slots can be filled with [`push`](Self::push) without allocation.
    pub fn new(strings: &[std::ffi::CString], spare: usize) -> PointerArray {
        let mut pointers = Vec::with_capacity(strings.len() + spare + 1);
        pointers.extend(strings.iter().map(|string| string.as_ptr()));
        pointers.push(std::ptr::null());
        PointerArray(pointers)
    }

    /// Appends a string that lives until exec. Does nothing when no spare slot is left.
    pub fn push(&mut self, string: &'static CStr) {
        if self.0.len() < self.0.capacity() {
            if let Some(last) = self.0.last_mut() {
                *last = string.as_ptr();
            }
            self.0.push(std::ptr::null());
        }
    }
}

/// Replaces the program. Returns only on failure. The arrays' strings must be alive.
pub fn execve(path: &CStr, args: &PointerArray, env: &PointerArray) -> Errno {
    // SAFETY: `path` is a C string; both arrays end with a null pointer and their owner (the
    // prepared launch) holds the strings.
    unsafe { libc::execve(path.as_ptr(), args.0.as_ptr(), env.0.as_ptr()) };
    errno()
}

/// As [`execve`], for an open file (execveat(2) with AT_EMPTY_PATH).
pub fn fexecve(file: BorrowedFd<'_>, args: &PointerArray, env: &PointerArray) -> Errno {
    // SAFETY: as in `execve`; the path is an empty C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.0.as_ptr(),
            env.0.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    errno()
}

/// Closes every descriptor from `first` on but those in `keep` (kernel 5.9). Only for a new process
/// on its way to exec or exit: whatever else owns one of them must not be used or dropped any more.
pub fn close_all_from(first: u32, keep: &[Option<BorrowedFd<'_>>]) -> Sys<()> {
    let mut from = first;
    loop {
        let kept = keep.iter().flatten().map(|fd| fd.as_raw_fd() as u32);
        let next = kept.filter(|number| *number >= from).min();
        let to = next.unwrap_or(u32::MAX);
        if to > from {
            let last = if next.is_some() { to - 1 } else { to };
            numbers(libc::SYS_close_range, from as usize, last as usize, 0, 0, 0)?;
        }
        match next {
            Some(number) => from = number + 1,
            None => return Ok(()),
        }
    }
}

/// Marks every descriptor from `first` on close-on-exec (kernel 5.11).
pub fn cloexec_from(first: u32) -> Sys<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    numbers(
        libc::SYS_close_range,
        first as usize,
        u32::MAX as usize,
        CLOSE_RANGE_CLOEXEC,
        0,
        0,
    )
    .map(drop)
}

/// Makes `number` (0, 1 or 2) a copy of `fd`, kept open across exec.
pub fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> Sys<()> {
    if fd.as_raw_fd() == number {
        return numbers(
            libc::SYS_fcntl,
            number as usize,
            libc::F_SETFD as usize,
            0,
            0,
            0,
        )
        .map(drop);
    }
    numbers(
        libc::SYS_dup3,
        fd.as_raw_fd() as usize,
        number as usize,
        0,
        0,
        0,
    )
    .map(drop)
}

/// A copy of `fd` with a number of at least 3, closed on exec.
pub fn dup_above_stdio(fd: BorrowedFd<'_>) -> Sys<OwnedFd> {
    duplicate(fd, libc::F_DUPFD_CLOEXEC, 3)
}

/// A copy of `fd` with a number of at least `first`, which a program that is executed gets.
pub fn dup_for_exec(fd: BorrowedFd<'_>, first: u32) -> Sys<OwnedFd> {
    duplicate(fd, libc::F_DUPFD, first)
}

fn duplicate(fd: BorrowedFd<'_>, how: i32, first: u32) -> Sys<OwnedFd> {
    fresh_fd(numbers(
        libc::SYS_fcntl,
        fd.as_raw_fd() as usize,
        how as usize,
        first as usize,
        0,
        0,
    )?)
}

/// Takes over the descriptor that whoever executed this program has made for it, and closes it on
/// the next exec.
///
/// # Errors
/// EBADF when there is none of this number; EINVAL for a standard stream.
pub fn take_inherited(number: RawFd) -> Sys<OwnedFd> {
    if number < 3 {
        return Err(libc::EINVAL);
    }
    let set = [libc::F_SETFD as usize, libc::FD_CLOEXEC as usize];
    numbers(libc::SYS_fcntl, number as usize, set[0], set[1], 0, 0)?;
    fresh_fd(i64::from(number))
}

/// Unblocks every signal and gives each its default back. Ignored ones would stay ignored through
/// clone and exec: SIGPIPE, which the Rust runtime ignores, and whatever the caller's caller did
/// (nohup, a shell's background jobs). A container would then miss its SIGINT or SIGHUP.
pub fn reset_signals() -> Sys<()> {
    let none: u64 = 0;
    // SAFETY: the kernel reads an 8 byte mask and is told its size; no old mask is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    })?;
    for signal in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        // The kernel's own struct: handler (0: default), flags, restorer, mask.
        let default = [0u64; 4];
        // SAFETY: the kernel reads a struct of this size; no former one is asked for. A default
        // disposition involves no handler of ours.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        })?;
    }
    Ok(())
}

/// What asks a process to end, ends this one. The first process of a pid namespace needs a handler
/// for that: the kernel drops signals whose default it has. Handlers end with exec.
pub fn end_when_asked() -> Sys<()> {
    extern "C" fn end(signal: libc::c_int) {
        exit(128 + signal)
    }
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: all zeroes is a valid sigaction: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = end as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` outlives the call. Its handler has the type that goes without SA_SIGINFO,
        // and makes one system call that does not return.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }.into())?;
    }
    Ok(())
}

pub fn kill(pid: u32, signal: i32) -> Sys<()> {
    let pid = i32::try_from(pid).map_err(|_| libc::ESRCH)?;
    if pid <= 1 {
        return Err(libc::ESRCH);
    }
    numbers(libc::SYS_kill, pid as usize, signal as usize, 0, 0, 0).map(drop)
}

/// Signals every process of the group that `leader` leads.
pub fn kill_group(leader: u32, signal: i32) -> Sys<()> {
    let leader = i32::try_from(leader).map_err(|_| libc::ESRCH)?;
    if leader <= 1 {
        return Err(libc::ESRCH);
    }
    let group = -(leader as isize);
    numbers(libc::SYS_kill, group as usize, signal as usize, 0, 0, 0).map(drop)
}

/// What the system calls a signal: `killed`, `bad system call` (strsignal(3)).
pub fn signal_name(signal: i32) -> String {
    // SAFETY: any number is one that it has an answer for.
    let name = unsafe { libc::strsignal(signal) };
    // SAFETY: what it answers is never null but a string, which nobody changes before this thread asks
    // again; it is copied by then.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().to_lowercase()
}

/// This process's id in its own pid namespace.
pub fn getpid() -> u32 {
    // getpid(2) cannot fail. The raw call: the namespace may be a new one since the fork.
    numbers(libc::SYS_getpid, 0, 0, 0, 0, 0).map_or(0, |pid| pid as u32)
}

pub fn pidfd_open(pid: u32) -> Sys<OwnedFd> {
    fresh_fd(numbers(libc::SYS_pidfd_open, pid as usize, 0, 0, 0, 0)?)
}

pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Sys<()> {
    numbers(
        libc::SYS_pidfd_send_signal,
        pidfd.as_raw_fd() as usize,
        signal as usize,
        0,
        0,
        0,
    )
    .map(drop)
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    /// 128 + signal when a signal ended it.
    pub code: i32,
    pub signal: i32,
}

/// Collects one child that has ended; `pid` none means any. `None` when none has ended yet, or
/// there are no children.
pub fn reap(pid: Option<u32>, block: bool) -> Sys<Option<Ended>> {
    let which = pid.map_or(-1, |pid| pid as i32);
    let options = if block { 0 } else { libc::WNOHANG };
    let mut status = 0;
    // SAFETY: the status is written to a live variable.
    let result = unsafe { libc::waitpid(which, &raw mut status, options) };
    if result < 0 {
        let errno = errno();
        return if errno == libc::ECHILD {
            Ok(None)
        } else {
            Err(errno)
        };
    }
    if result == 0 {
        return Ok(None);
    }
    let signal = if libc::WIFSIGNALED(status) {
        libc::WTERMSIG(status)
    } else {
        0
    };
    let code = if signal > 0 {
        128 + signal
    } else {
        libc::WEXITSTATUS(status)
    };
    Ok(Some(Ended {
        pid: result as u32,
        code,
        signal,
    }))
}

/// Wall clock, nanoseconds since the epoch.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Sys<usize> {
    // SAFETY: pointer and length come from one slice.
    let result = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    check(result as i64).map(|count| count as usize)
}

/// Writes several pieces as one (writev(2)).
pub fn write_parts(fd: BorrowedFd<'_>, parts: &[std::io::IoSlice<'_>]) -> Sys<usize> {
    let count = i32::try_from(parts.len()).map_err(|_| libc::EINVAL)?;
    // SAFETY: `IoSlice` has the layout of `iovec` (std guarantees it on Unix), the pieces are
    // borrowed for the call and only read.
    let result = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr().cast(), count) };
    check(result as i64).map(|count| count as usize)
}

pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: pointer and length come from one exclusively borrowed slice.
    let result = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    check(result as i64).map(|count| count as usize)
}

/// An empty file without a path, closed on exec.
pub fn memory_file(name: &CStr) -> Sys<OwnedFd> {
    // SAFETY: `name` is a C string.
    fresh_fd(i64::from(unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)
    }))
}

/// Goes back to the start of a file.
pub fn rewind(fd: BorrowedFd<'_>) -> Sys<()> {
    let start = libc::SEEK_SET as usize;
    numbers(libc::SYS_lseek, fd.as_raw_fd() as usize, 0, start, 0, 0).map(drop)
}

/// A pipe, (read end, write end), closed on exec.
pub fn pipe() -> Sys<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two descriptors into an array of two.
    check(i64::from(unsafe {
        libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC)
    }))?;
    Ok((fresh_fd(i64::from(ends[0]))?, fresh_fd(i64::from(ends[1]))?))
}

/// What fits in a pipe; an error for anything else.
pub fn pipe_capacity(fd: BorrowedFd<'_>) -> Sys<usize> {
    numbers(
        libc::SYS_fcntl,
        fd.as_raw_fd() as usize,
        libc::F_GETPIPE_SZ as usize,
        0,
        0,
        0,
    )
    .map(|size| size as usize)
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Sys<()> {
    let flags = numbers(
        libc::SYS_fcntl,
        fd.as_raw_fd() as usize,
        libc::F_GETFL as usize,
        0,
        0,
        0,
    )?;
    numbers(
        libc::SYS_fcntl,
        fd.as_raw_fd() as usize,
        libc::F_SETFL as usize,
        flags as usize | libc::O_NONBLOCK as usize,
        0,
        0,
    )
    .map(drop)
}

/// Opens the slave side of a terminal by its master, without any path (TIOCGPTPEER, kernel 4.13).
pub fn terminal_peer(master: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let unlock: i32 = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    check(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock)
    }))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    fresh_fd(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)
    }))
}

pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> Sys<()> {
    // SAFETY: TIOCSCTTY takes a number by value.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))
    .map(drop)
}

/// (columns, rows) of a terminal.
pub fn window_size(terminal: BorrowedFd<'_>) -> Sys<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills a winsize.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size)
    }))?;
    Ok((size.ws_col, size.ws_row))
}

pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> Sys<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))
    .map(drop)
}

/// Fills `buffer` from the start of a file, whatever its position is.
pub fn read_at_start(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = buffer.get_mut(done..).unwrap_or_default();
        // SAFETY: pointer and length come from one exclusively borrowed slice.
        let result = unsafe {
            libc::pread(
                fd.as_raw_fd(),
                rest.as_mut_ptr().cast(),
                rest.len(),
                done as libc::off_t,
            )
        };
        match check(result as i64)? {
            0 => return Err(libc::EIO),
            count => done += count as usize,
        }
    }
    Ok(())
}

/// Makes this process the reaper of all its orphaned descendants.
pub fn become_subreaper() -> Sys<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
}

/// Gives memory that is free inside the allocator back to the kernel.
pub fn trim_memory() {
    // SAFETY: malloc_trim takes a number and touches only the allocator's own state.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Joins the session keyring of this name, or makes it, and lets its owner's other processes find
/// it by that name.
pub fn join_session_keyring(name: &CStr) -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    const KEYCTL_SETPERM: usize = 5;
    // What the kernel grants to a new session keyring (all to the possessor; view, read and link
    // to its user), and search to its user.
    const PERMISSIONS: usize = 0x3f1b_0000;
    // SAFETY: this operation reads one C string.
    let keyring = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })?;
    let keyring = keyring as usize;
    numbers(libc::SYS_keyctl, KEYCTL_SETPERM, keyring, PERMISSIONS, 0, 0).map(drop)
}

/// Names this process in process lists: exec by descriptor would leave the descriptor's number.
pub fn set_name(name: &CStr) -> Sys<()> {
    // SAFETY: PR_SET_NAME reads a C string, of which it keeps 15 bytes.
    check(i64::from(unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr())
    }))
    .map(drop)
}
