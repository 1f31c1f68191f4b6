//! Namespaces of its own for the daemon (namespaces(7)), with the share as the only root.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{fchdir, getegid, geteuid, pivot_root};

use super::child::{self, Entered, Step, at};
use super::{Error, Role, keep_descriptors_reachable};

/// Makes the child that is the daemon, with the share as its root. Errors: the step that the
/// kernel refused; nothing has changed then.
pub fn enter(share: &Path) -> Result<Role, Error> {
    let user = !geteuid().is_root();
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if user {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let instead = if user { "landlock" } else { "chroot" };
    child::fork(flags, "/".as_ref(), instead, || {
        if user {
            map_own_ids(uid, gid)?;
        }
        make_root(share)
    })
}

/// In a namespace of users an ordinary user is who they were, and nobody else is there.
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

fn make_root(share: &Path) -> Entered {
    let none = None::<&str>;
    // What the host mounts below the share later is to be seen, and nothing that is done here to
    // be seen by the host.
    at(
        Step::Mounts,
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none),
    )?;
    // Of /proc the own descriptors alone: as a mount of its own there is no way up from it.
    let bind = MsFlags::MS_BIND;
    at(
        Step::Descriptors,
        mount(Some("/proc/self/fd"), "/proc", none, bind, none),
    )?;
    at(
        Step::Mounts,
        mount(Some(share), share, none, bind | MsFlags::MS_REC, none),
    )?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let share = at(Step::Root, open(share, flags, Mode::empty()))?;
    at(Step::Descriptors, keep_descriptors_reachable("/proc"))?;
    let descriptors = at(Step::Descriptors, open(".", flags, Mode::empty()))?;
    at(Step::Root, fchdir(share.as_fd()))?;
    // The old root is stacked on the new one, and then taken away.
    at(Step::Root, pivot_root(".", "."))?;
    at(Step::Root, umount2(".", MntFlags::MNT_DETACH))?;
    at(Step::Root, fchdir(descriptors.as_fd()))
}
