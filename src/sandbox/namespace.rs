//! The daemon's own namespaces (namespaces(7)), with the share as the root directory.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{fchdir, getegid, geteuid, pivot_root};

use super::child::{self, Entered, Step, at};
use super::{Error, Inside, Role, keep_descriptors_reachable};
use crate::export::sys;

/// Forks the daemon, with the share as its root. Errors: the step that the kernel refused; nothing
/// has changed then.
pub fn enter(share: &OwnedFd) -> Result<Role, Error> {
    let user = !geteuid().is_root();
    let mut flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if user {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let instead = if user { "landlock" } else { "chroot" };
    child::fork(flags, instead, || {
        if user {
            map_own_ids(uid, gid)?;
        }
        Ok(Inside {
            share: make_root(share)?,
            landlock: false,
        })
    })
}

/// In a user namespace an ordinary user keeps their ids, and no other ids exist.
fn map_own_ids(uid: u32, gid: u32) -> Entered {
    let write = |path: &str, text: String| {
        at(
            Step::Ids,
            fs::write(path, text).map_err(crate::export::errno_of),
        )
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Returns the share as mounted in the new namespace: the descriptor from before belongs to the old
/// one, in which there is a way up.
fn make_root(share: &OwnedFd) -> Entered<OwnedFd> {
    let none = None::<&str>;
    // Unlike a descriptor, the working directory moves to the copy of the mounts.
    at(Step::Root, fchdir(share))?;
    at(Step::Mounts, unshare(CloneFlags::CLONE_NEWNS))?;
    // What the host mounts below the share later must appear here, and what is mounted here must
    // not appear on the host.
    at(
        Step::Mounts,
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none),
    )?;
    // Before anything else is mounted: the share may be the root.
    let share = at(Step::Mounts, sys::copy_mounts())?;
    let all_hold_data = match sys::mounts_hold_data_only(share.as_fd()) {
        Err(Errno::ENOSYS) => false,
        result => at(Step::Mounts, result.map(|()| true))?,
    };
    // Only the process's own descriptors of /proc: from a mount of its own there is no way up.
    at(
        Step::Descriptors,
        mount(Some("/proc/self/fd"), "/proc", none, MsFlags::MS_BIND, none),
    )?;
    at(Step::Mounts, sys::mount_here(share.as_fd()))?;
    at(Step::Descriptors, keep_descriptors_reachable("/proc"))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let descriptors = at(Step::Descriptors, open(".", flags, Mode::empty()))?;
    at(Step::Root, fchdir(&share))?;
    if !all_hold_data {
        at(Step::Mounts, top_holds_data_only(&share))?;
    }
    // The old root is stacked on the new one and then removed.
    at(Step::Root, pivot_root(".", "."))?;
    at(Step::Root, umount2(".", MntFlags::MNT_DETACH))?;
    at(Step::Root, fchdir(&descriptors))?;
    Ok(share)
}

/// What an older kernel can do for one mount, that of the share, which is the working directory. A
/// remount sets all flags, and those that another namespace has set must stay.
fn top_holds_data_only(share: &OwnedFd) -> Result<(), Errno> {
    let has = fstatvfs(share)?.flags();
    let mut flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    for (found, flag) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if has.contains(found) {
            flags |= flag;
        }
    }
    let none = None::<&str>;
    mount(none, ".", none, flags, none)
}
