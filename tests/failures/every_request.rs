//! No request, whatever it makes the host do, holds up another when that hangs.

use std::fs;
use std::os::unix::fs::symlink;

use protocol::{
    Tclunk, Tlcreate, Tlink, Tlopen, Tmessage, Tmkdir, Tmknod, Treadlink, Tremove, Trename,
    Trenameat, Tsetattr, Tsymlink, Tunlinkat, Txattrwalk, getattr, lock, open, setattr, unlink,
};
use stub_guest::Client;
use stub_guest::messages::{Lock, tlock};

use super::Host;
use super::common::{NO_ID, no_change};
use super::faulty::Op;

/// What the requests are about.
struct Fids {
    directory: u32,
    file: u32,
    open: u32,
    link: u32,
    /// A fid that can become something else.
    spare: u32,
}

/// Above the fids in use.
const FREE: u32 = 1000;

/// Posts a request.
type Post = fn(&mut Client, &Fids) -> u16;

fn post(client: &mut Client, message: Tmessage<'_>) -> u16 {
    let tag = client.submit(&message, &[]).unwrap();
    client.kick().unwrap();
    tag
}

const POSTS: &[(&str, Op, Post)] = &[
    ("setattr", Op::Setattr, |c, f| {
        let change = Tsetattr {
            valid: setattr::MODE,
            mode: 0o600,
            ..no_change(f.file)
        };
        post(c, Tmessage::Setattr(change))
    }),
    ("truncate", Op::Setattr, |c, f| {
        let change = Tsetattr {
            valid: setattr::SIZE,
            size: 5,
            ..no_change(f.open)
        };
        post(c, Tmessage::Setattr(change))
    }),
    ("lopen", Op::Open, |c, f| {
        let (fid, flags) = (f.spare, open::RDWR);
        post(c, Tmessage::Lopen(Tlopen { fid, flags }))
    }),
    ("lopen of a directory", Op::Opendir, |c, f| {
        let (fid, flags) = (f.directory, open::RDONLY | open::DIRECTORY);
        post(c, Tmessage::Lopen(Tlopen { fid, flags }))
    }),
    ("lock, which opens", Op::Open, |c, f| {
        let lock = Lock::whole(lock::WRLCK);
        post(c, tlock(f.open, 0, &lock))
    }),
    ("lcreate", Op::Create, |c, f| {
        c.walk::<&str>(f.directory, FREE + 1, &[]).unwrap();
        let create = Tlcreate {
            fid: FREE + 1,
            name: b"created",
            flags: open::WRONLY | open::EXCL,
            mode: 0o600,
            gid: NO_ID,
        };
        post(c, Tmessage::Lcreate(create))
    }),
    ("mkdir", Op::Mkdir, |c, f| {
        let (dfid, name, mode, gid) = (f.directory, b"made", 0o700, NO_ID);
        let mkdir = Tmkdir {
            dfid,
            name,
            mode,
            gid,
        };
        post(c, Tmessage::Mkdir(mkdir))
    }),
    ("mknod", Op::Mknod, |c, f| {
        let mknod = Tmknod {
            dfid: f.directory,
            name: b"fifo",
            mode: libc::S_IFIFO | 0o600,
            major: 0,
            minor: 0,
            gid: NO_ID,
        };
        post(c, Tmessage::Mknod(mknod))
    }),
    ("symlink", Op::Symlink, |c, f| {
        let symlink = Tsymlink {
            dfid: f.directory,
            name: b"soft",
            target: b"a target",
            gid: NO_ID,
        };
        post(c, Tmessage::Symlink(symlink))
    }),
    ("link", Op::Link, |c, f| {
        let (dfid, fid, name) = (f.directory, f.file, b"hard");
        post(c, Tmessage::Link(Tlink { dfid, fid, name }))
    }),
    ("readlink", Op::Readlink, |c, f| {
        post(c, Tmessage::Readlink(Treadlink { fid: f.link }))
    }),
    ("unlinkat", Op::Unlink, |c, f| {
        let (dirfid, name, flags) = (f.directory, b"to-unlink", 0);
        let unlinkat = Tunlinkat {
            dirfid,
            name,
            flags,
        };
        post(c, Tmessage::Unlinkat(unlinkat))
    }),
    ("unlinkat of a directory", Op::Rmdir, |c, f| {
        let (dirfid, name, flags) = (f.directory, b"to-rmdir", unlink::REMOVEDIR);
        let unlinkat = Tunlinkat {
            dirfid,
            name,
            flags,
        };
        post(c, Tmessage::Unlinkat(unlinkat))
    }),
    ("remove", Op::Unlink, |c, f| {
        c.walk(f.directory, FREE + 2, &["to-remove"]).unwrap();
        let fid = FREE + 2;
        post(c, Tmessage::Remove(Tremove { fid }))
    }),
    ("renameat", Op::Rename, |c, f| {
        let renameat = Trenameat {
            olddirfid: f.directory,
            oldname: b"to-move",
            newdirfid: f.directory,
            newname: b"moved",
        };
        post(c, Tmessage::Renameat(renameat))
    }),
    ("rename", Op::Rename, |c, f| {
        c.walk(f.directory, FREE + 3, &["to-rename"]).unwrap();
        let (fid, dfid, name) = (FREE + 3, f.directory, b"renamed");
        post(c, Tmessage::Rename(Trename { fid, dfid, name }))
    }),
    ("xattrwalk", Op::Getxattr, |c, f| {
        let walk = Txattrwalk {
            fid: f.file,
            newfid: FREE + 4,
            name: b"user.faulty",
        };
        post(c, Tmessage::Xattrwalk(walk))
    }),
    ("clunk that sets an attribute", Op::Setxattr, |c, f| {
        c.walk::<&str>(f.file, FREE + 5, &[]).unwrap();
        c.xattrcreate(FREE + 5, "user.faulty", 3, 0).unwrap();
        c.write(FREE + 5, 0, b"abc").unwrap();
        let fid = FREE + 5;
        post(c, Tmessage::Clunk(Tclunk { fid }))
    }),
    (
        "clunk that removes an attribute",
        Op::Removexattr,
        |c, f| {
            c.walk::<&str>(f.file, FREE + 6, &[]).unwrap();
            c.xattrcreate(FREE + 6, "user.faulty", 0, protocol::xattr::REPLACE)
                .unwrap();
            let fid = FREE + 6;
            post(c, Tmessage::Clunk(Tclunk { fid }))
        },
    ),
    ("clunk that closes", Op::Flush, |c, f| {
        post(c, Tmessage::Clunk(Tclunk { fid: f.open }))
    }),
];

#[test]
fn no_request_holds_up_another() {
    for (name, op, submit) in POSTS {
        let Some(mut host) = Host::new(|launch| launch) else {
            return;
        };
        for file in ["to-unlink", "to-remove", "to-move", "to-rename"] {
            fs::write(host.faulty.path(file), "").unwrap();
        }
        fs::create_dir(host.faulty.path("to-rmdir")).unwrap();
        symlink("a target", host.faulty.path("link")).unwrap();
        let fids = Fids {
            directory: host.walk("faulty"),
            file: host.walk("faulty/file"),
            open: host.open("faulty/file", open::RDWR),
            link: host.walk("faulty/link"),
            spare: host.walk("faulty/file"),
        };
        let here = host.open("file", open::RDWR);
        host.faulty.hang(*op);
        let tag = submit(&mut host.client, &fids);
        host.faulty.wait_for_hanging(1);
        let root = host.root;
        let meanwhile = host
            .client
            .getattr(here, getattr::ALL)
            .and_then(|_| host.client.fsync(here, 0))
            .and_then(|()| host.client.write_file(root, "new", b"content"));
        meanwhile.unwrap_or_else(|error| panic!("during {name}: {error}"));
        assert!(!host.client.is_done(tag).unwrap(), "{name}");
        host.faulty.release();
        let reply = host.client.wait(tag).unwrap();
        reply
            .message()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(host.client.outstanding(), 0);
    }
}
