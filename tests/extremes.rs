//! The largest, the most, and what the host refuses: each as a local program would see it.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{BINARY, Guest, NO_ID, no_change, refused};
use nix::errno::Errno;
use nix::unistd::geteuid;
use protocol::{open, setattr};
use stub_guest::Client;
use stub_guest::daemon::Launch;

#[test]
fn a_hundred_thousand_entries_come_once_while_others_come_and_go() {
    const COUNT: usize = 100_000;
    let mut guest = Guest::new();
    let directory = guest.dir("directory");
    for number in 0..COUNT {
        fs::File::create(directory.join(format!("stays {number}"))).unwrap();
    }
    for number in 0..100 {
        fs::File::create(directory.join(format!("goes {number}"))).unwrap();
    }
    let fid = guest.open("directory", open::RDONLY | open::DIRECTORY);
    let (mut seen, mut offset, mut turn) = (BTreeSet::new(), 0, 0);
    loop {
        let entries = guest.client.readdir(fid, offset, 400_000).unwrap();
        let Some(last) = entries.last() else { break };
        offset = last.offset;
        for entry in entries {
            if entry.name.starts_with(b"stays") {
                assert!(
                    seen.insert(entry.name.clone()),
                    "{:?} came twice",
                    entry.name
                );
            }
        }
        // Between two requests of the guest.
        fs::File::create(directory.join(format!("comes {turn}"))).unwrap();
        let _ = fs::remove_file(directory.join(format!("goes {turn}")));
        turn += 1;
    }
    assert_eq!(seen.len(), COUNT);
    assert!(turn > 3, "all came in {turn} replies");
}

#[test]
fn offsets_go_as_far_as_the_host_s() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    let fid = guest.open("file", open::RDWR);
    let far = 5 << 30;
    guest.client.write(fid, far, b"far away").unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), far + 8);
    assert!(metadata.blocks() * 512 < 1 << 20, "the hole takes no room");
    assert_eq!(guest.client.read(fid, far + 4, 100).unwrap(), b"away");
    assert_eq!(guest.client.read(fid, far - 4, 8).unwrap(), b"\0\0\0\0far ");
    assert_eq!(guest.client.stat(guest.root, "file").unwrap().size, far + 8);

    let host = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let largest = i64::MAX as u64;
    for offset in [1 << 44, 1 << 62, largest - 1, largest, 1 << 63, u64::MAX] {
        let errno = |error: std::io::Error| error.raw_os_error().map(Errno::from_raw);
        // std passes the offset on as it is.
        match host.write_at(b"x", offset) {
            Ok(_) => assert_eq!(guest.client.write(fid, offset, b"x").unwrap(), 1),
            Err(error) => refused(guest.client.write(fid, offset, b"x"), errno(error).unwrap()),
        }
        let mut byte = [0];
        match host.read_at(&mut byte, offset) {
            Ok(count) => assert_eq!(guest.client.read(fid, offset, 1).unwrap(), byte[..count]),
            Err(error) => refused(guest.client.read(fid, offset, 1), errno(error).unwrap()),
        }
        let mut change = no_change(fid);
        (change.valid, change.size) = (setattr::SIZE, offset);
        match host.set_len(offset) {
            Ok(()) => guest.client.setattr(change).unwrap(),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                refused(guest.client.setattr(change), Errno::EINVAL);
            }
            Err(error) => refused(guest.client.setattr(change), errno(error).unwrap()),
        }
    }
}

#[test]
fn a_file_has_as_many_links_as_the_host_allows() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    let links = guest.dir("links");
    let refusal =
        (0..70_000).find_map(|number| fs::hard_link(&path, links.join(number.to_string())).err());
    let Some(error) = refusal else {
        stub_guest::skipped("this file system has no limit of links");
        return;
    };
    assert_eq!(error.raw_os_error(), Some(libc::EMLINK));
    let (fid, root) = (guest.walk("file"), guest.root);
    refused(guest.client.link(root, fid, "one more"), Errno::EMLINK);
}

/// A guest of a share that only the daemon sees, mounted with these options.
fn mounted(options: &str) -> Option<Guest> {
    if !geteuid().is_root() {
        stub_guest::skipped("only root may mount file systems");
        return None;
    }
    let share = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o {options} none \"$SHARE\" && exec \"$0\" \"$@\"");
    let prelude = format!(
        "SHARE='{}'; export SHARE; exec unshare --mount sh -c '{script}' \"$0\" \"$@\"",
        share.path().display()
    );
    let trial = std::process::Command::new("sh")
        .args(["-c", &prelude.replace("exec \"$0\" \"$@\"", "true")])
        .output()
        .unwrap();
    if !trial.status.success() {
        let reason = String::from_utf8_lossy(&trial.stderr).into_owned();
        stub_guest::skipped(format_args!("no tmpfs with {options}: {reason}"));
        return None;
    }
    Some(Guest::on(
        Launch::new(BINARY).share(share.path()).prelude(&prelude),
    ))
}

/// Writes until it is refused, and returns the refusal.
fn fill(client: &mut Client, fid: u32) -> Errno {
    let piece = [1; 4096];
    let mut offset = 0;
    loop {
        match client.write(fid, offset, &piece) {
            Ok(count) => offset += u64::from(count),
            Err(error) => return Errno::from_raw(error.errno().unwrap()),
        }
        assert!(offset < 16 << 20, "nothing is refused");
    }
}

#[test]
fn a_full_file_system_says_so_and_is_of_use_again_after_a_removal() {
    let Some(mut guest) = mounted("size=1m,nr_inodes=20") else {
        return;
    };
    let root = guest.root;
    guest.client.write_file(root, "small", b"small").unwrap();
    guest.client.walk::<&str>(root, 900, &[]).unwrap();
    guest
        .client
        .lcreate(900, "file", open::RDWR, 0o644, NO_ID)
        .unwrap();
    assert_eq!(fill(&mut guest.client, 900), Errno::ENOSPC);
    // What was acknowledged is there.
    let size = guest.client.stat(root, "file").unwrap().size;
    assert_eq!(
        guest.client.read(900, size - 4096, 4096).unwrap(),
        [1; 4096]
    );
    assert_eq!(guest.client.read_file(root, "small").unwrap(), b"small");
    assert_eq!(guest.client.statfs(root).unwrap().bfree, 0);
    guest.client.unlinkat(root, "file", 0).unwrap();
    guest.client.clunk(900).unwrap();
    guest
        .client
        .write_file(root, "another", &[2; 100_000])
        .unwrap();
    // The same for inodes.
    let refusal = (0..30).find_map(|number| {
        guest
            .client
            .mkdir(root, format!("d{number}"), 0o755, NO_ID)
            .err()
    });
    refused::<()>(Err(refusal.unwrap()), Errno::ENOSPC);
}

#[test]
fn a_quota_that_is_used_up_says_so() {
    let Some(mut guest) = mounted("size=8m,usrquota,usrquota_block_hardlimit=1m,mode=1777") else {
        return;
    };
    guest.client.attach(800, "alice", "", 1234).unwrap();
    guest.client.walk::<&str>(800, 900, &[]).unwrap();
    guest
        .client
        .lcreate(900, "file", open::RDWR, 0o644, NO_ID)
        .unwrap();
    assert_eq!(fill(&mut guest.client, 900), Errno::EDQUOT);
}

#[test]
fn a_limit_of_the_size_of_files_is_an_error_not_a_signal() {
    // 8 blocks of 512 bytes.
    let mut guest = Guest::on(Launch::new(BINARY).prelude("ulimit -f 8"));
    let root = guest.root;
    guest.client.walk::<&str>(root, 900, &[]).unwrap();
    guest
        .client
        .lcreate(900, "file", open::RDWR, 0o644, NO_ID)
        .unwrap();
    assert_eq!(fill(&mut guest.client, 900), Errno::EFBIG);
    let mut change = no_change(900);
    (change.valid, change.size) = (setattr::SIZE, 1 << 20);
    refused(guest.client.setattr(change), Errno::EFBIG);
    guest.client.read(900, 0, 4096).unwrap();
}

#[test]
fn open_s_own_refusals() {
    let mut guest = Guest::new();
    guest.file("file", "content");
    std::os::unix::fs::symlink("file", guest.path("link")).unwrap();
    let link = guest.walk("link");
    refused(guest.client.lopen(link, open::RDONLY), Errno::ELOOP);
    let file = guest.walk("file");
    let directory = open::RDONLY | open::DIRECTORY;
    refused(guest.client.lopen(file, directory), Errno::ENOTDIR);
    let root = guest.root;
    guest.client.walk::<&str>(root, 900, &[]).unwrap();
    let exclusive = open::RDWR | open::EXCL;
    refused(
        guest.client.lcreate(900, "file", exclusive, 0o644, NO_ID),
        Errno::EEXIST,
    );
    refused(
        guest.client.lcreate(900, "link", open::RDWR, 0o644, NO_ID),
        Errno::ELOOP,
    );
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"content");
}

#[test]
fn a_value_of_64_kib_is_set_and_read() {
    let Ok(share) = tempfile::tempdir_in("/dev/shm") else {
        stub_guest::skipped("no /dev/shm");
        return;
    };
    let mut guest = Guest::on(Launch::new(BINARY).share(share.path()));
    let path = guest.file("file", "");
    let value = common::pattern(65_536);
    if !common::host_set(&path, "user.large", &value) {
        stub_guest::skipped(format_args!(
            "tmpfs has no such attributes here: {}",
            Errno::last()
        ));
        return;
    }
    let fid = guest.walk("file");
    assert_eq!(
        guest.client.xattrwalk(fid, 900, "user.large").unwrap(),
        65_536
    );
    let mut read = Vec::new();
    while read.len() < value.len() {
        let piece = guest.client.read(900, read.len() as u64, 10_000).unwrap();
        assert!(!piece.is_empty());
        read.extend(piece);
    }
    assert!(read == value);
    guest.client.walk::<&str>(fid, 901, &[]).unwrap();
    guest
        .client
        .xattrcreate(901, "user.another", 65_536, 0)
        .unwrap();
    for (index, piece) in value.chunks(20_000).enumerate() {
        guest
            .client
            .write(901, index as u64 * 20_000, piece)
            .unwrap();
    }
    guest.client.clunk(901).unwrap();
    assert!(common::host_value(&path, "user.another").unwrap() == value);
}

#[test]
fn appended_pieces_of_two_fids_follow_each_other() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    let flags = open::WRONLY | open::APPEND;
    let fids = [guest.open("file", flags), guest.open("file", flags)];
    let mut host = fs::OpenOptions::new().append(true).open(&path).unwrap();
    for round in 0..10u8 {
        for fid in fids {
            // The offset of a file opened for appending does not count.
            guest.client.write(fid, 0, &[round; 3]).unwrap();
        }
        host.write_all(&[round; 2]).unwrap();
    }
    let expected: Vec<u8> = (0..10u8).flat_map(|round| [round; 8]).collect();
    assert_eq!(fs::read(path).unwrap(), expected);
}
