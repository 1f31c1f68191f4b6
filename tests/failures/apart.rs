//! What is on a file system that answers needs nothing that one that hangs has taken: no worker, and
//! no lock of a security model.

use nix::errno::Errno;
use protocol::{
    NONUNAME, Names, Tgetattr, Tlcreate, Tlink, Tmessage, Tmkdir, Trename, Trenameat, Tunlinkat,
    Twalk, getattr, open, unlink,
};
use stub_guest::Client;
use stub_guest::daemon::Launch;

use super::Host;
use super::common::NO_ID;
use super::faulty::Op;

const MODELS: [&str; 3] = ["passthrough", "mapped-xattr", "mapped-file"];

/// A host where three requests at the most may wait for file systems in something else's hands.
fn host(model: &str) -> Option<Host> {
    let prepare = |launch: Launch| {
        let launch = launch.arg("--threads").arg("4");
        launch.arg("--security-model").arg(model)
    };
    let mut host = Host::new(prepare)?;
    let root = host.root;
    host.client.mkdir(root, "dir", 0o700, NO_ID).unwrap();
    let dir = host.walk("dir");
    host.client.mkdir(dir, "sub", 0o700, NO_ID).unwrap();
    Some(host)
}

fn post(client: &mut Client, message: &Tmessage<'_>) -> u16 {
    let tag = client.submit(message, &[]).unwrap();
    client.kick().unwrap();
    tag
}

/// What the guest does with the file system that answers.
fn use_the_other(client: &mut Client, root: u32) {
    for name in ["", "/", "dir/sub", "dir/sub/../.."] {
        let fid = client.alloc_fid();
        client.attach(fid, "", name, NONUNAME).unwrap();
        client.getattr(fid, getattr::ALL).unwrap();
        client.clunk(fid).unwrap();
    }
    let sub = client.walk_path(root, "dir/sub").unwrap();
    for (from, way) in [(sub, ".."), (sub, "../.."), (root, "dir/sub/../../dir")] {
        let fid = client.walk_path(from, way).unwrap();
        client.getattr(fid, getattr::ALL).unwrap();
        client.clunk(fid).unwrap();
    }
    client.mkdir(sub, "made", 0o700, NO_ID).unwrap();
    client.symlink(sub, "link", "target", NO_ID).unwrap();
    let link = client.walk_path(sub, "link").unwrap();
    assert_eq!(client.readlink(link).unwrap(), b"target");
    client.write_file(sub, "new", b"content").unwrap();
    client.renameat(sub, "new", root, "moved").unwrap();
    assert_eq!(client.read_file(root, "moved").unwrap(), b"content");
    let moved = client.walk_path(root, "moved").unwrap();
    client.link(sub, moved, "hard").unwrap();
    assert_eq!(client.read_dir(sub, "").unwrap().len(), 5);
    for (directory, name, flags) in [
        (sub, "made", unlink::REMOVEDIR),
        (sub, "link", 0),
        (sub, "hard", 0),
        (root, "moved", 0),
    ] {
        client.unlinkat(directory, name, flags).unwrap();
    }
    for fid in [sub, link, moved] {
        client.clunk(fid).unwrap();
    }
}

/// Asserts that the other file system can be used while these requests hang, which go on then.
#[track_caller]
fn assert_apart(host: &mut Host, tags: &[u16], what: &str) {
    let root = host.root;
    use_the_other(&mut host.client, root);
    for tag in tags {
        assert!(!host.client.is_done(*tag).unwrap(), "{what}");
    }
    host.faulty.release();
    for tag in tags {
        host.client.wait(*tag).unwrap();
    }
}

#[test]
fn nothing_else_waits_when_all_hang_that_may() {
    for model in MODELS {
        let Some(mut host) = host(model) else {
            return;
        };
        let (fid, mask) = (host.walk("faulty/file"), getattr::ALL);
        host.faulty.hang(Op::Getattr);
        let message = Tmessage::Getattr(Tgetattr { fid, mask });
        let tags = [(); 8].map(|()| post(&mut host.client, &message));
        host.faulty.wait_for_hanging(3);
        assert_apart(&mut host, &tags, model);
    }
}

#[test]
fn nothing_else_waits_when_all_hang_that_enter() {
    for model in MODELS {
        let Some(mut host) = host(model) else {
            return;
        };
        let root = host.root;
        host.faulty.hang(Op::Getattr);
        let tags = [(); 8].map(|()| {
            let mut names = Names::new();
            assert!(names.push(b"faulty"));
            let newfid = host.client.alloc_fid();
            let fid = root;
            let walk = Tmessage::Walk(Twalk { fid, newfid, names });
            post(&mut host.client, &walk)
        });
        host.faulty.wait_for_hanging(3);
        assert_apart(&mut host, &tags, model);
    }
}

#[test]
fn no_name_waits_for_one_that_is_being_made() {
    for model in MODELS {
        let Some(mut host) = host(model) else {
            return;
        };
        let dfid = host.walk("faulty");
        host.faulty.hang(Op::Mkdir);
        let mkdir = Tmessage::Mkdir(Tmkdir {
            dfid,
            name: b"made",
            mode: 0o700,
            gid: NO_ID,
        });
        let tag = post(&mut host.client, &mkdir);
        host.faulty.wait_for_hanging(1);
        assert_apart(&mut host, &[tag], model);
    }
}

/// Posts a request that is about both file systems: with fids of the share's root, of the file that is
/// on the one that hangs, and of its directory.
type Post = fn(&mut Client, u32, u32, u32) -> u16;

const ACROSS: &[(&str, Errno, Post)] = &[
    ("lcreate", Errno::EISDIR, |c, root, _, _| {
        let fid = c.walk_path(root, "").unwrap();
        let create = Tlcreate {
            fid,
            name: b"faulty",
            flags: open::RDWR,
            mode: 0o600,
            gid: NO_ID,
        };
        post(c, &Tmessage::Lcreate(create))
    }),
    ("link", Errno::EXDEV, |c, dfid, fid, _| {
        let name = b"linked";
        post(c, &Tmessage::Link(Tlink { dfid, fid, name }))
    }),
    ("rename", Errno::EXDEV, |c, dfid, fid, _| {
        let name = b"moved";
        post(c, &Tmessage::Rename(Trename { fid, dfid, name }))
    }),
    ("renameat", Errno::EXDEV, |c, newdirfid, _, olddirfid| {
        let rename = Trenameat {
            olddirfid,
            oldname: b"file",
            newdirfid,
            newname: b"moved",
        };
        post(c, &Tmessage::Renameat(rename))
    }),
    (
        "renameat, in",
        Errno::EXDEV,
        |c, olddirfid, _, newdirfid| {
            let rename = Trenameat {
                olddirfid,
                oldname: b"file",
                newdirfid,
                newname: b"moved",
            };
            post(c, &Tmessage::Renameat(rename))
        },
    ),
    ("renameat, over", Errno::EBUSY, |c, root, _, _| {
        let rename = Trenameat {
            olddirfid: root,
            oldname: b"dir",
            newdirfid: root,
            newname: b"faulty",
        };
        post(c, &Tmessage::Renameat(rename))
    }),
    ("unlinkat", Errno::EBUSY, |c, dirfid, _, _| {
        let unlink = Tunlinkat {
            dirfid,
            name: b"faulty",
            flags: unlink::REMOVEDIR,
        };
        post(c, &Tmessage::Unlinkat(unlink))
    }),
];

#[test]
fn what_is_about_both_is_no_call_on_the_one_that_hangs_where_the_other_waits() {
    for model in MODELS {
        // So few descriptors that some are given up: then what loses its name is looked at before.
        let few = |launch: Launch| {
            let launch = launch.arg("--rlimit-nofile").arg("80");
            launch.arg("--security-model").arg(model)
        };
        let Some(mut host) = Host::new(few) else {
            return;
        };
        let root = host.root;
        host.client.mkdir(root, "dir", 0o700, NO_ID).unwrap();
        for n in 0..100 {
            host.file(&format!("many-{n}"), "");
            let fid = host.walk(&format!("many-{n}"));
            host.client.getattr(fid, getattr::ALL).unwrap();
        }
        for (what, errno, post) in ACROSS {
            let (file, directory) = (host.walk("faulty/file"), host.walk("faulty"));
            host.faulty.hang(Op::Getattr);
            host.faulty.hang(Op::Lookup);
            let tag = post(&mut host.client, root, file, directory);
            host.client.getattr(root, getattr::ALL).unwrap();
            host.client.write_file(root, "new", b"content").unwrap();
            host.faulty.release();
            let answer = host.client.wait(tag).unwrap();
            let answer = answer.message().map(drop).map_err(|error| error.errno());
            assert_eq!(answer, Err(Some(*errno as i32)), "{model}: {what}");
        }
    }
}
