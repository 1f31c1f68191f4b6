//! Requests that change what a fid stands for, at the same time as requests that use it.

mod common;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{Guest, NO_ID};
use nix::errno::Errno;
use protocol::{
    Names, Rmessage, Tclunk, Tgetattr, Tlcreate, Tmessage, Tread, Treaddir, Trename, Trenameat,
    Twalk, Txattrwalk, getattr, open,
};
use stub_guest::{Error, Result};

const ROUNDS: u32 = 2_000;

fn twalk<'a>(fid: u32, newfid: u32, names: &[&'a [u8]]) -> Tmessage<'a> {
    let names = Names::from_slice(names).unwrap();
    Tmessage::Walk(Twalk { fid, newfid, names })
}

fn tgetattr(fid: u32) -> Tmessage<'static> {
    let mask = getattr::BASIC;
    Tmessage::Getattr(Tgetattr { fid, mask })
}

fn tclunk(fid: u32) -> Tmessage<'static> {
    Tmessage::Clunk(Tclunk { fid })
}

/// What came back: something of the reply, or the errno of an Rlerror.
fn outcome<T>(
    reply: Result<Rmessage<'_>>,
    part: impl FnOnce(&Rmessage<'_>) -> Option<T>,
) -> std::result::Result<T, Errno> {
    match reply {
        Err(Error::Errno(code)) => Err(Errno::from_raw(code as i32)),
        Ok(reply) => Ok(part(&reply).unwrap_or_else(|| panic!("not the reply: {reply:?}"))),
        Err(error) => panic!("{error}"),
    }
}

/// Submits all, in an order that differs by round, and waits for all.
fn at_once(
    guest: &mut Guest,
    round: u32,
    messages: &[Tmessage<'_>],
    mut check: impl FnMut(usize, Result<Rmessage<'_>>),
) {
    let turn = round as usize % messages.len();
    let order = (0..messages.len()).map(|index| (index + turn) % messages.len());
    let tags: Vec<_> = order
        .map(|index| (index, guest.client.submit(&messages[index], &[]).unwrap()))
        .collect();
    for (index, tag) in tags {
        let reply = guest.client.wait(tag).unwrap();
        check(index, reply.message());
        guest.client.recycle(reply);
    }
}

#[test]
fn a_fid_that_becomes_a_file_is_a_directory_or_that_file_to_others() {
    let mut guest = Guest::new();
    let directory = guest.dir("directory");
    guest.file("directory/other", "other");
    let other = fs::metadata(directory.join("other")).unwrap().ino();
    let above = fs::metadata(guest.path("")).unwrap().ino();
    let here = fs::metadata(&directory).unwrap().ino();
    let (fid, walked, up, attributes) = (100, 101, 102, 103);
    for round in 0..ROUNDS {
        let root = guest.root;
        guest.client.walk(root, fid, &["directory"]).unwrap();
        let name = round.to_string();
        let create = Tmessage::Lcreate(Tlcreate {
            fid,
            name: name.as_bytes(),
            flags: open::RDWR,
            mode: 0o644,
            gid: NO_ID,
        });
        let list = Tmessage::Xattrwalk(Txattrwalk {
            fid,
            newfid: attributes,
            name: b"",
        });
        let messages = [
            create,
            twalk(fid, walked, &[b"other"]),
            twalk(fid, up, &[b".."]),
            list,
            tgetattr(fid),
        ];
        let mut made = None;
        let mut seen = Vec::new();
        let mut extra = vec![fid];
        at_once(&mut guest, round, &messages, |index, reply| match index {
            0 => {
                let qid = outcome(reply, |reply| match reply {
                    Rmessage::Lcreate(reply) => Some(reply.qid.path),
                    _ => None,
                });
                made = Some(qid.unwrap());
            }
            1 | 2 => {
                let path = outcome(reply, |reply| match reply {
                    Rmessage::Walk(reply) => Some(reply.qids[0].path),
                    _ => None,
                });
                match path {
                    Ok(path) => {
                        assert_eq!(path, [other, above][index - 1]);
                        extra.push([walked, up][index - 1]);
                    }
                    Err(errno) => assert_eq!(errno, Errno::ENOTDIR),
                }
            }
            3 => {
                let size = outcome(reply, |reply| match reply {
                    Rmessage::Xattrwalk(reply) => Some(reply.size),
                    _ => None,
                });
                size.unwrap();
                extra.push(attributes);
            }
            _ => {
                let path = outcome(reply, |reply| match reply {
                    Rmessage::Getattr(reply) => Some(reply.qid.path),
                    _ => None,
                });
                seen.push(path.unwrap());
            }
        });
        let made = made.unwrap();
        assert!(
            seen.iter().all(|path| [here, made].contains(path)),
            "{seen:?}"
        );
        for fid in extra {
            guest.client.clunk(fid).unwrap();
        }
        fs::remove_file(directory.join(&name)).unwrap();
    }
}

#[test]
fn a_clunk_takes_the_fid_away_but_no_read_apart() {
    let mut guest = Guest::new();
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    guest.file("file", &content);
    let fid = 100;
    for round in 0..ROUNDS {
        let root = guest.root;
        guest.client.walk(root, fid, &["file"]).unwrap();
        guest.client.lopen(fid, open::RDONLY).unwrap();
        let count = 60_000;
        let read = |offset| Tmessage::Read(Tread { fid, offset, count });
        let messages = [read(0), tclunk(fid), read(1000), tgetattr(fid)];
        at_once(&mut guest, round, &messages, |index, reply| {
            let result = outcome(reply, |reply| match reply {
                Rmessage::Read(reply) => Some(reply.count),
                Rmessage::Clunk(_) | Rmessage::Getattr(_) => Some(count),
                _ => None,
            });
            match result {
                Ok(got) => assert_eq!(got, count),
                Err(errno) => assert_eq!((errno, index == 1), (Errno::EBADF, false)),
            }
        });
    }
}

#[test]
fn walks_and_renames_see_the_old_or_the_new_name_of_the_same_file() {
    let mut guest = Guest::new();
    for directory in ["a", "b"] {
        guest.dir(directory);
    }
    guest.file("a/file", "the file");
    let inode = fs::metadata(guest.path("a/file")).unwrap().ino();
    let file = guest.walk("a/file");
    let (a, b) = (guest.walk("a"), guest.walk("b"));
    let root = guest.root;
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
        let rename = if round % 4 < 2 {
            Tmessage::Renameat(Trenameat {
                olddirfid: from,
                oldname: b"file",
                newdirfid: to,
                newname: b"file",
            })
        } else {
            Tmessage::Rename(Trename {
                fid: file,
                dfid: to,
                name: b"file",
            })
        };
        let messages = [
            rename,
            twalk(root, 200, &[b"a", b"file"]),
            twalk(root, 201, &[b"b", b"file"]),
            tgetattr(file),
        ];
        let mut made = Vec::new();
        at_once(&mut guest, round, &messages, |index, reply| {
            match reply.unwrap() {
                Rmessage::Renameat(_) | Rmessage::Rename(_) => assert_eq!(index, 0),
                Rmessage::Walk(walk) => match walk.qids.len() {
                    1 => {}
                    _ => {
                        assert_eq!(walk.qids[1].path, inode);
                        made.push(199 + index as u32);
                    }
                },
                Rmessage::Getattr(attributes) => {
                    assert_eq!((attributes.qid.path, attributes.nlink), (inode, 1));
                }
                other => panic!("{index}: {other:?}"),
            }
        });
        for fid in made {
            guest.client.clunk(fid).unwrap();
        }
    }
}

#[test]
fn readers_of_one_directory_fid_do_not_disturb_each_other() {
    let mut guest = Guest::new();
    for number in 0..300 {
        guest.file(&format!("{number:0>40}"), "");
    }
    let fid = guest.open("", open::RDONLY | open::DIRECTORY);
    let whole = guest.client.list(fid, 100_000).unwrap();
    // What every cookie leads to.
    let mut behind: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut cookie = 0;
    for entry in &whole {
        behind.insert(cookie, entry.name.clone());
        cookie = entry.offset;
    }
    let cookies: Vec<u64> = behind.keys().copied().collect();
    for round in 0..ROUNDS / 4 {
        let offsets = [1, 7, 31, 101].map(|step| cookies[(round as usize * step) % cookies.len()]);
        let messages = offsets.map(|offset| {
            let count = 512;
            Tmessage::Readdir(Treaddir { fid, offset, count })
        });
        let tags = messages.map(|message| guest.client.submit(&message, &[]).unwrap());
        for (tag, offset) in tags.into_iter().zip(offsets) {
            let reply = guest.client.wait(tag).unwrap();
            assert!(matches!(reply.message().unwrap(), Rmessage::Readdir(_)));
            let mut entries = protocol::DirEntry::decode_all(reply.payload());
            let first = entries.next().unwrap().unwrap();
            assert_eq!(first.name, behind[&offset]);
            drop(entries);
            guest.client.recycle(reply);
        }
    }
}
