//! Tmkdir, Tmknod, Tsymlink and Treadlink: files that are created without being opened.

use std::ffi::CString;

use nix::errno::Errno;
use nix::sys::stat::makedev;
use protocol::{Qid, Rmkdir, Rmknod, Rreadlink, Rsymlink, Tmkdir, Tmknod, Treadlink, Tsymlink};

use crate::export::{Name, NewFile};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::placement::Cost;
use crate::server::redo::Redo;

impl Server {
    /// Tmkdir creates a directory. Errors: EEXIST, EROFS, those of mkdir(2).
    pub(super) fn mkdir(&self, m: Tmkdir<'_>, redo: Redo) -> Result<Rmkdir, Errno> {
        let directory = NewFile::Directory { mode: m.mode };
        let qid = self.make(m.dfid, m.name, m.gid, &directory, redo)?;
        Ok(Rmkdir { qid })
    }

    /// Tmknod creates a device, a fifo, a socket or an empty regular file. Errors: EINVAL for
    /// another type, EROFS, those of mknod(2): EPERM where the daemon may not create devices.
    pub(super) fn mknod(&self, m: Tmknod<'_>, redo: Redo) -> Result<Rmknod, Errno> {
        let kind = match m.mode & libc::S_IFMT {
            // Some clients omit the type of a regular file.
            0 => libc::S_IFREG,
            kind @ (libc::S_IFREG
            | libc::S_IFIFO
            | libc::S_IFSOCK
            | libc::S_IFCHR
            | libc::S_IFBLK) => kind,
            _ => return Err(Errno::EINVAL),
        };
        let file = NewFile::Node {
            kind,
            mode: m.mode,
            device: makedev(m.major.into(), m.minor.into()),
        };
        let qid = self.make(m.dfid, m.name, m.gid, &file, redo)?;
        Ok(Rmknod { qid })
    }

    /// Tsymlink creates a symbolic link. Its target is the guest's text and means nothing here.
    /// Errors: ENOENT for an empty target or one with a NUL, EROFS, those of symlink(2).
    pub(super) fn symlink(&self, m: Tsymlink<'_>, redo: Redo) -> Result<Rsymlink, Errno> {
        let target = CString::new(m.target).map_err(|_| Errno::ENOENT)?;
        let link = NewFile::Symlink { target: &target };
        let qid = self.make(m.dfid, m.name, m.gid, &link, redo)?;
        Ok(Rsymlink { qid })
    }

    /// Treadlink: the target of a symbolic link. Errors: EINVAL for any other file.
    pub(super) fn readlink<'a>(
        &self,
        m: Treadlink,
        target: &'a mut Vec<u8>,
    ) -> Result<Rreadlink<'a>, Errno> {
        let file = self.held(&*self.session.fids.get(m.fid)?)?;
        let (export, file) = (&self.export, file.located());
        let device = file.node.id().device;
        *target = self.call_open(device, self.cost(Cost::Read), Actor::Daemon, |more| {
            export.readlink(file, more)
        })?;
        Ok(Rreadlink { target })
    }

    /// Creates one file in the directory `dfid`, owned by the fid's user and `gid`, and returns its
    /// qid.
    fn make(
        &self,
        dfid: u32,
        name: &[u8],
        gid: u32,
        file: &NewFile<'_>,
        redo: Redo,
    ) -> Result<Qid, Errno> {
        let fid = self.session.fids.get(dfid)?;
        let directory = self.held(&fid)?;
        directory.directory()?;
        let name = Name::for_new(name)?;
        self.export.writable()?;
        let owner = self.owner(&fid, gid)?;
        let (export, directory) = (&self.export, directory.located());
        let device = directory.node.id().device;
        // Without a free descriptor nothing is created, or it is removed again.
        let stat = self.with_descriptors(|| {
            self.call(device, Cost::Change, Actor::For(owner), || {
                match (export.make(directory, &name, file, owner), redo.since()) {
                    (Err(Errno::EEXIST), Some(since)) => {
                        export.make_again(directory, &name, file, owner, since)
                    }
                    (result, _) => result,
                }
            })
        })?;
        Ok(self.qid(&stat))
    }
}
