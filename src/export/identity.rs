//! The identity with which the daemon acts on the host.
//!
//! Run by root, the daemon gives new files to the user and group that the guest names. It takes on
//! the caller's file-system ids for the one call that creates the file: the file belongs to nobody
//! else at any moment, and there is nothing to undo. The guest's kernel has decided whether the
//! caller may do it, because it alone knows all groups of its users; with [`Permissions::Host`] the
//! host decides, too. Run by anyone else, everything belongs to that user and is done with that
//! user's rights.

use clap::ValueEnum;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

use super::idmap::IdMap;
use super::sys::{self, CAP_CHOWN, CAP_FSETID, CAP_SETGID, CAP_SETUID, Capabilities};
use super::users::Users;

/// The daemon's own identity, and the means to act as another.
#[derive(Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<u32>,
    /// The capabilities that every thread holds between requests, if the daemon may act for others.
    privileged: Option<Capabilities>,
    /// The users of the host, if it decides what they may do.
    users: Option<Users>,
    ids: Ids,
}

/// Who decides what a user of the guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Permissions {
    /// The guest's kernel.
    Guest,
    /// The host as well, for its own users with these ids and their groups in /etc/group.
    Host,
}

/// How the guest's ids correspond to the host's.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
}

/// The owner of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id, or [`protocol::NONUNAME`] for the daemon's own.
    pub uid: u32,
    /// Group id, or `u32::MAX` for the daemon's own.
    pub gid: u32,
}

impl Identity {
    /// Finds out what the process may do, and drops what it must not use by accident: without
    /// CAP_FSETID in effect the kernel clears the set-id bits of a file that is written, as it does
    /// for any user. Threads started later inherit this. `users` are given if the host decides what
    /// they may do.
    pub fn of_process(ids: Ids, users: Option<Users>) -> Result<Identity, Errno> {
        let capabilities = Capabilities::of_thread()?;
        let may_impersonate = geteuid().is_root()
            && capabilities.effective(CAP_SETUID)
            && capabilities.effective(CAP_SETGID)
            && capabilities.effective(CAP_CHOWN);
        let privileged = if may_impersonate {
            let base = capabilities.without_effective(CAP_FSETID);
            base.apply_to_thread()?;
            Some(base)
        } else {
            None
        };
        Ok(Identity {
            uid: geteuid(),
            gid: getegid(),
            groups: getgroups()?.into_iter().map(Gid::as_raw).collect(),
            privileged,
            users,
            ids,
        })
    }

    /// How the guest's ids correspond to the host's.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Whether the daemon may act for other users than its own.
    pub fn acts_for_others(&self) -> bool {
        self.privileged.is_some()
    }

    /// The users and the groups that a daemon which acts only for itself can give a file to.
    pub fn own_ids(&self) -> (Vec<u32>, Vec<u32>) {
        let groups = self.groups.iter().copied();
        let groups = groups.chain([self.gid.as_raw()]).collect();
        (vec![self.uid.as_raw()], groups)
    }

    /// Whether [`Identity::acting`] makes a difference for this user.
    pub fn is_other(&self, uid: u32) -> bool {
        self.privileged.is_some()
            && self.users.is_some()
            && uid != protocol::NONUNAME
            && uid != self.uid.as_raw()
    }

    /// Runs `call` with the rights that `uid` has on the host, if the host decides: the user's ids
    /// and groups, and no capability over files. Call it on a worker. Errors: EINVAL for an id that
    /// the host cannot represent.
    pub fn acting<T>(&self, uid: u32, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        if !self.is_other(uid) {
            return call();
        }
        let _restore = self.impersonate(Owner { uid, gid: u32::MAX })?;
        call()
    }

    /// Whether [`Identity::creating`] takes on ids other than the daemon's own for `owner`.
    pub fn takes_on(&self, owner: Owner) -> bool {
        let own = [owner.uid, owner.gid]
            .into_iter()
            .zip([self.uid.as_raw(), self.gid.as_raw()])
            .all(|(id, own)| id == protocol::NONUNAME || id == own);
        self.privileged.is_some() && !own
    }

    /// Runs `make`, which creates one file, so that the file belongs to `owner`. Call it on a
    /// worker if [`Identity::takes_on`] says so: the ids are those of the thread. Errors: EINVAL
    /// for an id that the host cannot represent.
    pub fn creating<T>(
        &self,
        owner: Owner,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let _restore = match self.takes_on(owner) {
            true => self.impersonate(owner)?,
            false => None,
        };
        make()
    }

    /// Runs `change`, an explicit change of mode or of the access control list, which the guest's
    /// kernel has allowed `uid`, with the right to keep set-id bits. If the host decides, call it
    /// within [`Identity::acting`].
    pub fn changing_mode<T>(
        &self,
        uid: u32,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(base) = self.privileged.filter(|_| !self.is_other(uid)) else {
            return change();
        };
        let _restore = Restore(self);
        base.with_effective(CAP_FSETID).apply_to_thread()?;
        change()
    }

    /// Runs `change`, a change of content or owner after which the kernel may clear set-id bits of
    /// a file of `group`, so that it clears those that it would clear after `uid`'s own change:
    /// none for root, and for anyone else not set-group-id without group execute if the user is in
    /// the file's group. Only the guest's kernel knows who is in the group. If the host decides,
    /// call it within [`Identity::acting`].
    pub fn changing_content<T>(
        &self,
        uid: u32,
        group: u32,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if self.is_other(uid) {
            return change();
        }
        if uid == self.uid.as_raw() {
            return self.changing_mode(uid, change);
        }
        let _restore = self.impersonate(Owner {
            uid: protocol::NONUNAME,
            gid: group,
        })?;
        change()
    }

    /// Takes on another's ids, those that are given and allowed.
    fn impersonate(&self, who: Owner) -> Result<Option<Restore<'_>>, Errno> {
        let Some(base) = &self.privileged else {
            return Ok(None);
        };
        let restore = Restore(self);
        let mut gid = (who.gid != u32::MAX).then_some(who.gid);
        let by_host = self.users.as_ref().filter(|_| self.is_other(who.uid));
        if let Some(users) = by_host {
            let groups = users.groups(who.uid);
            sys::set_groups(groups.map_or(&[], |groups| &groups.supplementary))?;
            // A user whom the host does not know is in none of its groups.
            gid = gid.or(Some(groups.map_or(NOGROUP, |groups| groups.primary)));
        }
        if let Some(gid) = gid {
            setfsgid(Gid::from_raw(gid));
            // The call returns no error: asking with an invalid id tells which is in force.
            if setfsgid(Gid::from_raw(u32::MAX)).as_raw() != gid {
                return Err(Errno::EINVAL);
            }
        }
        if who.uid != protocol::NONUNAME {
            setfsuid(Uid::from_raw(who.uid));
            if setfsuid(Uid::from_raw(u32::MAX)).as_raw() != who.uid {
                return Err(Errno::EINVAL);
            }
            // Leaving user 0 dropped most capabilities over files. If the guest's kernel has
            // checked the caller's permission, the host's directories need not grant it again. If
            // the host decides, all others are dropped, too, except the one that it takes to come
            // back.
            match by_host {
                None => base.apply_to_thread()?,
                Some(_) => base.with_effective_only(CAP_SETGID).apply_to_thread()?,
            }
        }
        Ok(Some(restore))
    }
}

/// The group of users that are in none (the kernel's overflow gid).
const NOGROUP: u32 = 65534;

/// Restores the daemon's own identity in this thread, also after a panic.
struct Restore<'a>(&'a Identity);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let Restore(identity) = self;
        setfsuid(identity.uid);
        setfsgid(identity.gid);
        let groups = match identity.users {
            Some(_) => sys::set_groups(&identity.groups),
            None => Ok(()),
        };
        // Returning to user 0 raised every permitted file capability, CAP_FSETID among them.
        let base = identity.privileged.unwrap_or_default();
        if let Err(error) = groups.and_then(|()| base.apply_to_thread()) {
            // Neither can fail for a thread that was allowed to do the opposite. One in an unknown
            // state must not serve anyone.
            log::error!("cannot restore the identity of a worker: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Each test runs on a thread of its own, whose ids and capabilities end with it.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_new_file_belongs_to_its_owner_at_once() {
        on_a_thread(|| {
            let identity = Identity::of_process(Ids::default(), None).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let owner = Owner {
                uid: 1234,
                gid: 5678,
            };
            let made = identity.creating(owner, || {
                std::fs::write(&path, "x").map_err(super::super::errno_of)
            });
            made.unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            if geteuid().is_root() {
                assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
            } else {
                assert_eq!(metadata.uid(), geteuid().as_raw());
            }
            // The thread is itself again.
            assert_eq!(setfsuid(Uid::from_raw(u32::MAX)), geteuid());
            assert_eq!(setfsgid(Gid::from_raw(u32::MAX)), getegid());
        });
    }

    #[test]
    fn nobody_in_particular_is_the_daemon() {
        on_a_thread(|| {
            let identity = Identity::of_process(Ids::default(), None).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let owner = Owner {
                uid: protocol::NONUNAME,
                gid: u32::MAX,
            };
            identity
                .creating(owner, || {
                    std::fs::write(&path, "x").map_err(super::super::errno_of)
                })
                .unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().uid(), geteuid().as_raw());
        });
    }

    #[test]
    fn set_id_bits_fall_on_write_and_stay_on_chmod() {
        on_a_thread(|| {
            let identity = Identity::of_process(Ids::default(), None).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            std::fs::write(&path, "x").unwrap();
            let set_mode = || {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
                std::fs::set_permissions(&path, mode).map_err(super::super::errno_of)
            };
            identity.changing_mode(0, set_mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o6755);
            std::fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"y"))
                .unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
        });
    }
}
