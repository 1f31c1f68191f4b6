//! Tlock and Tgetlock: byte-range locks, between fids and with the host.

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;

use common::{Guest, refused};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use protocol::{Rlock, Rmessage, Tflush, Tmessage, lock, open};
use stub_guest::messages::{Lock, tlock};
use stub_guest::{Attach, Error};

fn range(kind: u8, start: u64, length: u64) -> Lock {
    Lock {
        start,
        length,
        ..Lock::whole(kind)
    }
}

/// The same for another process of the guest.
fn of_process(proc_id: u32, lock: Lock) -> Lock {
    Lock { proc_id, ..lock }
}

/// What stands in the way of a write lock on the host.
fn host_sees(file: &File, start: i64, len: i64) -> i32 {
    let mut probe = host_lock(libc::F_WRLCK, start, len);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut probe)).unwrap();
    i32::from(probe.l_type)
}

fn host_lock(kind: i32, start: i64, len: i64) -> libc::flock {
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    libc::flock {
        l_type,
        l_whence,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn host_file(guest: &Guest) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(guest.path("file"))
        .unwrap()
}

#[test]
fn a_lock_excludes_another_fid_until_it_is_released() {
    let mut guest = Guest::new();
    guest.file("file", "0123456789");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    let write = range(lock::WRLCK, 2, 3);
    assert_eq!(c.lock(a, 0, &write).unwrap(), lock::SUCCESS);
    for overlapping in [
        range(lock::WRLCK, 4, 1),
        range(lock::RDLCK, 0, 0),
        range(lock::WRLCK, 0, 3),
    ] {
        assert_eq!(
            c.lock(b, 0, &of_process(2, overlapping.clone())).unwrap(),
            lock::BLOCKED,
            "{overlapping:?}"
        );
    }
    assert_eq!(
        c.lock(b, 0, &of_process(2, range(lock::WRLCK, 5, 2)))
            .unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        c.lock(a, 0, &range(lock::UNLCK, 2, 3)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        c.lock(b, 0, &of_process(2, write.clone())).unwrap(),
        lock::SUCCESS
    );
}

#[test]
fn readers_share() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDONLY),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    assert_eq!(
        c.lock(a, 0, &Lock::whole(lock::RDLCK)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        c.lock(b, 0, &of_process(2, Lock::whole(lock::RDLCK)))
            .unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        c.lock(b, 0, &of_process(2, Lock::whole(lock::WRLCK)))
            .unwrap(),
        lock::BLOCKED
    );
    c.lock(a, 0, &Lock::whole(lock::UNLCK)).unwrap();
    assert_eq!(
        c.lock(b, 0, &of_process(2, Lock::whole(lock::WRLCK)))
            .unwrap(),
        lock::SUCCESS
    );
}

#[test]
fn the_host_sees_the_guest_s_locks_and_the_guest_the_host_s() {
    let mut guest = Guest::new();
    guest.file("file", "0123456789");
    let fid = guest.open("file", open::RDWR);
    let host = host_file(&guest);
    let c = &mut guest.client;
    c.lock(fid, 0, &range(lock::WRLCK, 0, 4)).unwrap();
    assert_eq!(host_sees(&host, 0, 4), libc::F_WRLCK);
    assert_eq!(host_sees(&host, 4, 4), libc::F_UNLCK);
    fcntl(
        host.as_fd(),
        FcntlArg::F_OFD_SETLK(&host_lock(libc::F_WRLCK, 6, 2)),
    )
    .unwrap();
    assert_eq!(
        c.lock(fid, 0, &range(lock::WRLCK, 5, 5)).unwrap(),
        lock::BLOCKED
    );
    let found = c.getlock(fid, &range(lock::UNLCK, 0, 0)).unwrap();
    assert_eq!((found.kind, found.start, found.length), (lock::WRLCK, 6, 2));
    drop(host);
    assert_eq!(
        c.lock(fid, 0, &range(lock::WRLCK, 5, 5)).unwrap(),
        lock::SUCCESS
    );
}

#[test]
fn a_lock_ends_with_its_fid() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let host = host_file(&guest);
    let fid = guest.open("file", open::RDWR);
    guest
        .client
        .lock(fid, 0, &Lock::whole(lock::WRLCK))
        .unwrap();
    // A clone keeps the file but not the lock.
    guest.client.walk::<&str>(fid, 90, &[]).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    guest.client.clunk(fid).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
    // And with the session.
    guest.client.lopen(90, open::RDWR).unwrap();
    guest.client.lock(90, 0, &Lock::whole(lock::WRLCK)).unwrap();
    guest.client.version(8192, "9P2000.L").unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn a_created_file_gives_its_lock_up_with_its_fid() {
    let mut guest = Guest::new();
    let fid = guest.walk("");
    guest
        .client
        .lcreate(fid, "file", open::RDWR, 0o644, common::NO_ID)
        .unwrap();
    guest.client.walk::<&str>(fid, 90, &[]).unwrap();
    let host = host_file(&guest);
    guest
        .client
        .lock(fid, 0, &Lock::whole(lock::WRLCK))
        .unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    guest.client.clunk(fid).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
    guest.client.clunk(90).unwrap();
}

#[test]
fn getlock_tells_what_is_in_the_way() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    // Linux always asks with UNLCK, and means: of a write lock.
    let probe = of_process(2, range(lock::UNLCK, 10, 90));
    let free = c.getlock(b, &probe).unwrap();
    assert_eq!((free.kind, free.start, free.length), (lock::UNLCK, 10, 90));
    assert_eq!(
        (free.proc_id, free.client_id),
        (probe.proc_id, probe.client_id.clone())
    );
    c.lock(a, 0, &range(lock::RDLCK, 50, 10)).unwrap();
    let found = c.getlock(b, &probe).unwrap();
    assert_eq!(
        (found.kind, found.start, found.length),
        (lock::RDLCK, 50, 10)
    );
    // One's own lock is not in the way, and readers are not in each other's.
    let own = of_process(1, probe.clone());
    assert_eq!(c.getlock(a, &own).unwrap().kind, lock::UNLCK);
    // Whose it is.
    assert_eq!((found.proc_id, &found.client_id[..]), (1, &b"stub"[..]));
    assert_eq!(
        c.getlock(b, &of_process(2, range(lock::RDLCK, 0, 0)))
            .unwrap()
            .kind,
        lock::UNLCK
    );
    assert_eq!(
        c.getlock(b, &of_process(2, range(lock::WRLCK, 0, 0)))
            .unwrap()
            .kind,
        lock::RDLCK
    );
    assert_eq!(
        c.getlock(b, &of_process(2, range(lock::UNLCK, 60, 0)))
            .unwrap()
            .kind,
        lock::UNLCK
    );
}

#[test]
fn a_lock_may_reach_to_the_end() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    c.lock(a, 0, &range(lock::WRLCK, 100, 0)).unwrap();
    assert_eq!(
        c.lock(b, 0, &of_process(2, range(lock::WRLCK, 1 << 40, 1)))
            .unwrap(),
        lock::BLOCKED
    );
    assert_eq!(
        c.lock(b, 0, &of_process(2, range(lock::WRLCK, 0, 100)))
            .unwrap(),
        lock::SUCCESS
    );
    let found = c
        .getlock(b, &of_process(2, range(lock::UNLCK, 100, 1)))
        .unwrap();
    assert_eq!((found.start, found.length), (100, 0));
    let last = i64::MAX as u64;
    c.lock(a, 0, &range(lock::UNLCK, 0, 0)).unwrap();
    assert_eq!(
        c.lock(a, 0, &range(lock::WRLCK, last, 1)).unwrap(),
        lock::SUCCESS
    );
}

#[test]
fn lock_refuses() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let walked = guest.walk("file");
    let reader = guest.open("file", open::RDONLY);
    let c = &mut guest.client;
    refused(c.lock(walked, 0, &Lock::whole(lock::RDLCK)), Errno::EBADF);
    refused(c.getlock(walked, &Lock::whole(lock::RDLCK)), Errno::EBADF);
    for kind in [3, 255] {
        refused(c.lock(reader, 0, &Lock::whole(kind)), Errno::EINVAL);
        refused(c.getlock(reader, &Lock::whole(kind)), Errno::EINVAL);
    }
    refused(c.lock(reader, 8, &Lock::whole(lock::RDLCK)), Errno::EINVAL);
    refused(
        c.lock(reader, 0, &range(lock::RDLCK, u64::MAX, 1)),
        Errno::EINVAL,
    );
    refused(
        c.lock(reader, 0, &range(lock::RDLCK, 1 << 62, u64::MAX)),
        Errno::EOVERFLOW,
    );
    refused(
        c.lock(
            reader,
            0,
            &range(lock::RDLCK, 1 << 62, (1 << 62) + (1 << 61) + (1 << 61)),
        ),
        Errno::EOVERFLOW,
    );
}

#[test]
fn a_blocking_lock_that_is_free_is_granted() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let whole = Lock::whole(lock::WRLCK);
    assert_eq!(
        guest.client.lock(fid, lock::BLOCK, &whole).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        guest
            .client
            .lock(fid, lock::BLOCK | lock::RECLAIM, &whole)
            .unwrap(),
        lock::SUCCESS
    );
}

#[test]
fn a_process_is_not_in_its_own_way() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let host = host_file(&guest);
    let c = &mut guest.client;
    let whole = Lock::whole(lock::WRLCK);
    assert_eq!(c.lock(a, 0, &whole).unwrap(), lock::SUCCESS);
    assert_eq!(c.lock(b, 0, &whole).unwrap(), lock::SUCCESS);
    // Held as long as one of the fids is.
    c.clunk(a).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    c.clunk(b).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn giving_up_nothing_succeeds() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDONLY);
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{}/fd", guest.daemon.pid()))
            .unwrap()
            .count()
    };
    let before = descriptors();
    for process in 1..20 {
        let nothing = of_process(process, Lock::whole(lock::UNLCK));
        assert_eq!(guest.client.lock(fid, 0, &nothing).unwrap(), lock::SUCCESS);
    }
    // It took no descriptor of the host to give nothing up.
    assert_eq!(descriptors(), before);
}

#[test]
fn flock_needs_no_right_to_write() {
    // flock(2) arrives as a lock of the whole file, whatever the file was opened for.
    let mut guest = Guest::new();
    guest.file("file", "x");
    guest.dir("dir");
    let host = host_file(&guest);
    let reader = guest.open("file", open::RDONLY);
    let writer = guest.open("file", open::WRONLY);
    let directory = guest.open("dir", open::RDONLY);
    let c = &mut guest.client;
    assert_eq!(
        c.lock(reader, 0, &Lock::whole(lock::WRLCK)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    assert_eq!(
        c.lock(reader, 0, &Lock::whole(lock::UNLCK)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        c.lock(writer, 0, &Lock::whole(lock::RDLCK)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(host_sees(&host, 0, 0), libc::F_RDLCK);
    assert_eq!(
        c.lock(directory, 0, &Lock::whole(lock::RDLCK)).unwrap(),
        lock::SUCCESS
    );
    // The host cannot lock a directory for writing: no directory is open for that.
    refused(
        c.lock(directory, 0, &Lock::whole(lock::WRLCK)),
        Errno::ENOLCK,
    );
}

/// Two processes of the guest; the first has locked the file, the second waits.
fn one_holds_and_one_waits(guest: &mut Guest) -> (u32, u16) {
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    assert_eq!(
        c.lock(a, 0, &Lock::whole(lock::WRLCK)).unwrap(),
        lock::SUCCESS
    );
    let wanted = of_process(2, Lock::whole(lock::WRLCK));
    let waiting = c.submit(&tlock(b, lock::BLOCK, &wanted), &[]).unwrap();
    c.kick().unwrap();
    // Other requests go on meanwhile.
    assert_eq!(c.read(a, 0, 1).unwrap(), b"x");
    assert!(!c.is_done(waiting).unwrap());
    (a, waiting)
}

fn status(reply: stub_guest::Result<stub_guest::Reply>) -> u8 {
    match reply.unwrap().message().unwrap() {
        Rmessage::Lock(Rlock { status }) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blocking_lock_is_answered_when_it_is_granted() {
    let mut guest = Guest::new();
    let (a, waiting) = one_holds_and_one_waits(&mut guest);
    let c = &mut guest.client;
    assert_eq!(
        c.lock(a, 0, &Lock::whole(lock::UNLCK)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(status(c.wait(waiting)), lock::SUCCESS);
    assert_eq!(
        c.lock(a, 0, &Lock::whole(lock::WRLCK)).unwrap(),
        lock::BLOCKED
    );
}

#[test]
fn a_blocking_lock_is_granted_when_the_holder_s_fid_goes() {
    let mut guest = Guest::new();
    let (a, waiting) = one_holds_and_one_waits(&mut guest);
    guest.client.clunk(a).unwrap();
    assert_eq!(status(guest.client.wait(waiting)), lock::SUCCESS);
}

#[test]
fn a_blocking_lock_waits_for_a_process_of_the_host_too() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let host = host_file(&guest);
    fcntl(
        host.as_fd(),
        FcntlArg::F_OFD_SETLK(&host_lock(libc::F_WRLCK, 0, 0)),
    )
    .unwrap();
    let fid = guest.open("file", open::RDWR);
    let wanted = Lock::whole(lock::WRLCK);
    let waiting = guest
        .client
        .submit(&tlock(fid, lock::BLOCK, &wanted), &[])
        .unwrap();
    guest.client.kick().unwrap();
    assert_eq!(guest.client.read(fid, 0, 1).unwrap(), b"x");
    assert!(!guest.client.is_done(waiting).unwrap());
    drop(host);
    assert_eq!(status(guest.client.wait(waiting)), lock::SUCCESS);
}

#[test]
fn a_flush_ends_the_wait_for_a_lock() {
    let mut guest = Guest::new();
    let (a, waiting) = one_holds_and_one_waits(&mut guest);
    let c = &mut guest.client;
    let flush = c
        .submit(&Tmessage::Flush(Tflush { oldtag: waiting }), &[])
        .unwrap();
    // Used length 0, no reply, and before Rflush.
    let first = c.wait_any().unwrap();
    assert_eq!(first.tag, waiting);
    assert!(
        matches!(first.reply, Err(Error::Flushed)),
        "{:?}",
        first.reply
    );
    let second = c.wait_any().unwrap();
    assert_eq!(second.tag, flush);
    second.reply.unwrap().message().unwrap();
    // It was not granted behind the guest's back.
    c.clunk(a).unwrap();
    let host = host_file(&guest);
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn a_new_session_ends_the_wait_and_the_locks() {
    let mut guest = Guest::new();
    let (_, waiting) = one_holds_and_one_waits(&mut guest);
    guest.client.version(8192, b"9P2000.L").unwrap();
    assert_eq!(status(guest.client.wait(waiting)), lock::BLOCKED);
    assert_eq!(host_sees(&host_file(&guest), 0, 0), libc::F_UNLCK);
}

#[test]
fn a_stop_answers_what_waits_and_keeps_the_locks() {
    let mut guest = Guest::new();
    let (_, waiting) = one_holds_and_one_waits(&mut guest);
    guest.client.front_end().stop().unwrap();
    // The client asks again after BLOCKED; nothing is lost.
    assert_eq!(status(guest.client.wait(waiting)), lock::BLOCKED);
    assert_eq!(host_sees(&host_file(&guest), 0, 0), libc::F_WRLCK);
}

#[test]
fn a_disconnect_ends_the_locks_also_of_one_that_waits() {
    let mut guest = Guest::new();
    one_holds_and_one_waits(&mut guest);
    let host = host_file(&guest);
    let Guest {
        client, mut daemon, ..
    } = guest;
    drop(client);
    // Served only after the old session has ended.
    daemon.mount().unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn no_wait_begins_while_everything_is_to_end() {
    // Each process opens the file for its locks first: the wait begins some time after the
    // request has come, perhaps after everything was told to stop.
    let mut guest = Guest::new();
    guest.file("file", "x");
    for process in 2..40 {
        let (a, b) = (
            guest.open("file", open::RDWR),
            guest.open("file", open::RDWR),
        );
        let c = &mut guest.client;
        assert_eq!(
            c.lock(a, 0, &Lock::whole(lock::WRLCK)).unwrap(),
            lock::SUCCESS
        );
        let wanted = of_process(process, Lock::whole(lock::WRLCK));
        let waiting = c.submit(&tlock(b, lock::BLOCK, &wanted), &[]).unwrap();
        c.kick().unwrap();
        if process % 2 == 0 {
            let front_end = c.front_end();
            front_end.stop().unwrap();
            // If it had been taken out of the ring it was answered.
            if c.is_used(waiting).unwrap() {
                assert_eq!(status(c.wait(waiting)), lock::BLOCKED);
            }
            guest = Guest::new();
            guest.file("file", "x");
        } else {
            c.version(8192, b"9P2000.L").unwrap();
            assert_eq!(status(c.wait(waiting)), lock::BLOCKED);
            guest.root = c.mount(&Attach::default()).unwrap();
        }
    }
}
