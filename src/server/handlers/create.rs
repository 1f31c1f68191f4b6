//! Tmkdir, Tmknod, Tsymlink and Treadlink: files that are not opened when they are made.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{SFlag, makedev, mkdirat, mknodat};
use nix::unistd::symlinkat;
use protocol::{Qid, Rmkdir, Rmknod, Rreadlink, Rsymlink, Tmkdir, Tmknod, Treadlink, Tsymlink};

use super::directory::symlink;
use crate::export::{Lookup, Name, Node, permissions};
use crate::server::Server;

impl Server {
    /// Tmkdir makes a directory. Errors: EEXIST, EROFS, those of mkdir(2).
    pub(super) fn mkdir(&self, m: Tmkdir<'_>) -> Result<Rmkdir, Errno> {
        let qid = self.make(m.dfid, m.name, m.gid, |directory, name| {
            mkdirat(directory, name.as_c_str(), permissions(m.mode))
        })?;
        Ok(Rmkdir { qid })
    }

    /// Tmknod makes a device, a fifo, a socket or an empty regular file. Errors: EINVAL for
    /// another type, EROFS, those of mknod(2): EPERM where the daemon may not make devices.
    pub(super) fn mknod(&self, m: Tmknod<'_>) -> Result<Rmknod, Errno> {
        let kind = match m.mode & libc::S_IFMT {
            // Some clients leave the type of a regular file away.
            0 | libc::S_IFREG => SFlag::S_IFREG,
            libc::S_IFIFO => SFlag::S_IFIFO,
            libc::S_IFSOCK => SFlag::S_IFSOCK,
            libc::S_IFCHR => SFlag::S_IFCHR,
            libc::S_IFBLK => SFlag::S_IFBLK,
            _ => return Err(Errno::EINVAL),
        };
        let device = makedev(m.major.into(), m.minor.into());
        let qid = self.make(m.dfid, m.name, m.gid, |directory, name| {
            mknodat(
                directory,
                name.as_c_str(),
                kind,
                permissions(m.mode),
                device,
            )
        })?;
        Ok(Rmknod { qid })
    }

    /// Tsymlink makes a symbolic link. Its target is the guest's text and means nothing here.
    /// Errors: ENOENT for an empty target or one with a NUL, EROFS, those of symlink(2).
    pub(super) fn symlink(&self, m: Tsymlink<'_>) -> Result<Rsymlink, Errno> {
        let target = CString::new(m.target).map_err(|_| Errno::ENOENT)?;
        let qid = self.make(m.dfid, m.name, m.gid, |directory, name| {
            symlinkat(target.as_c_str(), directory, name.as_c_str())
        })?;
        Ok(Rsymlink { qid })
    }

    /// Treadlink: the target of a symbolic link. Errors: EINVAL for any other file.
    pub(super) fn readlink<'a>(
        &self,
        m: Treadlink,
        target: &'a mut Vec<u8>,
    ) -> Result<Rreadlink<'a>, Errno> {
        let node = self.node(m.fid)?;
        let link = symlink(&node)?;
        *target = self.blocking(|| readlinkat(link, c""))?.into_vec();
        Ok(Rreadlink { target })
    }

    /// Makes one file in the directory `dfid`, owned by the fid's user and `gid`, and returns its
    /// qid.
    fn make(
        &self,
        dfid: u32,
        name: &[u8],
        gid: u32,
        make: impl FnOnce(&Node, &Name) -> Result<(), Errno> + Send,
    ) -> Result<Qid, Errno> {
        let fid = self.session.fids.get(dfid)?;
        let node = self.node_of(&fid)?;
        let directory = node.directory()?;
        let name = Name::for_new(name)?;
        self.export.writable()?;
        let owner = self.owner(&fid, gid)?;
        let identity = self.export.identity();
        let stat = self.blocking(|| {
            identity.creating(owner, || make(directory, &name))?;
            directory
                .child(&name, Lookup::Blocking)
                .map(|(_, stat)| stat)
        })?;
        Ok(self.qid(&stat))
    }
}
