//! The daemon's own namespaces (namespaces(7)), with the share as the root directory.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, dup3, fchdir, getegid, geteuid, pivot_root};
use rustix::fs::StatVfsMountFlags;

use super::child::{Entered, Step, at};
use super::{Inside, find_descriptors_in, open_directory};
use crate::export::sys;

/// The daemon's namespaces, except that of mounts: a new one would leave the share's descriptor outside.
pub fn flags() -> CloneFlags {
    let flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    match is_user() {
        true => flags | CloneFlags::CLONE_NEWUSER,
        false => flags,
    }
}

/// An easier sandbox.
pub fn instead() -> &'static str {
    if is_user() { "landlock" } else { "chroot" }
}

fn is_user() -> bool {
    !geteuid().is_root()
}

/// The ids of the process in new namespaces of these [`flags`].
pub struct Ids(Option<(u32, u32)>);

impl Ids {
    /// Those of this process. Call it before the namespaces are entered.
    pub fn of_process() -> Ids {
        Ids(is_user().then(|| (geteuid().as_raw(), getegid().as_raw())))
    }

    /// In a user namespace an ordinary user keeps their ids, and no other ids exist.
    pub fn apply(&self) -> Entered {
        self.0.map_or(Ok(()), |(uid, gid)| map_own_ids(uid, gid))
    }
}

/// Enters a new mount namespace with the share as its root.
pub fn enter(share: &OwnedFd) -> Entered<Inside> {
    Ok(Inside {
        share: make_root(share)?,
        landlock: false,
    })
}

/// [`enter`] for the first server. It shares its descriptors with the supervisor, which needs two of
/// them for the next server: from now on `share` is the share as mounted in the new namespace, and
/// `mounts` is that namespace.
pub fn enter_first(share: &mut OwnedFd, mounts: &mut OwnedFd) -> Entered<Inside> {
    let namespace = "/proc/self/ns/mnt";
    at(Step::Root, fchdir(&*share))?;
    at(Step::Mounts, unshare(CloneFlags::CLONE_NEWNS))?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = at(Step::Mounts, open(namespace, flags, Mode::empty()))?;
    let inside = root_in_new_namespace()?;
    at(Step::Mounts, dup3(&namespace, mounts, OFlag::O_CLOEXEC))?;
    at(Step::Root, dup3(&inside, share, OFlag::O_CLOEXEC))?;
    Ok(Inside {
        share: inside,
        landlock: false,
    })
}

/// Makes `users` the user namespace of this process.
pub fn keep_users(users: &mut OwnedFd) -> Entered {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = open("/proc/self/ns/user", flags, Mode::empty());
    let namespace = at(Step::Ids, namespace)?;
    at(Step::Ids, dup3(&namespace, users, OFlag::O_CLOEXEC))
}

/// Enters the mount namespace that [`enter_first`] has made. The root of the calling process is the one
/// that [`keep_proc_alone`] has given to its supervisor.
pub fn enter_again(share: &OwnedFd, mounts: &OwnedFd) -> Entered<Inside> {
    at(Step::Descriptors, chdir("/self/fd"))?;
    // From a mount of its own there is no way up.
    let descriptors = at(Step::Descriptors, sys::copy_mounts())?;
    at(Step::Mounts, setns(mounts, CloneFlags::CLONE_NEWNS))?;
    at(Step::Descriptors, find_descriptors_in(&descriptors))?;
    let share = at(
        Step::Root,
        share.try_clone().map_err(crate::export::errno_of),
    )?;
    Ok(Inside {
        share,
        landlock: false,
    })
}

/// Makes /proc the root of the supervisor: the next server needs the descriptors in it, and nothing else
/// is needed.
pub fn keep_proc_alone() -> Entered {
    let none = None::<&str>;
    at(Step::Mounts, unshare(CloneFlags::CLONE_NEWNS))?;
    at(
        Step::Mounts,
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none),
    )?;
    at(Step::Descriptors, chdir("/proc"))?;
    let proc = at(Step::Descriptors, sys::copy_mounts())?;
    at(Step::Mounts, sys::mount_here(proc.as_fd()))?;
    at(Step::Root, fchdir(&proc))?;
    at(Step::Root, pivot_root(".", "."))?;
    at(Step::Root, umount2(".", MntFlags::MNT_DETACH))?;
    at(Step::Root, chdir("/"))
}

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
    // Unlike a descriptor, the working directory moves to the copy of the mounts.
    at(Step::Root, fchdir(share))?;
    at(Step::Mounts, unshare(CloneFlags::CLONE_NEWNS))?;
    root_in_new_namespace()
}

/// Makes the working directory the root of this mount namespace, which is new.
fn root_in_new_namespace() -> Entered<OwnedFd> {
    let none = None::<&str>;
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
    // Before the share is mounted on it: the share may be /proc.
    let descriptors = at(Step::Descriptors, open_directory("/proc"))?;
    at(Step::Mounts, sys::mount_here(share.as_fd()))?;
    at(Step::Root, fchdir(&share))?;
    if !all_hold_data {
        at(Step::Mounts, top_holds_data_only(&share))?;
    }
    // The old root is stacked on the new one and then removed.
    at(Step::Root, pivot_root(".", "."))?;
    at(Step::Root, umount2(".", MntFlags::MNT_DETACH))?;
    at(Step::Descriptors, find_descriptors_in(&descriptors))?;
    Ok(share)
}

/// What an older kernel can do for one mount, that of the share, which is the working directory. A
/// remount sets all flags, and those that another namespace has set must stay.
fn top_holds_data_only(share: &OwnedFd) -> Result<(), Errno> {
    let has = sys::mount_flags(share.as_fd())?;
    let mut flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    for (found, flag) in [
        (StatVfsMountFlags::RDONLY, MsFlags::MS_RDONLY),
        (StatVfsMountFlags::NOATIME, MsFlags::MS_NOATIME),
        (StatVfsMountFlags::NODIRATIME, MsFlags::MS_NODIRATIME),
        (StatVfsMountFlags::RELATIME, MsFlags::MS_RELATIME),
    ] {
        if has.contains(found) {
            flags |= flag;
        }
    }
    let none = None::<&str>;
    mount(none, ".", none, flags, none)
}
