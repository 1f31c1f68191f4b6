//! Rules of the kernel (landlock(7)) that give the daemon access to the share's files only: inside
//! chroot(2), and for users who may use neither that nor namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;

use super::Inside;
use super::child::{Entered, Step, at};
use crate::export::errno_of;

/// The newest rules that are used. An older kernel enforces those of them that it knows.
const NEWEST: ABI = ABI::V6;

/// Restricts this process. Errors: the kernel has no such rules.
pub fn enter(share: &OwnedFd) -> Entered<Inside> {
    at(Step::Landlock, restrict(share.as_fd()))?;
    let share = at(Step::Root, share.try_clone().map_err(errno_of))?;
    Ok(Inside {
        share,
        landlock: true,
    })
}

/// From now on this thread, and the threads that it starts, can use no file outside the share and
/// no network, and cannot send signals to other processes. Errors: ENOSYS if the kernel has no such
/// rules, or they are disabled.
pub fn restrict(share: BorrowedFd<'_>) -> Result<(), Errno> {
    match restriction(share) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        Ok(RulesetStatus::NotEnforced) => Err(Errno::ENOSYS),
        // The only possible cause is a missing descriptor.
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
