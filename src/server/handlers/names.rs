//! Tlink, Trename, Trenameat, Tunlinkat and Tremove: changes of names.

use std::rc::Rc;

use nix::errno::Errno;
use nix::unistd::UnlinkatFlags;
use protocol::{
    Rlink, Rremove, Rrename, Rrenameat, Runlinkat, Tlink, Tremove, Trename, Trenameat, Tunlinkat,
    unlink,
};

use crate::export::{FileKind, InodeKey, Lookup, Name, Node};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::Fid;
use crate::server::inodes::{Dentry, Inode};
use crate::server::placement::Cost;
use crate::server::redo::Redo;

impl Server {
    /// Tlink gives the fid's file another name. Errors: EPERM for a directory, EEXIST, EXDEV,
    /// EROFS, ENOENT for a file that has lost its last name, those of link(2).
    pub(super) fn link(&self, m: Tlink<'_>, redo: Redo) -> Result<Rlink, Errno> {
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
            || match export.link(file, directory, &name) {
                Err(Errno::EEXIST) if redo.is_possible() => is_own(
                    Errno::EEXIST,
                    directory.child_key(&name).as_ref() == Ok(file.node.key())
                        && redo.has_changed(&file.node.stat()?),
                ),
                result => result,
            },
        )?;
        Ok(Rlink {})
    }

    /// Trename moves the fid's file, wherever it is now, to a name in dfid. Errors: ENOENT if
    /// it has no name any more, EBUSY for the share's root, EROFS, those of rename(2).
    pub(super) fn rename(&self, m: Trename<'_>) -> Result<Rrename, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let (export, node) = (&self.export, &*self.node_of(&fid)?);
        self.move_to(&fid, node, m.dfid, m.name, |directory, name| {
            let (from, old) = export.locate(node)?;
            export.rename(&from, &old, directory, name)
        })?;
        Ok(Rrename {})
    }

    /// Trenameat moves a name to another. Errors: those of rename(2), EROFS.
    pub(super) fn renameat(&self, m: Trenameat<'_>, redo: Redo) -> Result<Rrenameat, Errno> {
        let fid = self.session.fids.get(m.olddirfid)?;
        let (export, from) = (&self.export, &*self.directory(m.olddirfid)?);
        let old = Name::for_rename(m.oldname)?;
        self.move_to(&fid, from, m.newdirfid, m.newname, |directory, new| {
            if redo.is_possible() && !is_there(from, &old, redo)? {
                let moved = directory.child_stat(new)?;
                return is_own(Errno::ENOENT, redo.has_changed(&moved));
            }
            export.rename(from, &old, directory, new)
        })?;
        Ok(Rrenameat {})
    }

    /// Moves a file on the mount of `from` to a name in the directory `dfid`, as the fid's user.
    /// `rename` gets both.
    fn move_to(
        &self,
        fid: &Fid,
        from: &Node,
        dfid: u32,
        name: &[u8],
        rename: impl FnOnce(&Node, &Name) -> Result<(), Errno> + Send,
    ) -> Result<(), Errno> {
        let to = self.session.fids.get(dfid)?.target()?.inode().clone();
        let directory = &*self.directory(dfid)?;
        let name = &Name::for_rename(name)?;
        self.export.writable()?;
        from.same_mount(directory)?;
        let (before, after) = (self.find_before_removal(), self.find_after_move());
        let (device, actor) = (directory.id().device, Actor::User(fid.user));
        let (replaced, moved) = self.call(device, Cost::Change, actor, || {
            let replaced = before(directory, name);
            rename(directory, name)?;
            Ok((replaced, after(directory, name)))
        })?;
        self.keep_found(replaced);
        self.note_move(moved, &to, name);
        Ok(())
    }

    /// Tunlinkat removes a name; with REMOVEDIR that of an empty directory. Errors: those of
    /// unlink(2) and rmdir(2), EINVAL for any other flag, EROFS.
    pub(super) fn unlinkat(&self, m: Tunlinkat<'_>, redo: Redo) -> Result<Runlinkat, Errno> {
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
                if redo.is_possible() && !is_there(directory, &name, redo)? {
                    let changed = redo.has_changed(&directory.stat()?);
                    return is_own(Errno::ENOENT, changed).map(|()| None);
                }
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
    pub(super) fn remove(&self, m: Tremove, redo: Redo) -> Result<Rremove, Errno> {
        let Some(fid) = self.take_fid(m.fid, redo)? else {
            return Ok(Rremove {});
        };
        if let Err(error) = self.remove_file(&fid, redo) {
            self.session.fids.forget_later(fid);
            return Err(error);
        }
        fid.forget();
        self.release(fid);
        Ok(Rremove {})
    }

    fn remove_file(&self, fid: &Fid, redo: Redo) -> Result<(), Errno> {
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
                let located = match export.locate(node) {
                    // Without a name: the process before may have removed it.
                    Err(Errno::ENOENT) if redo.is_possible() => {
                        return is_own(Errno::ENOENT, redo.has_changed(&node.stat()?));
                    }
                    located => located,
                };
                let (directory, name) = located?;
                export.unlink(&directory, &name, flag)
            },
        )
    }

    /// Returns a closure that finds the file whose name is about to be removed: found while it
    /// still can be, because a fid of the guest may stand for it. Call it on a worker, and pass its
    /// result to [`Server::keep_found`] afterwards.
    fn find_before_removal(&self) -> impl Fn(&Node, &Name) -> Option<Node> + Send + use<> {
        let needed = self.session.inodes.evicted_count.get() > 0;
        move |directory, name| {
            // A mount point cannot lose its name.
            let found = needed.then(|| directory.child(name, Lookup::Local));
            found?.ok().map(|(node, _)| node)
        }
    }

    /// If the inode that was found had been evicted, it keeps this descriptor.
    fn keep_found(&self, found: Option<Node>) {
        let Some(node) = found else { return };
        match self.session.inodes.get(node.key()) {
            Some(inode) if self.room().is_ok() => drop(self.session.inodes.hold(&inode, node)),
            // This descriptor may be the file's last.
            _ => self.session.inodes.close_queue().unpin(Rc::new(node)),
        }
    }

    /// Returns a closure that finds the file that was moved to a name, if that may be needed to
    /// find it again. Call it on a worker, and pass its result to [`Server::note_move`] afterwards.
    fn find_after_move(&self) -> impl Fn(&Node, &Name) -> Option<InodeKey> + Send + use<> {
        let needed = self.export.locators().by_name();
        move |directory, name| needed.then(|| directory.child_key(name).ok())?
    }

    /// Notes where a file was moved.
    fn note_move(&self, moved: Option<InodeKey>, directory: &Rc<Inode>, name: &Name) {
        if let Some(inode) = moved.and_then(|key| self.session.inodes.get(&key)) {
            inode.moved_to(Dentry {
                directory: directory.clone(),
                name: name.as_bytes().into(),
            });
        }
    }
}

/// Whether a name is what it was when the request came: it exists, and its file was not created later. Errors: those of statx(2), except ENOENT.
fn is_there(directory: &Node, name: &Name, redo: Redo) -> Result<bool, Errno> {
    match directory.child_stat(name) {
        Ok(stat) => Ok(!redo.is_older_than(&stat)),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The result of a request that cannot be carried out because of `error`, unless it was already.
fn is_own(error: Errno, own: bool) -> Result<(), Errno> {
    match own {
        true => Ok(()),
        false => Err(error),
    }
}
