//! Allows only the system calls that the daemon makes (seccomp(2)).
//!
//! Two lists: the loop's, which applies to every thread, and in addition the workers', which need
//! neither the front-end's socket nor what the loop waits with.

use std::collections::BTreeMap;

use clap::ValueEnum;
use coroutine::Workers;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What happens at a system call that the daemon does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// The daemon is killed
    Kill,
    /// The call is not made, and the daemon gets SIGSYS, which ends it: a debugger sees where
    Trap,
    /// The call is made and recorded in the kernel's log
    Log,
    /// There is no filter
    None,
}

/// The filter of one daemon.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// What happens at other calls.
    pub policy: Seccomp,
    /// Whether files are opened by their handles, wherever they are.
    pub file_handles: bool,
}

/// Calls with any arguments. What they can reach is limited by the open descriptors and the root
/// directory.
const ALLOWED: &[i64] = &[
    // The data path.
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmod,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // Identity.
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    // Memory, threads and time.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    // To report where a fault of this program was.
    libc::SYS_getcwd,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Only if file handles are used.
const FILE_HANDLES: &[i64] = &[libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at];

/// Calls that only the loop makes: to wait, and for the front-end.
const LOOP_ONLY: &[i64] = &[
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    // Memory that the front-end keeps.
    libc::SYS_memfd_create,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_dup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Older forms of these calls, which only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_chmod,
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[i64] = &[libc::SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ALLOWED_HERE: &[i64] = &[];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made for this machine.
    #[error("no filter for this processor")]
    Machine,
    /// It cannot be made or put in place.
    #[error(transparent)]
    Filter(#[from] seccompiler::Error),
    /// It cannot be made.
    #[error(transparent)]
    Program(#[from] seccompiler::BackendError),
    /// There is no event with which workers wake the loop.
    #[error("no event for the workers: {0}")]
    Workers(std::io::Error),
}

/// Who makes the calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Loop,
    Worker,
}

/// Forbids all other calls in this thread, which is the loop's, and in the threads that it starts.
/// Errors: [`Error`].
pub fn install(filter: Filter) -> Result<(), Error> {
    // The arguments of clone3 cannot be checked. Where it is missing, the C library uses clone.
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    if let Some(program) = program(filter, Caller::Loop)? {
        seccompiler::apply_filter(&compile(clone3, SeccompAction::Allow, missing)?)?;
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// A pool of workers with a shorter list of calls. Errors: [`Error`].
pub fn workers(filter: Filter, max_threads: usize) -> Result<Workers, Error> {
    let program = program(filter, Caller::Worker)?;
    let confine = move || {
        if let Some(program) = &program {
            if let Err(error) = seccompiler::apply_filter(program) {
                log::warn!("a worker may still make the loop's system calls: {error}");
            }
        }
    };
    Workers::with_start(max_threads, confine).map_err(Error::Workers)
}

fn program(filter: Filter, caller: Caller) -> Result<Option<BpfProgram>, Error> {
    let action = match filter.policy {
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Trap => SeccompAction::Trap,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::None => return Ok(None),
    };
    compile(
        rules(filter.file_handles, caller)?,
        action,
        SeccompAction::Allow,
    )
    .map(Some)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, Error> {
    let machine: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| Error::Machine)?;
    Ok(SeccompFilter::new(rules, other, action, machine)?.try_into()?)
}

fn rules(
    file_handles: bool,
    caller: Caller,
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .chain(if file_handles { FILE_HANDLES } else { &[] })
        .map(|call| (*call, Vec::new()))
        .collect();
    let condition = |argument, op, value: i32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value as u32 as u64)
    };
    let equal = |argument, value| condition(argument, SeccompCmpOp::Eq, value);
    let masked = |argument, mask: i32, value| {
        condition(argument, SeccompCmpOp::MaskedEq(mask as u32 as u64), value)
    };
    let rule = |condition| SeccompRule::new(vec![condition]);
    // No executable memory, however it was made.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(masked(2, libc::PROT_EXEC, 0)?)?]);
    }
    // Threads, and no processes.
    rules.insert(libc::SYS_clone3, Vec::new());
    let thread = masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?;
    rules.insert(libc::SYS_clone, vec![rule(thread)?]);
    // Locks, duplicates, flags and seals; nothing that sends signals.
    let mut commands = Vec::new();
    for command in [
        libc::F_OFD_SETLK,
        libc::F_OFD_GETLK,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_ADD_SEALS,
    ] {
        commands.push(rule(equal(1, command)?)?);
    }
    rules.insert(libc::SYS_fcntl, commands);
    // To end after a fault: a signal to this process only.
    let own = equal(0, std::process::id() as i32)?;
    rules.insert(libc::SYS_tgkill, vec![rule(own)?]);
    // A thread's name.
    let mut settings = vec![rule(equal(0, libc::PR_SET_NAME)?)?];
    if caller == Caller::Loop {
        rules.extend(LOOP_ONLY.iter().map(|call| (*call, Vec::new())));
        // The standard library makes sockets blocking and non-blocking with it.
        let nonblocking = equal(1, libc::FIONBIO as i32)?;
        rules.insert(libc::SYS_ioctl, vec![rule(nonblocking)?]);
        // The workers' filter, which each of them adds to this one.
        settings.push(rule(equal(0, libc::PR_SET_NO_NEW_PRIVS)?)?);
        let filter = equal(0, libc::SECCOMP_SET_MODE_FILTER as i32)?;
        let no_flags = equal(1, 0)?;
        let more = SeccompRule::new(vec![filter, no_flags])?;
        rules.insert(libc::SYS_seccomp, vec![more]);
    }
    rules.insert(libc::SYS_prctl, settings);
    Ok(rules)
}
