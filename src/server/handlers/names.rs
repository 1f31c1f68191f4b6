//! Tlink, Trename, Trenameat, Tunlinkat and Tremove: what happens to names.

use nix::errno::Errno;
use nix::unistd::UnlinkatFlags;
use protocol::{
    Rlink, Rremove, Rrename, Rrenameat, Runlinkat, Tlink, Tremove, Trename, Trenameat, Tunlinkat,
    unlink,
};

use crate::export::{FileKind, Name};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::Fid;
use crate::server::placement::Cost;

impl Server {
    /// Tlink gives the fid's file another name. Errors: EPERM for a directory, EEXIST, EXDEV,
    /// EROFS, ENOENT for a file that has lost its last name, those of link(2).
    pub(super) fn link(&self, m: Tlink<'_>) -> Result<Rlink, Errno> {
        let fid = self.session.fids.get(m.dfid)?;
        let directory = self.directory(m.dfid)?;
        let file = self.held(&*self.session.fids.get(m.fid)?)?;
        let name = Name::for_new(m.name)?;
        self.export.writable()?;
        file.same_mount(&directory)?;
        let (export, directory, file) = (&self.export, &*directory, file.located());
        self.call(
            directory.id().device,
            Cost::Change,
            Actor::User(fid.user),
            || export.link(file, directory, &name),
        )?;
        Ok(Rlink {})
    }

    /// Trename moves the fid's file, wherever it is now, to a name in dfid. Errors: ENOENT if
    /// it has no name any more, EBUSY for the share's root, EROFS, those of rename(2).
    pub(super) fn rename(&self, m: Trename<'_>) -> Result<Rrename, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let node = self.node_of(&fid)?;
        let to = self.session.fids.get(m.dfid)?.target()?.inode().clone();
        let directory = self.directory(m.dfid)?;
        let name = Name::for_rename(m.name)?;
        self.export.writable()?;
        node.same_mount(&directory)?;
        let (export, node, directory) = (&self.export, &*node, &*directory);
        let (before, after) = (self.find_before_removal(), self.find_after_move());
        let (replaced, moved) = self.call(
            directory.id().device,
            Cost::Change,
            Actor::User(fid.user),
            || {
                let (from, old) = export.locate(node)?;
                let replaced = before(directory, &name);
                export.rename(&from, &old, directory, &name)?;
                Ok((replaced, after(directory, &name)))
            },
        )?;
        self.keep_found(replaced);
        self.note_move(moved, &to, &name);
        Ok(Rrename {})
    }

    /// Trenameat moves a name to another. Errors: those of rename(2), EROFS.
    pub(super) fn renameat(&self, m: Trenameat<'_>) -> Result<Rrenameat, Errno> {
        let fid = self.session.fids.get(m.olddirfid)?;
        let from = self.directory(m.olddirfid)?;
        let to = self
            .session
            .fids
            .get(m.newdirfid)?
            .target()?
            .inode()
            .clone();
        let directory = self.directory(m.newdirfid)?;
        let old = Name::for_rename(m.oldname)?;
        let new = Name::for_rename(m.newname)?;
        self.export.writable()?;
        from.same_mount(&directory)?;
        let (export, from, directory) = (&self.export, &*from, &*directory);
        let (before, after) = (self.find_before_removal(), self.find_after_move());
        let (replaced, moved) = self.call(
            directory.id().device,
            Cost::Change,
            Actor::User(fid.user),
            || {
                let replaced = before(directory, &new);
                export.rename(from, &old, directory, &new)?;
                Ok((replaced, after(directory, &new)))
            },
        )?;
        self.keep_found(replaced);
        self.note_move(moved, &to, &new);
        Ok(Rrenameat {})
    }

    /// Tunlinkat removes a name; with REMOVEDIR that of an empty directory. Errors: those of
    /// unlink(2) and rmdir(2), EINVAL for any other flag, EROFS.
    pub(super) fn unlinkat(&self, m: Tunlinkat<'_>) -> Result<Runlinkat, Errno> {
        let fid = self.session.fids.get(m.dirfid)?;
        let directory = self.directory(m.dirfid)?;
        let name = Name::for_removal(m.name)?;
        let flag = match m.flags {
            0 => UnlinkatFlags::NoRemoveDir,
            unlink::REMOVEDIR => UnlinkatFlags::RemoveDir,
            _ => return Err(Errno::EINVAL),
        };
        self.export.writable()?;
        let (export, directory) = (&self.export, &*directory);
        let before = self.find_before_removal();
        let removed = self.call(
            directory.id().device,
            Cost::Change,
            Actor::User(fid.user),
            || {
                let removed = before(directory, &name);
                export.unlink(directory, &name, flag)?;
                Ok(removed)
            },
        )?;
        self.keep_found(removed);
        Ok(Runlinkat {})
    }

    /// Tremove removes the fid's file, wherever it is now, and gives the fid back, also when it
    /// answers with an error. Errors: those of unlink(2) and rmdir(2), ENOENT if the file has no
    /// name any more, EBUSY for the share's root, EROFS.
    pub(super) fn remove(&self, m: Tremove) -> Result<Rremove, Errno> {
        let fid = self.session.fids.remove(m.fid)?;
        let removed = self.remove_file(&fid);
        self.let_go(fid);
        removed.map(|()| Rremove {})
    }

    fn remove_file(&self, fid: &Fid) -> Result<(), Errno> {
        self.export.writable()?;
        let node = self.node_of(fid)?;
        let node = &*node;
        let flag = match node.kind() {
            FileKind::Directory => UnlinkatFlags::RemoveDir,
            _ => UnlinkatFlags::NoRemoveDir,
        };
        let export = &self.export;
        self.call(
            node.id().device,
            Cost::Change,
            Actor::User(fid.user),
            || {
                let (directory, name) = export.locate(node)?;
                export.unlink(&directory, &name, flag)
            },
        )
    }
}
