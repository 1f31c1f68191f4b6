//! The host's errno reaches the guest, for every operation, and the next try is as good as any.

use nix::errno::Errno;
use protocol::{getattr, open, setattr, unlink};
use stub_guest::daemon::Launch;
use stub_guest::{Client, Error, Result};

use super::Host;
use super::common::{NO_ID, is_root, no_change, refused};
use super::faulty::{Code, Op};

/// Fids on the failing file system.
struct Fids {
    root: u32,
    directory: u32,
    file: u32,
    /// The same file, open.
    open: u32,
    /// The directory, open.
    list: u32,
    link: u32,
}

/// A request that makes the host do one operation.
type Try = fn(&mut Client, &Fids) -> Result<()>;

const TRIES: &[(Op, Try)] = &[
    (Op::Lookup, |c, f| {
        c.walk(f.directory, 900, &["file"])?;
        c.clunk(900)
    }),
    (Op::Getattr, |c, f| {
        c.getattr(f.file, getattr::ALL).map(drop)
    }),
    (Op::Setattr, |c, f| {
        c.setattr(protocol::Tsetattr {
            valid: setattr::MODE,
            mode: 0o600,
            ..no_change(f.file)
        })
    }),
    (Op::Open, |c, f| {
        c.walk::<&str>(f.file, 901, &[])?;
        let opened = c.lopen(901, open::RDONLY);
        c.clunk(901)?;
        opened.map(drop)
    }),
    (Op::Create, |c, f| {
        c.walk::<&str>(f.directory, 902, &[])?;
        let made = c.lcreate(902, "new", open::WRONLY | open::EXCL, 0o600, NO_ID);
        c.clunk(902)?;
        made.map(drop)?;
        c.unlinkat(f.directory, "new", 0)
    }),
    (Op::Read, |c, f| c.read(f.open, 0, 10).map(drop)),
    (Op::Write, |c, f| {
        c.write(f.open, 0, b"0123456789").map(drop)
    }),
    (Op::Fsync, |c, f| c.fsync(f.open, 0)),
    (Op::Mkdir, |c, f| {
        c.mkdir(f.directory, "made", 0o700, NO_ID)?;
        c.unlinkat(f.directory, "made", unlink::REMOVEDIR)
    }),
    (Op::Mknod, |c, f| {
        c.mknod(f.directory, "fifo", libc::S_IFIFO | 0o600, (0, 0), NO_ID)?;
        c.unlinkat(f.directory, "fifo", 0)
    }),
    (Op::Symlink, |c, f| {
        c.symlink(f.directory, "soft", "a target", NO_ID)?;
        c.unlinkat(f.directory, "soft", 0)
    }),
    (Op::Link, |c, f| {
        c.link(f.directory, f.file, "hard")?;
        c.unlinkat(f.directory, "hard", 0)
    }),
    (Op::Readlink, |c, f| c.readlink(f.link).map(drop)),
    (Op::Unlink, |c, f| {
        // There already if it could not be removed the last time.
        let _ = c.mknod(f.directory, "gone", libc::S_IFIFO | 0o600, (0, 0), NO_ID);
        c.unlinkat(f.directory, "gone", 0)
    }),
    (Op::Rename, |c, f| {
        c.renameat(f.directory, "file", f.directory, "moved")?;
        c.renameat(f.directory, "moved", f.directory, "file")
    }),
    (Op::Readdir, |c, f| c.readdir(f.list, 0, 4000).map(drop)),
    (Op::Statfs, |c, f| c.statfs(f.directory).map(drop)),
    (Op::Getxattr, |c, f| {
        c.xattrwalk(f.file, 903, "user.faulty")?;
        c.clunk(903)
    }),
    (Op::Setxattr, |c, f| {
        c.walk::<&str>(f.file, 904, &[])?;
        c.xattrcreate(904, "user.faulty", 3, 0)?;
        c.write(904, 0, b"abc")?;
        c.clunk(904)
    }),
    (Op::Removexattr, |c, f| {
        c.walk::<&str>(f.file, 905, &[])?;
        c.xattrcreate(905, "user.faulty", 0, protocol::xattr::REPLACE)?;
        c.clunk(905)
    }),
];

const ERRORS: [Errno; 8] = [
    Errno::EIO,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::ESTALE,
    Errno::EMFILE,
    Errno::EROFS,
    Errno::ENOMEM,
    // Which no system call returns to a program by itself.
    Errno::ERESTART,
];
/// Numbers that a FUSE file system may return and that mean nothing.
const MEANINGLESS: [i32; 2] = [200, 511];

#[test]
fn every_error_of_the_host_reaches_the_guest() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    std::os::unix::fs::symlink("a target", host.faulty.path("link")).unwrap();
    let fids = Fids {
        root: host.root,
        directory: host.walk("faulty"),
        file: host.walk("faulty/file"),
        open: host.open("faulty/file", open::RDWR),
        list: host.open("faulty", open::RDONLY | open::DIRECTORY),
        link: host.walk("faulty/link"),
    };
    let Host { guest, faulty, .. } = &mut host;
    for (op, attempt) in TRIES {
        for errno in ERRORS {
            faulty.fail(*op, errno);
            let first = attempt(&mut guest.client, &fids).map_err(|error| error.errno());
            let told = match errno {
                // A guest's program would look for the fault in itself.
                Errno::EMFILE => Errno::ENFILE,
                errno => errno,
            };
            assert_eq!(first, Err(Some(told as i32)), "{op:?}");
            // The other file system knows nothing of it.
            guest.client.read_file(fids.root, "file").unwrap();
            faulty.release();
            let second = attempt(&mut guest.client, &fids);
            second.unwrap_or_else(|error| panic!("{op:?} after {errno:?}: {error}"));
        }
        for number in MEANINGLESS {
            faulty.fail(*op, Code(number));
            refused(attempt(&mut guest.client, &fids), Errno::EIO);
            faulty.release();
        }
    }
}

#[test]
fn a_file_that_cannot_be_found_again_has_the_host_s_error_and_is_not_gone() {
    let few = |launch: Launch| {
        let launch = launch.arg("--rlimit-nofile").arg("80");
        launch.arg("--inode-file-handles").arg("never")
    };
    let Some(mut host) = Host::new(few) else {
        return;
    };
    let file = host.walk("faulty/file");
    for n in 0..200 {
        std::fs::write(host.faulty.path(&format!("many-{n}")), "").unwrap();
        let fid = host.walk(&format!("faulty/many-{n}"));
        host.client.getattr(fid, getattr::ALL).unwrap();
    }
    for errno in [Errno::EIO, Errno::ETIMEDOUT] {
        host.faulty.fail(Op::Lookup, errno);
        refused(host.client.getattr(file, getattr::ALL), errno);
        host.faulty.release();
    }
    host.client.getattr(file, getattr::ALL).unwrap();
}

#[test]
fn a_file_system_without_handles_is_out_of_reach_where_they_are_mandatory() {
    for (way, reached) in [("never", true), ("prefer", true), ("mandatory", false)] {
        if way == "mandatory" && !is_root() {
            continue;
        }
        let with = |launch: Launch| launch.arg("--inode-file-handles").arg(way);
        let Some(mut host) = Host::new(with) else {
            return;
        };
        let root = host.root;
        for name in ["faulty", "faulty/file"] {
            match (host.client.walk_path(root, name), reached) {
                (Ok(_), true) => {}
                (Err(Error::Errno(code)), false) if code == Errno::EOPNOTSUPP as u32 => {}
                (other, _) => panic!("{way}: {name}: {other:?}"),
            }
        }
        // The share's own has them.
        assert_eq!(host.client.read_file(root, "file").unwrap(), b"0123456789");
        // What is beside it is seen.
        assert_eq!(host.client.read_dir(root, "").unwrap().len(), 4);
    }
}

#[test]
fn a_file_system_s_size_is_told_in_the_unit_of_its_counts() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fid = host.walk("faulty/file");
    let reply = host.client.statfs(fid).unwrap();
    // Best read in 64 KiB, counted in 4 KiB.
    assert_eq!((reply.bsize, reply.blocks, reply.bfree), (4096, 1000, 900));
}
