//! Rules of the kernel (landlock(7)) that leave the daemon no file but the share's, for users who get
//! neither namespaces nor chroot(2).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::child::{self, Step};
use super::{Error, Role};

/// The newest rules that are known here. An older kernel keeps those of them that it knows.
const NEWEST: ABI = ABI::V6;

/// Makes the child that is the daemon. Errors: the kernel knows no such rules; nothing has changed
/// then.
pub fn enter(share: &Path) -> Result<Role, Error> {
    child::fork(CloneFlags::empty(), share, "none", || {
        match restrict(share) {
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
            Ok(RulesetStatus::NotEnforced) => Err((Step::Landlock, Errno::ENOSYS)),
            // What it can be is a descriptor too many, or a share that has gone.
            Err(_) => Err((Step::Landlock, Errno::last())),
        }
    })
}

/// From now on this thread, and those that it starts, find no file outside of the share, use no
/// network, and send no signal to others.
fn restrict(share: &Path) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let share = PathFd::new(share).map_err(|_| Errno::last());
    let Ok(share) = share else {
        return Ok(RulesetStatus::NotEnforced);
    };
    let status = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(share, all))?
        .restrict_self()?;
    Ok(status.ruleset)
}
