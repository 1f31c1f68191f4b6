//! Rules of the kernel (landlock(7)) that leave the daemon no file but the share's: inside of chroot(2), and
//! for users who get neither that nor namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::child::{self, Step, at};
use super::{Error, Inside, Role};
use crate::export::errno_of;

/// The newest rules that are known here. An older kernel keeps those of them that it knows.
const NEWEST: ABI = ABI::V6;

/// Makes the child that is the daemon. Errors: the kernel knows no such rules; nothing has changed
/// then.
pub fn enter(share: &OwnedFd) -> Result<Role, Error> {
    child::fork(CloneFlags::empty(), "none", || {
        at(Step::Landlock, restrict(share.as_fd()))?;
        let share = at(Step::Root, share.try_clone().map_err(errno_of))?;
        Ok(Inside {
            share,
            landlock: true,
        })
    })
}

/// From now on this thread, and those that it starts, find no file outside of the share, use no
/// network, and send no signal to others. Errors: ENOSYS if the kernel has no such rules, or they are
/// switched off.
pub fn restrict(share: BorrowedFd<'_>) -> Result<(), Errno> {
    match restriction(share) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        Ok(RulesetStatus::NotEnforced) => Err(Errno::ENOSYS),
        // What it can be is a descriptor too many.
        Err(_) => Err(Errno::last()),
    }
}

fn restriction(share: BorrowedFd<'_>) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let status = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(share, all))?
        .restrict_self()?;
    Ok(status.ruleset)
}
