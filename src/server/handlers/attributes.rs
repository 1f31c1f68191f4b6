//! Tgetattr, Tsetattr and Tstatfs: attributes of a file and of its file system.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::stat::makedev;
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::fstatvfs;
use protocol::{Rgetattr, Rsetattr, Rstatfs, Tgetattr, Time, Tsetattr, Tstatfs, getattr, setattr};

use crate::export::name::NAME_MAX;
use crate::export::{Change, Ids, Stat};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::handle::Handle;
use crate::server::placement::Cost;

/// What Linux takes off msize for the header of a read or write (P9_IOHDRSZ).
const IO_HEADER: u64 = 24;

impl Server {
    /// Tgetattr: everything that the host knows, whatever the request mask. An open or unlinked
    /// file is looked at through its descriptor.
    pub(super) fn getattr(&self, m: Tgetattr) -> Result<Rgetattr, Errno> {
        let file = self.held(&*self.session.fids.get(m.fid)?)?;
        let mut stat = Stat::default();
        self.stat(&file, &mut stat)?;
        let s = &stat.0;
        let ids = self.export.identity().ids();
        let birth = s.stx_mask & libc::STATX_BTIME != 0;
        Ok(Rgetattr {
            valid: getattr::BASIC | if birth { getattr::BTIME } else { 0 },
            qid: self.qid(&stat),
            mode: s.stx_mode.into(),
            uid: ids.uids.to_guest(s.stx_uid),
            gid: ids.gids.to_guest(s.stx_gid),
            nlink: s.stx_nlink.into(),
            rdev: makedev(s.stx_rdev_major.into(), s.stx_rdev_minor.into()),
            size: s.stx_size,
            blksize: self.io_size(s.stx_blksize.into()),
            blocks: s.stx_blocks,
            atime: time(&s.stx_atime),
            mtime: time(&s.stx_mtime),
            ctime: time(&s.stx_ctime),
            btime: time(&s.stx_btime),
            r#gen: 0,
            data_version: 0,
        })
    }

    /// The I/O size to prefer: as many of the file system's blocks as fit in one message.
    fn io_size(&self, block: u64) -> u64 {
        let payload = u64::from(self.session.msize.get()).saturating_sub(IO_HEADER);
        match payload.checked_div(block) {
            Some(blocks @ 1..) => blocks * block,
            _ => block,
        }
    }

    /// Tsetattr changes what `valid` names. Errors: those of chown(2), chmod(2), truncate(2) and
    /// utimensat(2), EROFS; changes before the one that fails are made.
    pub(super) fn setattr(&self, m: Tsetattr) -> Result<Rsetattr, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let file = self.held(&fid)?;
        self.export.writable()?;
        let open = fid.open_file().ok();
        let writable = match open.as_deref().map(|open| &*open.handle) {
            Some(Handle::File(file)) if file.writable => Some(file.fd.as_fd()),
            _ => None,
        };
        let change = change(&m, self.export.identity().ids())?;
        let (export, located, user) = (&self.export, file.located(), fid.user);
        self.call_open(
            located.node.id().device,
            Cost::Change,
            Actor::User(user),
            |more| export.set_attributes(located, writable, &change, user, more),
        )?;
        Ok(Rsetattr {})
    }

    /// Tstatfs: the file system that holds the fid's file.
    pub(super) fn statfs(&self, m: Tstatfs) -> Result<Rstatfs, Errno> {
        let node = self.node(m.fid)?;
        let node = &*node;
        let (statfs, unit) = self.call(node.id().device, Cost::Held, Actor::Daemon, || {
            // The C library's form tells the unit of the counts, but not the type.
            Ok((fstatfs(node)?, fstatvfs(node)?.fragment_size()))
        })?;
        let (major, minor) = node.id().device;
        Ok(Rstatfs {
            kind: statfs.filesystem_type().0 as u32,
            // 9P has one size, and clients take it for the unit of the counts. Some divide by it,
            // so it must not be 0.
            bsize: (unit as u32).max(1),
            blocks: statfs.blocks(),
            bfree: statfs.blocks_free(),
            bavail: statfs.blocks_available(),
            files: statfs.files(),
            ffree: statfs.files_free(),
            fsid: u64::from(major) << 32 | u64::from(minor),
            namelen: (statfs.maximum_name_length() as u32).min(NAME_MAX as u32),
        })
    }
}

/// The changes of a Tsetattr, with the host's ids. Errors: EINVAL for a size or a time that no file
/// has, EPERM for an id that the guest may not use.
fn change(m: &Tsetattr, ids: &Ids) -> Result<Change, Errno> {
    let has = |bit| m.valid & bit != 0;
    let uid = has(setattr::UID).then(|| ids.uids.to_host(m.uid));
    let gid = has(setattr::GID).then(|| ids.gids.to_host(m.gid));
    let size = has(setattr::SIZE).then(|| i64::try_from(m.size).map_err(|_| Errno::EINVAL));
    let times = if has(setattr::ATIME) || has(setattr::MTIME) {
        let atime = new_time(has(setattr::ATIME), has(setattr::ATIME_SET), m.atime)?;
        let mtime = new_time(has(setattr::MTIME), has(setattr::MTIME_SET), m.mtime)?;
        Some([atime, mtime])
    } else {
        None
    };
    Ok(Change {
        uid: uid.transpose()?,
        gid: gid.transpose()?,
        mode: has(setattr::MODE).then_some(m.mode),
        size: size.transpose()?,
        times,
        touch: m.valid == setattr::CTIME,
    })
}

/// A time for utimensat(2): unchanged, the host's now, or a given one.
fn new_time(change: bool, given: bool, time: Time) -> Result<libc::timespec, Errno> {
    let special = |tv_nsec| Ok(libc::timespec { tv_sec: 0, tv_nsec });
    match (change, given) {
        (false, _) => special(libc::UTIME_OMIT),
        (true, false) => special(libc::UTIME_NOW),
        // The special values are not for the guest.
        (true, true) if time.nsec >= 1_000_000_000 => Err(Errno::EINVAL),
        (true, true) => {
            // Seconds before 1970 arrive as two's complement.
            Ok(libc::timespec {
                tv_sec: time.sec as i64,
                tv_nsec: time.nsec as i64,
            })
        }
    }
}

fn time(time: &libc::statx_timestamp) -> Time {
    Time {
        sec: time.tv_sec as u64,
        nsec: time.tv_nsec.into(),
    }
}
