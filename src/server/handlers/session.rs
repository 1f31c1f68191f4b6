//! The messages that begin and end something: version, auth, attach, flush, clunk.

use std::rc::Rc;

use nix::errno::Errno;
use protocol::{
    Rattach, Rauth, Rclunk, Rflush, Rversion, Tattach, Tauth, Tclunk, Tflush, Tversion,
};

use crate::export::{Lookup, acl};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::{Fid, State, XattrDraft};
use crate::server::limits::{MAX_MSIZE, MIN_MSIZE};
use crate::server::placement::{Cost, Site};
use crate::server::redo::Redo;

const DIALECT: &[u8] = b"9P2000.L";

impl Server {
    /// Tversion begins a session: everything of the one before is discarded. An unknown dialect is
    /// answered with "unknown", not with an error (version(5)). Errors: EMSGSIZE for a size that no
    /// session can work with.
    pub(super) fn version<'a>(&self, m: Tversion<'a>) -> Result<Rversion<'a>, Errno> {
        use vhost_user::Handler;
        self.reset();
        let msize = m.msize.min(MAX_MSIZE);
        if m.version != DIALECT {
            log::warn!(
                "the guest asks for \"{}\", and there is only 9P2000.L: mount with \
                 version=9p2000.L",
                // A dialect's name is short.
                m.version[..m.version.len().min(32)].escape_ascii()
            );
            return Ok(Rversion {
                msize,
                version: b"unknown",
            });
        }
        if msize < MIN_MSIZE {
            return Err(Errno::EMSGSIZE);
        }
        self.set_msize(msize);
        log::debug!("a session begins, msize {msize}");
        Ok(Rversion {
            msize,
            version: DIALECT,
        })
    }

    /// Tauth: the socket is the authentication; no other is required. Errors: EOPNOTSUPP, which
    /// tells a client that it may attach without.
    pub(super) fn auth(&self, _: Tauth<'_>) -> Result<Rauth, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Tattach gives a fid for the share, or for the directory below it that `aname` names.
    pub(super) fn attach(&self, m: Tattach<'_>, redo: Redo) -> Result<Rattach, Errno> {
        if self.session.msize.get() == 0 {
            return Err(Errno::EPROTO);
        }
        if m.afid != protocol::NOFID {
            return Err(Errno::EBADF);
        }
        self.undo_fid(m.fid, redo);
        self.session.fids.check_free(m.fid)?;
        self.room()?;
        let export = &self.export;
        let user = export.identity().ids().uids.to_host(m.n_uname)?;
        let stopping = self.session.requests.stopping();
        let find = |lookup| export.directory_below(m.aname, stopping, lookup);
        let top = export.root().id().device;
        let (root, stat) = self.with_descriptors(|| {
            if !self.placement.is_remote(top) {
                match self.placement.call_at(Site::Worker, || find(Lookup::Local)) {
                    Err(Errno::EAGAIN) => {}
                    result => return result,
                }
            }
            // Behind a mount point it is not known yet who must answer.
            self.placement
                .call_at(Site::Remote, || find(Lookup::Blocking))
        })?;
        let root = self.admit(root, None, top)?;
        self.session
            .fids
            .insert(m.fid, user, root.clone(), State::Walked(root))?;
        self.evict_if_needed();
        self.explain_removed();
        Ok(Rattach {
            qid: self.qid(&stat),
        })
    }

    /// Tflush never fails, and is answered after the request that it names: one that waits for a
    /// lock ends without a reply, any other is allowed to finish.
    pub(super) fn flush(&self, m: Tflush, own_tag: u16) -> Result<Rflush, Errno> {
        if m.oldtag != own_tag {
            self.session.requests.flush(m.oldtag);
        }
        Ok(Rflush {})
    }

    /// Tclunk releases a fid, even if it answers with an error. For a fid from xattrcreate the
    /// attribute is set now.
    pub(super) fn clunk(&self, m: Tclunk, redo: Redo) -> Result<Rclunk, Errno> {
        let Some(fid) = self.take_fid(m.fid, redo)? else {
            return Ok(Rclunk {});
        };
        let set = fid.draft().map(|draft| self.set_xattr(&fid, &draft, redo));
        if let Some(Err(error)) = set {
            self.session.fids.forget_later(fid);
            return Err(error);
        }
        fid.forget();
        self.release(fid);
        Ok(Rclunk {})
    }

    /// Removes a fid that the guest gives back; None if the process before has done that. Errors: EBADF
    /// for an unknown number.
    pub(super) fn take_fid(&self, fid: u32, redo: Redo) -> Result<Option<Rc<Fid>>, Errno> {
        match self.session.fids.remove(fid) {
            Err(Errno::EBADF) if redo.is_possible() => Ok(None),
            result => result.map(Some),
        }
    }

    /// Removes the fid that the process before may have made for the request.
    pub(super) fn undo_fid(&self, fid: u32, redo: Redo) {
        if !redo.is_possible() {
            return;
        }
        if let Ok(fid) = self.session.fids.remove(fid) {
            fid.forget();
            self.release(fid);
        }
    }

    fn set_xattr(&self, fid: &Fid, draft: &XattrDraft, redo: Redo) -> Result<(), Errno> {
        let XattrDraft {
            inode,
            name,
            flags,
            size,
            value,
            ..
        } = draft;
        let mut value = value.borrow().clone();
        if value.len() != *size {
            return Err(Errno::EINVAL);
        }
        acl::to_host(name.as_bytes(), &mut value, self.export.identity().ids())?;
        let (export, node) = (&self.export, &*self.hold(inode)?);
        let removal = draft.is_removal();
        let user = fid.user;
        self.call(
            node.id().device,
            Cost::Change,
            Actor::User(user),
            || match removal {
                true => match export.remove_xattr(node, name, user) {
                    Err(Errno::ENODATA)
                        if redo.is_possible() && redo.has_changed(&node.stat()?) =>
                    {
                        Ok(())
                    }
                    result => result,
                },
                false => match export.set_xattr(node, name, &value, *flags, user) {
                    Err(Errno::EEXIST)
                        if redo.is_possible() && export.xattr(node, name)? == value =>
                    {
                        Ok(())
                    }
                    result => result,
                },
            },
        )
    }
}
