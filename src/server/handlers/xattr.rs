//! Txattrwalk and Txattrcreate: a fid becomes the value of an attribute.

use std::rc::Rc;

use nix::errno::Errno;
use protocol::{Rxattrcreate, Rxattrwalk, Txattrcreate, Txattrwalk, xattr};

use crate::export::acl;
use crate::export::xattr::{XATTR_SIZE_MAX, XattrName};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::{State, XattrDraft, XattrValue};
use crate::server::placement::Cost;
use crate::server::redo::Redo;

impl Server {
    /// Txattrwalk: newfid reads the value of an attribute as it is now, or with an empty name the
    /// list of all names. Errors: ENODATA if there is none, those of getxattr(2) and listxattr(2);
    /// ENOMEM if the guest reads and writes as many bytes of attributes as it may.
    pub(super) fn xattrwalk(&self, m: Txattrwalk<'_>, redo: Redo) -> Result<Rxattrwalk, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        self.undo_fid(m.newfid, redo);
        self.session.fids.check_free(m.newfid)?;
        let node = self.node_of(&fid)?;
        let (export, node) = (&self.export, &*node);
        let (device, actor) = (node.id().device, Actor::User(fid.user));
        let value = if m.name.is_empty() {
            self.call(device, Cost::Read, actor, || export.xattr_names(node))?
        } else {
            let name = XattrName::new(m.name)?;
            let mut value = self.call(device, Cost::Read, actor, || export.xattr(node, &name))?;
            acl::to_guest(m.name, &mut value, self.export.identity().ids());
            value
        };
        let size = value.len() as u64;
        let _counted = self.session.xattr_bytes.take(value.len())?;
        let recorded = self.session.state.heap().keep(&value);
        let value = State::XattrValue(Rc::new(XattrValue {
            value,
            recorded,
            _counted,
        }));
        let (user, root) = (fid.user, fid.root.clone());
        self.session.fids.insert(m.newfid, user, root, value)?;
        Ok(Rxattrwalk { size })
    }

    /// Txattrcreate: the fid takes `size` bytes by Twrite, and its clunk sets the attribute, or
    /// removes it ([`XattrDraft::is_removal`]). Errors: EINVAL if the fid is open or for unknown
    /// flags, E2BIG, EROFS, ENOMEM as above. Whether the attribute may be set is known only at the
    /// clunk.
    pub(super) fn xattrcreate(
        &self,
        m: Txattrcreate<'_>,
        redo: Redo,
    ) -> Result<Rxattrcreate, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        if redo.is_possible() && fid.draft().is_some() {
            return Ok(Rxattrcreate {});
        }
        let inode = fid.unopened()?;
        let name = XattrName::new(m.name)?;
        if m.flags & !(xattr::CREATE | xattr::REPLACE) != 0 {
            return Err(Errno::EINVAL);
        }
        let size = usize::try_from(m.size)
            .ok()
            .filter(|size| *size <= XATTR_SIZE_MAX)
            .ok_or(Errno::E2BIG)?;
        self.export.writable()?;
        let counted = self.session.xattr_bytes.take(size)?;
        let heap = self.session.state.heap();
        fid.begin_draft(XattrDraft::new(heap, inode, name, m.flags, size, counted))?;
        Ok(Rxattrcreate {})
    }
}
