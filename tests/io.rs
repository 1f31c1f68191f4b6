//! Tlopen, Tlcreate, Tread, Twrite, Tfsync: the content of files.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use common::{BINARY, Guest, NO_ID, impossible_names, is_root, mode_of, pattern, refused};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use protocol::{NONUNAME, Rmessage, Tmessage, Tread, getattr, open};
use stub_guest::client::twrite;
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Shape};

#[test]
fn reads_return_what_the_host_wrote() {
    let mut guest = Guest::new();
    let content = pattern(1_000_000);
    guest.file("file", &content);
    let fid = guest.open("file", open::RDONLY);
    let size = content.len();
    // Around the borders of zero copy (1024), of pages, and of the end.
    let ranges = [
        (0, 0),
        (0, 1),
        (3, 1024),
        (3, 1025),
        (0, 4096),
        (1, 4095),
        (1, 4097),
        (4095, 4098),
        (12_345, 499_989),
        (0, 499_989),
        (size - 1, 1),
        (size - 1, 100),
        (size - 5000, 9000),
        (size, 1),
        (size, 4096),
        (size + 1, 5000),
        (1 << 40, 10),
    ];
    for (offset, count) in ranges {
        let data = guest.client.read(fid, offset as u64, count as u32).unwrap();
        let expected = &content[offset.min(size)..(offset + count).min(size).max(offset.min(size))];
        assert!(
            data == expected,
            "{count} bytes at {offset}: {} came",
            data.len()
        );
    }
}

#[test]
fn every_shape_of_chain_carries_the_same_bytes() {
    let mut guest = Guest::new();
    let content = pattern(60_000);
    guest.file("in", &content);
    // So small that the smallest pieces still fit into the ring.
    let attach = Attach {
        msize: 32_768,
        ..Attach::default()
    };
    guest.root = guest.client.mount(&attach).unwrap();
    for indirect in [false, true] {
        for zero_copy in [false, true] {
            for tight in [false, true] {
                for split in [0, 1000, 4096] {
                    guest.client.set_shape(Shape {
                        indirect,
                        tight,
                        zero_copy,
                        split,
                    });
                    let what = format!("{:?}", guest.client.shape());
                    let read = guest.client.read_file(guest.root, "in").unwrap();
                    assert!(read == content, "{what}");
                    guest
                        .client
                        .write_file(guest.root, "out", &content)
                        .unwrap();
                    assert!(fs::read(guest.path("out")).unwrap() == content, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_read_is_clamped_to_msize_and_to_the_room() {
    let mut guest = Guest::new();
    guest.file("file", pattern(100_000));
    let root = guest
        .client
        .mount(&Attach {
            msize: 8192,
            ..Attach::default()
        })
        .unwrap();
    guest.client.walk(root, 9, &["file"]).unwrap();
    guest.client.lopen(9, open::RDONLY).unwrap();
    // FreeBSD asks for as much as msize.
    for count in [8192, 8181, u32::MAX, 100_000] {
        let message = Tmessage::Read(Tread {
            fid: 9,
            offset: 0,
            count,
        });
        let mut frame = Vec::new();
        message.encode(5, &mut frame).unwrap();
        let handle = guest.client.submit_frame(&frame, 20_000).unwrap();
        let reply = guest.client.wait(handle).unwrap();
        assert_eq!(reply.frame().len(), 8192, "count {count}");
        assert!(
            reply.payload() == &pattern(100_000)[..8181],
            "count {count}"
        );
        // Less room than asked for.
        let handle = guest.client.submit_frame(&frame, 500).unwrap();
        assert_eq!(
            guest.client.wait(handle).unwrap().payload(),
            &pattern(100_000)[..489]
        );
    }
}

#[test]
fn writes_arrive_on_the_host() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    let fid = guest.open("file", open::RDWR);
    let mut expected = Vec::new();
    for (offset, count) in [
        (0usize, 10usize),
        (10, 1024),
        (1034, 1025),
        (5, 4096),
        (9000, 499_977),
        (600_000, 1),
        (2, 0),
    ] {
        let data: Vec<u8> = pattern(count)
            .iter()
            .map(|byte| byte ^ offset as u8)
            .collect();
        assert_eq!(
            guest.client.write(fid, offset as u64, &data).unwrap() as usize,
            count
        );
        if count > 0 {
            let size = expected.len().max(offset + count);
            expected.resize(size, 0);
            expected[offset..offset + count].copy_from_slice(&data);
        }
        assert!(
            fs::read(&path).unwrap() == expected,
            "{count} bytes at {offset}"
        );
    }
    assert!(guest.client.read(fid, 1000, 300_000).unwrap() == expected[1000..301_000]);
}

#[test]
fn a_write_beyond_the_largest_offset_is_an_error() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let result = guest.client.write(fid, offset, b"abc");
        let code = result.as_ref().err().and_then(stub_guest::Error::errno);
        assert!(
            matches!(
                code.map(Errno::from_raw),
                Some(Errno::EINVAL | Errno::EFBIG | Errno::EOVERFLOW)
            ),
            "{offset:#x}: {result:?}"
        );
        let result = guest.client.read(fid, offset, 3);
        assert!(
            matches!(&result, Err(stub_guest::Error::Errno(_)))
                || result.as_ref().is_ok_and(Vec::is_empty),
            "{result:?}"
        );
    }
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"x");
}

#[test]
fn an_access_mode_is_kept() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let reader = guest.open("file", open::RDONLY);
    refused(guest.client.write(reader, 0, b"x"), Errno::EBADF);
    let writer = guest.open("file", open::WRONLY);
    refused(guest.client.read(writer, 0, 10), Errno::EBADF);
    guest.client.write(writer, 0, b"C").unwrap();
    let both = guest.open("file", open::RDWR);
    guest.client.write(both, 1, b"O").unwrap();
    assert_eq!(guest.client.read(both, 0, 10).unwrap(), b"COntent");
    assert_eq!(fs::read(path).unwrap(), b"COntent");
    let none = guest.walk("file");
    refused(guest.client.lopen(none, 3), Errno::EINVAL);
}

#[test]
fn io_needs_an_open_fid() {
    let mut guest = Guest::new();
    guest.file("file", "content");
    let fid = guest.walk("file");
    refused(guest.client.read(fid, 0, 10), Errno::EBADF);
    refused(guest.client.write(fid, 0, b"x"), Errno::EBADF);
    refused(guest.client.fsync(fid, 0), Errno::EBADF);
    guest.client.lopen(fid, open::RDONLY).unwrap();
    refused(guest.client.lopen(fid, open::RDONLY), Errno::EINVAL);
    refused(
        guest.client.lcreate(fid, "n", open::RDWR, 0o644, 0),
        Errno::EINVAL,
    );
}

#[test]
fn lopen_answers_with_the_qid_and_no_iounit() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.walk("file");
    let qid = guest.client.getattr(fid, getattr::ALL).unwrap().qid;
    let reply = guest.client.lopen(fid, open::RDWR).unwrap();
    assert_eq!((reply.qid, reply.iounit), (qid, 0));
}

#[test]
fn lopen_truncates_and_appends() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let append = guest.open("file", open::WRONLY | open::APPEND);
    // The offset does not matter then, and what the host appends meanwhile stays.
    guest.client.write(append, 0, b"-one").unwrap();
    fs::write(&path, "shorter").unwrap();
    guest.client.write(append, 0, b"-two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"shorter-two");
    guest.open("file", open::WRONLY | open::TRUNC);
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn lopen_knows_the_wire_s_flags() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("file", "x");
    // O_DIRECTORY, O_NOFOLLOW, O_LARGEFILE, O_CLOEXEC and so on have the wire's own values.
    guest.open(
        "dir",
        open::RDONLY | open::DIRECTORY | open::NONBLOCK | open::LARGEFILE | open::CLOEXEC,
    );
    guest.open(
        "file",
        open::RDWR | open::NOFOLLOW | open::LARGEFILE | open::SYNC | open::NOATIME,
    );
    let fid = guest.open(
        "file",
        open::RDWR | open::DSYNC | open::DIRECT | open::NOCTTY | open::FASYNC,
    );
    // Direct I/O is the guest's business: buffers of any size work.
    guest.client.write(fid, 0, b"odd").unwrap();
    assert_eq!(guest.client.read(fid, 1, 2).unwrap(), b"dd");
    // CREATE and EXCL belong to lcreate.
    guest.open("file", open::RDWR | open::CREATE | open::EXCL);
    let file = guest.walk("file");
    refused(
        guest.client.lopen(file, open::RDONLY | open::DIRECTORY),
        Errno::ENOTDIR,
    );
}

#[test]
fn a_directory_is_not_written_or_read_as_a_file() {
    let mut guest = Guest::new();
    guest.dir("dir");
    for flags in [open::WRONLY, open::RDWR, open::RDONLY | open::TRUNC] {
        let fid = guest.walk("dir");
        refused(guest.client.lopen(fid, flags), Errno::EISDIR);
    }
    let fid = guest.open("dir", open::RDONLY);
    refused(guest.client.read(fid, 0, 100), Errno::EISDIR);
    let written = guest.client.write(fid, 0, b"x");
    let code = written
        .as_ref()
        .err()
        .and_then(stub_guest::Error::errno)
        .map(Errno::from_raw);
    assert!(
        matches!(code, Some(Errno::EISDIR | Errno::EBADF)),
        "{written:?}"
    );
    guest.client.fsync(fid, 0).unwrap();
}

#[test]
fn special_files_are_not_opened_on_the_host() {
    let mut guest = Guest::new();
    nix::unistd::mkfifo(&guest.path("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    let _listener = UnixListener::bind(guest.path("sock")).unwrap();
    let mut names = vec!["fifo", "sock"];
    if is_root() {
        let mode = Mode::from_bits_truncate(0o666);
        let null = nix::sys::stat::makedev(1, 3);
        if nix::sys::stat::mknod(
            &guest.path("null"),
            nix::sys::stat::SFlag::S_IFCHR,
            mode,
            null,
        )
        .is_ok()
        {
            names.push("null");
        }
    }
    for name in names {
        for flags in [open::RDONLY, open::WRONLY, open::RDWR | open::NONBLOCK] {
            let fid = guest.walk(name);
            refused(guest.client.lopen(fid, flags), Errno::ENXIO);
        }
        // Nor through a create without EXCL.
        let dir = guest.walk("");
        refused(
            guest.client.lcreate(dir, name, open::RDWR, 0o644, 0),
            Errno::ENXIO,
        );
    }
    let kind = fs::symlink_metadata(guest.path("fifo"))
        .unwrap()
        .file_type();
    assert!(kind.is_fifo());
}

#[test]
fn lcreate_makes_and_opens() {
    let mut guest = Guest::new();
    let fid = guest.walk("");
    let reply = guest
        .client
        .lcreate(fid, "new", open::RDWR, 0o640, NO_ID)
        .unwrap();
    assert_eq!(reply.iounit, 0);
    // The fid is the open file now.
    guest.client.write(fid, 0, b"content").unwrap();
    assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
    let stat = guest.client.getattr(fid, getattr::ALL).unwrap();
    assert_eq!((stat.qid.path, stat.size), (reply.qid.path, 7));
    let path = guest.path("new");
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(mode_of(&path), 0o640);
    refused(guest.client.readdir(fid, 0, 4000), Errno::ENOTDIR);
}

#[test]
fn lcreate_keeps_every_permission_bit_and_no_other() {
    let mut guest = Guest::new();
    // The daemon's own umask must not matter; Linux may send the type with the mode.
    for (name, mode, expected) in [
        ("all", 0o777, 0o777),
        ("none", 0o000, 0o000),
        ("typed", libc::S_IFREG | 0o666, 0o666),
        ("sticky", 0o1644, 0o1644),
        ("setuid", 0o4755, 0o4755),
    ] {
        let fid = guest.walk("");
        guest
            .client
            .lcreate(fid, name, open::WRONLY, mode, NO_ID)
            .unwrap();
        // Open for writing, whatever the mode says of later.
        guest.client.write(fid, 0, b"x").unwrap();
        let found = mode_of(&guest.path(name));
        // A write clears set-id bits.
        assert_eq!(found, expected & !0o6000, "{name}: {found:o}");
    }
}

#[test]
fn lcreate_gives_the_file_to_the_caller() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    let uid = 4711;
    let root = guest.client.alloc_fid();
    guest.client.attach(root, "user", "", uid).unwrap();
    guest.client.walk::<&str>(root, 90, &[]).unwrap();
    guest
        .client
        .lcreate(90, "theirs", open::RDWR, 0o600, 815)
        .unwrap();
    let host = fs::metadata(guest.path("theirs")).unwrap();
    assert_eq!((host.uid(), host.gid()), (uid, 815));
    // A fid of nobody in particular: the daemon's user.
    let fid = guest.walk("");
    guest
        .client
        .lcreate(fid, "ours", open::RDWR, 0o600, 0)
        .unwrap();
    assert_eq!(fs::metadata(guest.path("ours")).unwrap().uid(), 0);
}

#[test]
fn a_user_without_rights_on_the_host_s_directory_may_create() {
    // The guest's kernel has checked permissions; the daemon acts with its own.
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    let dir = guest.dir("dir");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let root = guest.client.alloc_fid();
    guest.client.attach(root, "user", "", 4711).unwrap();
    guest.client.walk(root, 90, &["dir"]).unwrap();
    guest
        .client
        .lcreate(90, "file", open::RDWR, 0o644, 4711)
        .unwrap();
    assert_eq!(fs::metadata(dir.join("file")).unwrap().uid(), 4711);
}

#[test]
fn lcreate_of_what_exists() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let mode = mode_of(&path);
    guest.dir("dir");
    std::os::unix::fs::symlink("nowhere", guest.path("link")).unwrap();
    let fid = guest.walk("");
    for name in ["file", "dir", "link"] {
        refused(
            guest
                .client
                .lcreate(fid, name, open::RDWR | open::EXCL, 0o644, 0),
            Errno::EEXIST,
        );
    }
    refused(
        guest.client.lcreate(fid, "dir", open::RDWR, 0o644, 0),
        Errno::EISDIR,
    );
    refused(
        guest.client.lcreate(fid, "link", open::RDWR, 0o644, 0),
        Errno::ELOOP,
    );
    assert!(!guest.path("nowhere").exists());
    // The fid is still the directory. Without EXCL the file is opened as it is.
    guest
        .client
        .lcreate(fid, "file", open::RDWR, 0o600, 0)
        .unwrap();
    assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
    assert_eq!(mode_of(&path), mode, "an existing file keeps its mode");
    let fid = guest.walk("");
    guest
        .client
        .lcreate(fid, "file", open::RDWR | open::TRUNC, 0o600, 0)
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn lcreate_refuses_names_and_places() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    for (name, errno) in impossible_names() {
        let fid = guest.walk("");
        refused(guest.client.lcreate(fid, name, open::RDWR, 0o644, 0), errno);
    }
    let fid = guest.walk("");
    refused(
        guest.client.lcreate(fid, ".", open::RDWR, 0o644, 0),
        Errno::EEXIST,
    );
    refused(
        guest.client.lcreate(fid, "..", open::RDWR, 0o644, 0),
        Errno::EEXIST,
    );
    refused(guest.client.lcreate(fid, "new", 3, 0o644, 0), Errno::EINVAL);
    let file = guest.walk("file");
    refused(
        guest.client.lcreate(file, "new", open::RDWR, 0o644, 0),
        Errno::ENOTDIR,
    );
    // In a directory that is gone.
    guest.dir("dir");
    let dir = guest.walk("dir");
    fs::remove_dir(guest.path("dir")).unwrap();
    refused(
        guest.client.lcreate(dir, "new", open::RDWR, 0o644, 0),
        Errno::ENOENT,
    );
    assert_eq!(fs::read_dir(guest.daemon.share()).unwrap().count(), 1);
}

#[test]
fn fsync_works_on_files_and_directories() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    guest.client.write(fid, 0, b"y").unwrap();
    guest.client.fsync(fid, 0).unwrap();
    guest.client.fsync(fid, 1).unwrap();
    let root = guest.open("", open::RDONLY);
    guest.client.fsync(root, 0).unwrap();
}

#[test]
fn many_requests_at_once_do_not_mix() {
    let mut guest = Guest::new();
    guest.client.set_shape(Shape {
        indirect: true,
        ..Shape::default()
    });
    let block = 16 * 1024;
    let content = pattern(100 * block);
    guest.file("in", &content);
    let (input, output) = (guest.open("in", open::RDONLY), {
        guest.file("out", "");
        guest.open("out", open::WRONLY)
    });
    let client = &mut guest.client;
    let mut expected = std::collections::HashMap::new();
    for n in 0..100 {
        let read = Tmessage::Read(Tread {
            fid: input,
            offset: (n * block) as u64,
            count: block as u32,
        });
        expected.insert(client.submit(&read, &[]).unwrap(), n);
    }
    let mut blocks = vec![Vec::new(); 100];
    for _ in 0..100 {
        let completion = client.wait_any().unwrap();
        blocks[expected[&completion.tag]] = completion.reply.unwrap().payload().to_vec();
    }
    assert!(blocks.concat() == content);
    let mut tags = Vec::new();
    for (n, block_of) in blocks.iter().enumerate() {
        let offset = (n * block) as u64;
        tags.push(
            client
                .submit(&twrite(output, offset, block_of), block_of)
                .unwrap(),
        );
    }
    for tag in tags {
        let reply = client.wait(tag).unwrap();
        assert!(
            matches!(reply.message().unwrap(), Rmessage::Write(r) if r.count as usize == block)
        );
    }
    assert!(fs::read(guest.path("out")).unwrap() == content);
}

#[test]
fn the_largest_msize_moves_in_one_request() {
    let mut guest = Guest::new();
    let content = pattern(512_000 - 23);
    guest.file("file", "");
    let fid = guest.open("file", open::RDWR);
    assert_eq!(
        guest.client.write(fid, 0, &content).unwrap() as usize,
        content.len()
    );
    assert!(guest.client.read(fid, 0, 512_000 - 11).unwrap() == content);
}

#[test]
fn a_sparse_file_reads_as_zeros() {
    let mut guest = Guest::new();
    fs::File::create(guest.path("hole"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let fid = guest.open("hole", open::RDONLY);
    assert_eq!(
        guest.client.read(fid, (1 << 29) + 1, 100_000).unwrap(),
        vec![0; 100_000]
    );
    assert_eq!(
        guest.client.read(fid, (1 << 30) - 10, 100_000).unwrap(),
        vec![0; 10]
    );
}

#[test]
fn a_readonly_share_is_read_only() {
    let (mut guest, share) = Guest::readonly(|share| {
        fs::write(share.join("file"), "content").unwrap();
    });
    assert_eq!(
        guest.client.read_file(guest.root, "file").unwrap(),
        b"content"
    );
    for flags in [open::WRONLY, open::RDWR, open::RDONLY | open::TRUNC] {
        let fid = guest.walk("file");
        refused(guest.client.lopen(fid, flags), Errno::EROFS);
    }
    let fid = guest.walk("");
    refused(
        guest.client.lcreate(fid, "new", open::RDWR, 0o644, 0),
        Errno::EROFS,
    );
    refused(guest.client.attach(fid, "x", "", NONUNAME), Errno::EINVAL);
    assert_eq!(fs::read(share.path().join("file")).unwrap(), b"content");
    assert_eq!(fs::read_dir(share.path()).unwrap().count(), 1);
}

/// A truncation changes the file even if it is opened for reading.
#[test]
fn a_readonly_share_is_not_truncated() {
    for model in ["passthrough", "none", "mapped-xattr", "mapped-file"] {
        let share = tempfile::tempdir().unwrap();
        let path = share.path().join("file");
        fs::write(&path, "content").unwrap();
        if model == "mapped-xattr" && !common::host_set(&path, "user.test", b"") {
            continue;
        }
        let launch = Launch::new(BINARY).share(share.path()).arg("--readonly");
        let mut guest = Guest::on(launch.arg(format!("--security-model={model}")));
        for access in [open::RDONLY, open::WRONLY, open::RDWR] {
            let fid = guest.walk("file");
            let flags = access | open::TRUNC;
            refused(guest.client.lopen(fid, flags), Errno::EROFS);
            let directory = guest.walk("");
            let made = guest.client.lcreate(directory, "file", flags, 0o644, 0);
            refused(made, Errno::EROFS);
            assert_eq!(fs::read(&path).unwrap(), b"content", "{model}");
        }
    }
}
