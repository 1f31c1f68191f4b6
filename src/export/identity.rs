//! On whose behalf the daemon acts on the host.
//!
//! Run by root, the daemon gives new files to the user and group that the guest names, by taking
//! on the caller's file-system ids for the one call that makes the file: there is no moment in
//! which the file belongs to someone else, and nothing to undo. Run by anyone else, everything
//! belongs to that user.

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

use super::idmap::IdMap;
use super::sys::{CAP_CHOWN, CAP_FSETID, CAP_SETUID, CAP_SYS_RESOURCE, Capabilities};

/// The daemon's own identity, and its means to act as another.
#[derive(Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// The capabilities that every thread holds between requests, if the daemon may act for others.
    privileged: Option<Capabilities>,
    ids: Ids,
}

/// How the ids of the guest and those of the host correspond.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
}

/// The owner that a new file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id, or [`protocol::NONUNAME`] for the daemon's own.
    pub uid: u32,
    /// Group id, or `u32::MAX` for the daemon's own.
    pub gid: u32,
}

impl Identity {
    /// Finds out what the process may do, and gives up what it must not use by accident: without
    /// CAP_FSETID the kernel clears the set-id bits of a file that is written, as it does for
    /// any user, and without CAP_SYS_RESOURCE quotas hold. Threads started later inherit this.
    pub fn of_process(ids: Ids) -> Result<Identity, Errno> {
        let capabilities = Capabilities::of_thread()?;
        let may_impersonate = geteuid().is_root()
            && capabilities.effective(CAP_SETUID)
            && capabilities.effective(CAP_CHOWN);
        let privileged = if may_impersonate {
            let base = capabilities
                .without_effective(CAP_FSETID)
                .without_effective(CAP_SYS_RESOURCE);
            base.apply_to_thread()?;
            Some(base)
        } else {
            None
        };
        Ok(Identity {
            uid: geteuid(),
            gid: getegid(),
            privileged,
            ids,
        })
    }

    /// How the guest's ids and the host's correspond.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Runs `make`, which makes one file, so that the file belongs to `owner`. To be called on a
    /// worker: the ids are the thread's. Errors: EINVAL for an id that the host cannot represent.
    pub fn creating<T>(
        &self,
        owner: Owner,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(base) = &self.privileged else {
            return make();
        };
        let _restore = self.impersonate(owner, base)?;
        make()
    }

    fn impersonate<'a>(
        &'a self,
        owner: Owner,
        base: &'a Capabilities,
    ) -> Result<Restore<'a>, Errno> {
        let restore = Restore {
            identity: self,
            base,
        };
        if owner.gid != u32::MAX {
            setfsgid(Gid::from_raw(owner.gid));
            // The call has no error: asking with an invalid id tells what is in force.
            if setfsgid(Gid::from_raw(u32::MAX)).as_raw() != owner.gid {
                return Err(Errno::EINVAL);
            }
        }
        if owner.uid != protocol::NONUNAME {
            setfsuid(Uid::from_raw(owner.uid));
            if setfsuid(Uid::from_raw(u32::MAX)).as_raw() != owner.uid {
                return Err(Errno::EINVAL);
            }
            // Leaving user 0 took the file capabilities away. The guest's kernel has checked the
            // caller's permission; the host's directories need not grant it again.
            base.apply_to_thread()?;
        }
        Ok(restore)
    }

    /// Runs `change`, an explicit change of mode that the guest's kernel has allowed, with the
    /// right to keep set-id bits. To be called on a worker.
    pub fn changing_mode<T>(&self, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let Some(base) = &self.privileged else {
            return change();
        };
        let _restore = Restore {
            identity: self,
            base,
        };
        base.with_effective(CAP_FSETID).apply_to_thread()?;
        change()
    }
}

/// Puts the thread back to the daemon's own identity, also when a panic passes.
struct Restore<'a> {
    identity: &'a Identity,
    base: &'a Capabilities,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        setfsuid(self.identity.uid);
        setfsgid(self.identity.gid);
        // Coming back to user 0 raised every permitted file capability, CAP_FSETID among them.
        if let Err(error) = self.base.apply_to_thread() {
            // Lowering capabilities that are permitted cannot fail; a thread in an unknown state
            // must not serve anyone.
            log::error!("cannot restore the capabilities of a worker: {error}");
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
            let identity = Identity::of_process(Ids::default()).unwrap();
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
            let identity = Identity::of_process(Ids::default()).unwrap();
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
            let identity = Identity::of_process(Ids::default()).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            std::fs::write(&path, "x").unwrap();
            let set_mode = || {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
                std::fs::set_permissions(&path, mode).map_err(super::super::errno_of)
            };
            identity.changing_mode(set_mode).unwrap();
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
