//! The messages that begin and end things: version, auth, attach, flush, clunk; malformed frames.

mod common;

use std::os::unix::fs::MetadataExt;

use common::{Guest, is_dir, refused};
use nix::errno::Errno;
use protocol::{
    NOFID, NONUNAME, NOTAG, Rmessage, Tattach, Tclunk, Tflush, Tgetattr, Tmessage, Tread, getattr,
    open,
};
use stub_guest::messages::Version;
use stub_guest::{Attach, Error, Shape};

#[test]
fn version_agrees_on_the_smaller_msize() {
    let mut guest = Guest::new();
    for msize in [4096, 8192, 65_536, 512_000] {
        let agreed = guest.client.version(msize, "9P2000.L").unwrap();
        assert_eq!(
            agreed,
            Version {
                msize,
                version: b"9P2000.L".to_vec()
            }
        );
    }
    let huge = guest.client.version(u32::MAX, "9P2000.L").unwrap();
    assert!(huge.msize >= 512_000 && huge.msize < u32::MAX, "{huge:?}");
}

#[test]
fn an_unknown_dialect_is_answered_with_unknown() {
    let mut guest = Guest::new();
    for dialect in ["9P1776", "", "9P2000.X", "9p2000.l", "9P2000.Lx"] {
        let agreed = guest.client.version(8192, dialect).unwrap();
        assert_eq!(agreed.version, b"unknown", "{dialect}");
        let told = format!("the guest asks for \"{dialect}\"");
        let said = guest.daemon.said(&told).unwrap();
        assert!(said.contains("version=9p2000.L"), "{said}");
    }
    // The session of before is over all the same.
    refused(guest.client.getattr(guest.root, getattr::ALL), Errno::EBADF);
    guest.client.mount(&Attach::default()).unwrap();
}

#[test]
fn an_msize_that_no_session_can_work_with_is_refused() {
    let mut guest = Guest::new();
    for msize in [0, 10, 23, 4095] {
        refused(guest.client.version(msize, "9P2000.L"), Errno::EMSGSIZE);
    }
    guest.client.mount(&Attach::default()).unwrap();
}

#[test]
fn version_may_come_with_any_tag() {
    // FreeBSD sends an ordinary one.
    let mut guest = Guest::new();
    let message = Tmessage::Version(protocol::Tversion {
        msize: 8192,
        version: b"9P2000.L",
    });
    let handle = guest.client.submit_tagged(0, &message, &[]).unwrap();
    let reply = guest.client.wait(handle).unwrap();
    assert!(matches!(reply.message().unwrap(), Rmessage::Version(r) if r.msize == 8192));
}

#[test]
fn a_second_version_forgets_all_fids() {
    let mut guest = Guest::new();
    guest.file("file", "content");
    let fid = guest.open("file", open::RDONLY);
    guest.client.version(8192, "9P2000.L").unwrap();
    for fid in [fid, guest.root] {
        refused(guest.client.getattr(fid, getattr::ALL), Errno::EBADF);
        refused(guest.client.clunk(fid), Errno::EBADF);
    }
    refused(guest.client.read(fid, 0, 10), Errno::EBADF);
    let root = guest.client.mount(&Attach::default()).unwrap();
    assert_eq!(guest.client.read_file(root, "file").unwrap(), b"content");
}

#[test]
fn nothing_works_before_a_version() {
    let mut daemon = stub_guest::Daemon::start(common::BINARY).unwrap();
    let mut client = daemon.client().unwrap();
    let attach = client.attach(1, "nobody", "", NONUNAME);
    assert!(matches!(attach, Err(Error::Errno(_))), "{attach:?}");
    refused(client.walk(1, 2, &["a"]), Errno::EBADF);
    refused(client.clunk(1), Errno::EBADF);
    client.flush(7).unwrap();
    client.mount(&Attach::default()).unwrap();
}

#[test]
fn attach_gives_the_root() {
    let mut guest = Guest::new();
    let qid = guest.client.attach(77, "nobody", "", NONUNAME).unwrap();
    assert!(is_dir(qid));
    let stat = guest.client.getattr(77, getattr::ALL).unwrap();
    assert_eq!(stat.qid, qid);
    let host = std::fs::metadata(guest.daemon.share()).unwrap();
    assert_eq!((stat.mode, stat.uid), (host.mode(), host.uid()));
    // "/" is the same.
    assert_eq!(guest.client.attach(78, "nobody", "/", 0).unwrap(), qid);
}

#[test]
fn attach_may_name_a_directory_below() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.dir("dir/sub");
    guest.file("dir/sub/file", "deep");
    guest.file("secret", "not below");
    for aname in [
        "dir/sub",
        "/dir/sub",
        "dir//sub/",
        "dir/../dir/sub",
        "../../dir/sub",
    ] {
        let fid = guest.client.alloc_fid();
        guest.client.attach(fid, "nobody", aname, NONUNAME).unwrap();
        assert_eq!(
            guest.client.read_file(fid, "file").unwrap(),
            b"deep",
            "{aname}"
        );
        // The way up ends at what was attached.
        let up = guest.client.alloc_fid();
        let qids = guest.client.walk(fid, up, &["..", ".."]).unwrap();
        assert_eq!(
            qids,
            vec![guest.client.getattr(fid, getattr::ALL).unwrap().qid; 2]
        );
        assert!(guest.client.read_file(fid, "../../secret").is_err());
    }
}

#[test]
fn attach_refuses_what_is_not_a_directory_below() {
    let mut guest = Guest::new();
    guest.file("file", "");
    std::os::unix::fs::symlink("/etc", guest.path("link")).unwrap();
    guest.dir("dir");
    std::os::unix::fs::symlink("..", guest.path("dir/up")).unwrap();
    let client = &mut guest.client;
    refused(
        client.attach(50, "nobody", "missing", NONUNAME),
        Errno::ENOENT,
    );
    refused(
        client.attach(50, "nobody", "file", NONUNAME),
        Errno::ENOTDIR,
    );
    refused(
        client.attach(50, "nobody", "file/x", NONUNAME),
        Errno::ENOTDIR,
    );
    refused(client.attach(50, "nobody", "link", NONUNAME), Errno::ELOOP);
    refused(
        client.attach(50, "nobody", "link/ssh", NONUNAME),
        Errno::ELOOP,
    );
    refused(
        client.attach(50, "nobody", "dir/up", NONUNAME),
        Errno::ELOOP,
    );
    refused(
        client.attach(50, "nobody", b"di\0r", NONUNAME),
        Errno::ENOENT,
    );
    refused(
        client.attach(50, "nobody", "x".repeat(256), NONUNAME),
        Errno::ENAMETOOLONG,
    );
    // As long as a path of the host may be, and no longer.
    let long = format!("{}dir", "dir/../".repeat(584));
    refused(
        client.attach(50, "nobody", format!("/////{long}"), NONUNAME),
        Errno::ENAMETOOLONG,
    );
    client
        .attach(49, "nobody", format!("////{long}"), NONUNAME)
        .unwrap();
    // The fid was not made by any of them.
    refused(client.clunk(50), Errno::EBADF);
}

#[test]
fn attach_needs_a_free_fid_and_no_authentication() {
    let mut guest = Guest::new();
    refused(
        guest.client.attach(guest.root, "nobody", "", NONUNAME),
        Errno::EINVAL,
    );
    refused(
        guest.client.attach(NOFID, "nobody", "", NONUNAME),
        Errno::EINVAL,
    );
    let request = Tattach {
        fid: 60,
        afid: 61,
        uname: b"nobody",
        aname: b"",
        n_uname: NONUNAME,
    };
    let reply = guest.client.call(&Tmessage::Attach(request)).unwrap();
    refused(reply.message(), Errno::EBADF);
}

#[test]
fn auth_is_refused() {
    let mut guest = Guest::new();
    refused(guest.client.auth(9, "root", "", 0), Errno::EOPNOTSUPP);
    // It made no fid.
    refused(guest.client.clunk(9), Errno::EBADF);
}

#[test]
fn a_clunk_gives_the_number_back() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let root = guest.root;
    guest.client.walk(root, 40, &["file"]).unwrap();
    guest.client.clunk(40).unwrap();
    refused(guest.client.clunk(40), Errno::EBADF);
    refused(guest.client.getattr(40, getattr::ALL), Errno::EBADF);
    guest.client.walk(root, 40, &["file"]).unwrap();
}

#[test]
fn every_message_refuses_a_fid_that_was_never_made() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (root, gone, new) = (guest.root, 1234, 99);
    let file = guest.walk("file");
    let c = &mut guest.client;
    let lock = stub_guest::messages::Lock::whole(protocol::lock::RDLCK);
    refused(c.walk::<&str>(gone, new, &[]), Errno::EBADF);
    refused(c.lopen(gone, open::RDONLY), Errno::EBADF);
    refused(c.lcreate(gone, "n", open::RDWR, 0o644, 0), Errno::EBADF);
    refused(c.read(gone, 0, 100), Errno::EBADF);
    refused(c.write(gone, 0, b"x"), Errno::EBADF);
    refused(c.remove(gone), Errno::EBADF);
    refused(c.statfs(gone), Errno::EBADF);
    refused(c.getattr(gone, getattr::ALL), Errno::EBADF);
    refused(c.setattr(common::no_change(gone)), Errno::EBADF);
    refused(c.readdir(gone, 0, 4000), Errno::EBADF);
    refused(c.fsync(gone, 0), Errno::EBADF);
    refused(c.lock(gone, 0, &lock), Errno::EBADF);
    refused(c.getlock(gone, &lock), Errno::EBADF);
    refused(c.readlink(gone), Errno::EBADF);
    refused(c.mkdir(gone, "n", 0o755, 0), Errno::EBADF);
    refused(
        c.mknod(gone, "n", libc::S_IFREG | 0o644, (0, 0), 0),
        Errno::EBADF,
    );
    refused(c.symlink(gone, "n", "t", 0), Errno::EBADF);
    refused(c.link(gone, file, "n"), Errno::EBADF);
    refused(c.link(root, gone, "n"), Errno::EBADF);
    refused(c.rename(gone, root, "n"), Errno::EBADF);
    refused(c.rename(file, gone, "n"), Errno::EBADF);
    refused(c.renameat(gone, "file", root, "n"), Errno::EBADF);
    refused(c.renameat(root, "file", gone, "n"), Errno::EBADF);
    refused(c.unlinkat(gone, "file", 0), Errno::EBADF);
    refused(c.xattrwalk(gone, new, ""), Errno::EBADF);
    refused(c.xattrcreate(gone, "user.a", 1, 0), Errno::EBADF);
    assert_eq!(std::fs::read_dir(guest.daemon.share()).unwrap().count(), 1);
}

#[test]
fn flush_never_fails() {
    let mut guest = Guest::new();
    for oldtag in [0, 1, 500, NOTAG] {
        guest.client.flush(oldtag).unwrap();
    }
    // Of itself.
    let request = Tmessage::Flush(Tflush { oldtag: 33 });
    let handle = guest.client.submit_tagged(33, &request, &[]).unwrap();
    assert!(matches!(
        guest.client.wait(handle).unwrap().message().unwrap(),
        Rmessage::Flush(_)
    ));
}

#[test]
fn rflush_comes_after_the_request_it_is_about() {
    let mut guest = Guest::new();
    guest.file("file", common::pattern(400_000));
    let fid = guest.open("file", open::RDONLY);
    for round in 0..20 {
        let client = &mut guest.client;
        let read = Tmessage::Read(Tread {
            fid,
            offset: 0,
            count: 300_000,
        });
        let read = client.submit(&read, &[]).unwrap();
        let flush = client
            .submit(&Tmessage::Flush(Tflush { oldtag: read }), &[])
            .unwrap();
        let first = client.wait_any().unwrap();
        assert_eq!(first.tag, read, "round {round}: Rflush came first");
        match first.reply {
            // Answered before the flush got to it, or cancelled.
            Ok(reply) => assert_eq!(reply.payload().len(), 300_000),
            Err(error) => assert!(matches!(error, Error::Flushed), "{error}"),
        }
        let second = client.wait_any().unwrap();
        assert_eq!(second.tag, flush);
        assert!(matches!(
            second.reply.unwrap().message().unwrap(),
            Rmessage::Flush(_)
        ));
    }
}

#[test]
fn a_tag_in_use_is_refused() {
    let mut guest = Guest::new();
    guest.file("file", common::pattern(400_000));
    let fid = guest.open("file", open::RDONLY);
    let client = &mut guest.client;
    let read = Tmessage::Read(Tread {
        fid,
        offset: 0,
        count: 400_000,
    });
    let first = client.submit_tagged(500, &read, &[]).unwrap();
    let second = client
        .submit_tagged(
            500,
            &Tmessage::Getattr(Tgetattr {
                fid,
                mask: getattr::ALL,
            }),
            &[],
        )
        .unwrap();
    // Both are answered; the second is refused only if the first was still under way.
    let first = client.wait(first).unwrap();
    assert_eq!(first.payload().len(), 400_000);
    let second = client.wait(second).unwrap();
    match second.message() {
        Ok(Rmessage::Getattr(r)) => assert_eq!(r.size, 400_000),
        other => refused(other, Errno::EINVAL),
    }
    // The tag is free again.
    let again = client
        .submit_tagged(500, &Tmessage::Clunk(Tclunk { fid }), &[])
        .unwrap();
    client.wait(again).unwrap().message().unwrap();
}

/// Header and body of a frame with the size that it has.
fn frame(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = (7 + body.len()) as u32;
    [&size.to_le_bytes(), &[kind][..], &tag.to_le_bytes(), body].concat()
}

#[test]
fn an_unknown_message_type_is_answered_with_its_tag() {
    let mut guest = Guest::new();
    for kind in [
        0, 1, 5, 6, 7, 9, 13, 99, 101, 106, 107, 112, 114, 124, 126, 128, 255,
    ] {
        let handle = guest
            .client
            .submit_frame(&frame(kind, 4242, &[0; 30]), 64)
            .unwrap();
        let reply = guest.client.wait(handle).unwrap();
        refused(reply.message(), Errno::EOPNOTSUPP);
        assert_eq!(reply.frame()[5..7], 4242u16.to_le_bytes(), "type {kind}");
    }
}

#[test]
fn a_malformed_frame_is_an_error_of_that_request_only() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let walk = |count: u16, names: &[u8]| {
        let fid = guest.root.to_le_bytes();
        frame(
            110,
            7,
            &[&fid, &9u32.to_le_bytes(), &count.to_le_bytes()[..], names].concat(),
        )
    };
    let good = walk(1, b"\x04\0file");
    let mut broken: Vec<(&str, Vec<u8>)> = vec![
        ("a string past the end", walk(1, b"\x05\0file")),
        ("fewer names than counted", walk(2, b"\x04\0file")),
        ("bytes behind the message", walk(1, b"\x04\0filexx")),
        ("17 names", walk(17, &b"\x01\0a".repeat(17))),
        ("an empty body", frame(110, 7, &[])),
        (
            "a write that counts more than it holds",
            frame(
                118,
                7,
                &[[0; 12].as_slice(), &[9, 0, 0, 0], b"abc"].concat(),
            ),
        ),
    ];
    let sized = |size: u32| [&size.to_le_bytes(), &good[4..]].concat();
    broken.push(("a size beyond the chain", sized(good.len() as u32 + 1)));
    broken.push(("a size below the header", sized(6)));
    broken.push(("size 0", sized(0)));
    broken.push(("the largest size", sized(u32::MAX)));
    for (what, bytes) in &broken {
        let handle = guest.client.submit_frame(bytes, 64).unwrap();
        let reply = guest.client.wait(handle).unwrap();
        let message = reply.message();
        let code = message
            .as_ref()
            .err()
            .and_then(Error::errno)
            .map(Errno::from_raw);
        assert!(
            matches!(code, Some(Errno::EPROTO | Errno::EINVAL | Errno::EMSGSIZE)),
            "{what}: {message:?}"
        );
        assert_eq!(reply.frame()[5..7], 7u16.to_le_bytes(), "{what}: the tag");
        refused(guest.client.clunk(9), Errno::EBADF);
    }
    for short in 0..7 {
        let handle = guest.client.submit_frame(&good[..short], 64).unwrap();
        let reply = guest.client.wait(handle).unwrap();
        assert!(reply.message().is_err(), "{short} bytes");
    }
    let handle = guest.client.submit_frame(&good, 64).unwrap();
    guest.client.wait(handle).unwrap().message().unwrap();
}

#[test]
fn a_frame_larger_than_msize_is_refused() {
    let mut guest = Guest::new();
    let root = guest
        .client
        .mount(&Attach {
            msize: 4096,
            ..Attach::default()
        })
        .unwrap();
    guest.file("file", "");
    guest.client.walk(root, 9, &["file"]).unwrap();
    guest.client.lopen(9, open::RDWR).unwrap();
    refused(guest.client.write(9, 0, &[1; 4096]), Errno::EMSGSIZE);
    assert_eq!(
        guest.client.write(9, 0, &[1; 4096 - 23]).unwrap(),
        4096 - 23
    );
    refused(
        guest.client.walk(root, 10, &["x".repeat(5000)]),
        Errno::EMSGSIZE,
    );
}

#[test]
fn a_frame_may_be_spread_over_any_descriptors() {
    let mut guest = Guest::new();
    guest.file("file", common::pattern(300));
    for indirect in [false, true] {
        for split in [1, 3, 7, 11] {
            let shape = Shape {
                indirect: true,
                split: 0,
                ..Shape::default()
            };
            guest.client.set_shape(shape);
            let fid = guest.open("file", open::RDWR);
            guest.client.set_shape(Shape {
                indirect,
                split,
                ..shape
            });
            let data = guest.client.read(fid, 5, 80).unwrap();
            assert_eq!(data, common::pattern(300)[5..85], "pieces of {split}");
            assert_eq!(guest.client.write(fid, 5, &data).unwrap(), 80);
            guest.client.close(fid).unwrap();
        }
    }
    assert_eq!(
        std::fs::read(guest.path("file")).unwrap(),
        common::pattern(300)
    );
}

#[test]
fn a_reply_that_does_not_fit_is_an_error_not_an_overrun() {
    let mut guest = Guest::new();
    // Tgetattr with room for an error only.
    let body = [&guest.root.to_le_bytes()[..], &getattr::ALL.to_le_bytes()].concat();
    for room in [11, 20, 159] {
        let handle = guest
            .client
            .submit_frame(&frame(24, 3, &body), room)
            .unwrap();
        let reply = guest.client.wait(handle).unwrap();
        assert!(
            matches!(reply.message(), Err(Error::Errno(_))),
            "{room} bytes"
        );
    }
    // With room for nothing the request ends without a reply, and the next one works.
    for room in [0, 1, 10] {
        let handle = guest
            .client
            .submit_frame(&frame(24, 3, &body), room)
            .unwrap();
        assert!(
            matches!(guest.client.wait(handle), Err(Error::Flushed)),
            "{room} bytes"
        );
    }
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}
