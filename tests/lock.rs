//! Tlock and Tgetlock: byte-range locks, between guests and with the host. A guest's kernel keeps its
//! own processes apart before it asks, so here they are one holder.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{BINARY, Guest, refused};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use protocol::{Rlock, Rmessage, Tflush, Tmessage, lock, open};
use stub_guest::daemon::Launch;
use stub_guest::messages::{Lock, tlock};
use stub_guest::{Attach, Client, Error};

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

/// Another guest, with a daemon of its own on the same directory.
fn another(guest: &Guest) -> Guest {
    Guest::on(Launch::new(BINARY).share(guest.daemon.share()))
}

#[track_caller]
fn granted(client: &mut Client, fid: u32, lock: &Lock) {
    assert_eq!(client.lock(fid, 0, lock).unwrap(), lock::SUCCESS);
}

#[track_caller]
fn blocked(client: &mut Client, fid: u32, lock: &Lock) {
    assert_eq!(client.lock(fid, 0, lock).unwrap(), lock::BLOCKED);
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

#[track_caller]
fn lock_on_host(file: &File, kind: i32, start: i64, len: i64) {
    let lock = host_lock(kind, start, len);
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

fn host_file(guest: &Guest) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(guest.path("file"))
        .unwrap()
}

#[test]
fn a_lock_excludes_another_guest_until_it_is_released() {
    let mut guest = Guest::new();
    guest.file("file", "0123456789");
    let mut other = another(&guest);
    let (a, b) = (
        guest.open("file", open::RDWR),
        other.open("file", open::RDWR),
    );
    let write = range(lock::WRLCK, 2, 3);
    granted(&mut guest.client, a, &write);
    for overlapping in [
        range(lock::WRLCK, 4, 1),
        range(lock::RDLCK, 0, 0),
        range(lock::WRLCK, 0, 3),
    ] {
        blocked(&mut other.client, b, &overlapping);
        // Another process of that guest is no better.
        blocked(&mut other.client, b, &of_process(2, overlapping));
    }
    granted(&mut other.client, b, &range(lock::WRLCK, 5, 2));
    granted(&mut guest.client, a, &range(lock::UNLCK, 2, 3));
    granted(&mut other.client, b, &write);
    blocked(&mut guest.client, a, &write);
}

#[test]
fn readers_share() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let mut other = another(&guest);
    let (a, b) = (
        guest.open("file", open::RDONLY),
        other.open("file", open::RDWR),
    );
    granted(&mut guest.client, a, &Lock::whole(lock::RDLCK));
    granted(&mut other.client, b, &Lock::whole(lock::RDLCK));
    blocked(&mut other.client, b, &Lock::whole(lock::WRLCK));
    granted(&mut guest.client, a, &Lock::whole(lock::UNLCK));
    granted(&mut other.client, b, &Lock::whole(lock::WRLCK));
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
    lock_on_host(&host, libc::F_WRLCK, 6, 2);
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
fn getlock_tells_what_of_others_is_in_the_way() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let mut other = another(&guest);
    let (a, b) = (
        guest.open("file", open::RDWR),
        other.open("file", open::RDWR),
    );
    // Linux always asks with UNLCK, and means: of a write lock.
    let probe = of_process(2, range(lock::UNLCK, 10, 90));
    let c = &mut other.client;
    let free = c.getlock(b, &probe).unwrap();
    assert_eq!((free.kind, free.start, free.length), (lock::UNLCK, 10, 90));
    assert_eq!(
        (free.proc_id, free.client_id),
        (probe.proc_id, probe.client_id.clone())
    );
    granted(&mut guest.client, a, &range(lock::RDLCK, 50, 10));
    let found = c.getlock(b, &probe).unwrap();
    assert_eq!(
        (found.kind, found.start, found.length),
        (lock::RDLCK, 50, 10)
    );
    // Nobody knows whose it is.
    assert_eq!((found.proc_id, &found.client_id[..]), (0, &b""[..]));
    let mut kind_of = |kind, start| {
        let probe = of_process(2, range(kind, start, 0));
        c.getlock(b, &probe).unwrap().kind
    };
    // Readers are not in each other's way.
    assert_eq!(kind_of(lock::RDLCK, 0), lock::UNLCK);
    assert_eq!(kind_of(lock::WRLCK, 0), lock::RDLCK);
    assert_eq!(kind_of(lock::UNLCK, 60), lock::UNLCK);
}

#[test]
fn what_the_guest_holds_itself_is_never_in_its_way() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let host = host_file(&guest);
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    for (fid, process, own) in [
        (a, 1, range(lock::RDLCK, 0, 10)),
        (b, 2, range(lock::WRLCK, 10, 10)),
    ] {
        granted(c, fid, &of_process(process, own));
    }
    for fid in [a, b] {
        for process in [1, 2, 3] {
            for kind in [lock::UNLCK, lock::RDLCK, lock::WRLCK] {
                let probe = of_process(process, range(kind, 0, 0));
                assert_eq!(c.getlock(fid, &probe).unwrap().kind, lock::UNLCK);
            }
        }
    }
    // What the host holds is, whoever asks.
    lock_on_host(&host, libc::F_RDLCK, 30, 5);
    let found = c.getlock(a, &range(lock::UNLCK, 0, 0)).unwrap();
    assert_eq!(
        (found.kind, found.start, found.length),
        (lock::RDLCK, 30, 5)
    );
}

#[test]
fn a_lock_may_reach_to_the_end() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let mut other = another(&guest);
    let (a, b) = (
        guest.open("file", open::RDWR),
        other.open("file", open::RDWR),
    );
    granted(&mut guest.client, a, &range(lock::WRLCK, 100, 0));
    blocked(&mut other.client, b, &range(lock::WRLCK, 1 << 40, 1));
    granted(&mut other.client, b, &range(lock::WRLCK, 0, 100));
    let found = other
        .client
        .getlock(b, &range(lock::UNLCK, 100, 1))
        .unwrap();
    assert_eq!((found.start, found.length), (100, 0));
    let last = i64::MAX as u64;
    granted(&mut guest.client, a, &range(lock::UNLCK, 0, 0));
    granted(&mut guest.client, a, &range(lock::WRLCK, last, 1));
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
fn a_child_may_lock_what_it_has_inherited() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let host = host_file(&guest);
    let c = &mut guest.client;
    let [write, read, free] = [lock::WRLCK, lock::RDLCK, lock::UNLCK].map(Lock::whole);
    granted(c, fid, &write);
    // It has the parent's descriptor, so its kernel has granted it.
    for again in [&read, &write] {
        let again = of_process(2, again.clone());
        let waiting = c.lock(fid, lock::BLOCK, &again).unwrap();
        assert_eq!(waiting, lock::SUCCESS);
        assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    }
    // What its exit looks like does not free what the parent has locked, nor the exit of a child
    // that has locked nothing.
    granted(c, fid, &of_process(2, free.clone()));
    granted(c, fid, &of_process(3, free.clone()));
    assert_eq!(host_sees(&host, 0, 0), libc::F_WRLCK);
    granted(c, fid, &free);
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
    // And what the child still holds ends with the last descriptor.
    granted(c, fid, &of_process(2, write));
    c.clunk(fid).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn one_of_two_shared_locks_of_a_process_stays() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let host = host_file(&guest);
    let c = &mut guest.client;
    for (first, second) in [(a, b), (b, a)] {
        granted(c, a, &Lock::whole(lock::RDLCK));
        granted(c, b, &Lock::whole(lock::RDLCK));
        granted(c, first, &Lock::whole(lock::UNLCK));
        assert_eq!(host_sees(&host, 0, 0), libc::F_RDLCK);
        granted(c, second, &Lock::whole(lock::UNLCK));
        assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
    }
    granted(c, a, &Lock::whole(lock::RDLCK));
    granted(c, b, &Lock::whole(lock::RDLCK));
    c.clunk(a).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_RDLCK);
    c.clunk(b).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn a_range_is_the_process_s_whichever_fid_it_was_locked_through() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (a, b) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let host = host_file(&guest);
    let c = &mut guest.client;
    granted(c, a, &range(lock::WRLCK, 10, 10));
    // Split in the middle, and one part made weaker.
    granted(c, b, &range(lock::UNLCK, 14, 2));
    granted(c, b, &range(lock::RDLCK, 10, 2));
    let kinds = |host: &File| {
        let each = (9..21).map(|byte| match host_sees(host, byte, 1) {
            libc::F_RDLCK => 'r',
            libc::F_WRLCK => 'w',
            _ => '-',
        });
        each.collect::<String>()
    };
    assert_eq!(kinds(&host), "-rrww--wwww-");
    // Another process is another owner.
    granted(c, a, &of_process(2, range(lock::UNLCK, 0, 0)));
    assert_eq!(kinds(&host), "-rrww--wwww-");
    // SQLite unlocks all through any of its descriptors.
    granted(c, b, &range(lock::UNLCK, 0, 0));
    assert_eq!(kinds(&host), "------------");
    // The close of a fid frees what was locked through it, and nothing else.
    granted(c, a, &range(lock::WRLCK, 10, 5));
    granted(c, a, &of_process(2, range(lock::RDLCK, 12, 5)));
    granted(c, b, &range(lock::RDLCK, 16, 4));
    assert_eq!(kinds(&host), "-wwwwwrrrrr-");
    c.clunk(a).unwrap();
    assert_eq!(kinds(&host), "-------rrrr-");
}

#[test]
fn the_host_sees_the_strongest_lock_of_each_byte() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let host = host_file(&guest);
    let c = &mut guest.client;
    let bytes = |host: &File| [0, 40, 50, 60].map(|byte| host_sees(host, byte, 1));
    let (read, write, free) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
    granted(c, fid, &Lock::whole(lock::RDLCK));
    granted(c, fid, &of_process(2, range(lock::WRLCK, 40, 20)));
    granted(c, fid, &of_process(3, range(lock::RDLCK, 50, 20)));
    assert_eq!(bytes(&host), [read, write, write, read]);
    granted(c, fid, &of_process(1, Lock::whole(lock::UNLCK)));
    assert_eq!(bytes(&host), [free, write, write, read]);
    granted(c, fid, &of_process(2, Lock::whole(lock::UNLCK)));
    assert_eq!(bytes(&host), [free, free, read, read]);
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let (holder, host) = (host_file(&guest), host_file(&guest));
    let c = &mut guest.client;
    lock_on_host(&holder, libc::F_WRLCK, 10, 5);
    granted(c, fid, &range(lock::RDLCK, 0, 10));
    granted(c, fid, &of_process(2, range(lock::WRLCK, 40, 10)));
    let bytes = |host: &File| [0, 20, 40, 60].map(|byte| host_sees(host, byte, 1));
    let before = bytes(&host);
    let (read, write, free) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
    assert_eq!(before, [read, free, write, free]);
    blocked(c, fid, &range(lock::WRLCK, 0, 30));
    assert_eq!(bytes(&host), before);
    // The host agrees to the bytes behind the other process's first.
    blocked(c, fid, &Lock::whole(lock::RDLCK));
    assert_eq!(bytes(&host), before);
    drop(holder);
    granted(c, fid, &Lock::whole(lock::RDLCK));
    assert_eq!(bytes(&host), [read, read, write, read]);
    granted(c, fid, &Lock::whole(lock::UNLCK));
    assert_eq!(bytes(&host), [free, free, write, free]);
}

#[test]
fn what_is_held_is_held_while_more_is_refused() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let (holder, other) = (host_file(&guest), host_file(&guest));
    let c = &mut guest.client;
    lock_on_host(&holder, libc::F_WRLCK, 0, 10);
    granted(c, fid, &range(lock::WRLCK, 50, 10));
    granted(c, fid, &of_process(2, range(lock::WRLCK, 30, 10)));
    let done = AtomicBool::new(false);
    // Another reads as soon as it may.
    let lock = host_lock(libc::F_RDLCK, 50, 10);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if fcntl(other.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).is_ok() {
                    return true;
                }
            }
            false
        });
        for _ in 0..500 {
            blocked(c, fid, &Lock::whole(lock::RDLCK));
        }
        done.store(true, Ordering::Relaxed);
        assert!(!reader.join().unwrap());
    });
}

fn descriptors(guest: &Guest) -> usize {
    fs::read_dir(format!("/proc/{}/fd", guest.daemon.pid()))
        .unwrap()
        .count()
}

#[test]
fn any_number_of_owners_takes_one_descriptor_while_something_is_held() {
    const OWNERS: u32 = 2000;
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    let host = host_file(&guest);
    let before = descriptors(&guest);
    // The close of a description comes behind the reply of the request that makes it needless.
    let settled = |guest: &mut Guest| {
        guest.client.read(fid, 0, 1).unwrap();
        descriptors(guest)
    };
    let own = |process, kind| of_process(process, range(kind, 2 * u64::from(process), 1));
    for process in 0..OWNERS {
        granted(&mut guest.client, fid, &own(process, lock::WRLCK));
    }
    assert_eq!(settled(&mut guest), before + 1);
    for process in 1..OWNERS {
        granted(&mut guest.client, fid, &own(process, lock::UNLCK));
    }
    assert_eq!(host_sees(&host, 0, 1), libc::F_WRLCK);
    assert_eq!(host_sees(&host, 1, 0), libc::F_UNLCK);
    assert_eq!(settled(&mut guest), before + 1);
    granted(&mut guest.client, fid, &own(0, lock::UNLCK));
    assert_eq!(settled(&mut guest), before);
    // All at once.
    for end in [
        |c: &mut Client, fid| c.clunk(fid),
        |c: &mut Client, _| c.version(8192, b"9P2000.L").map(drop),
    ] {
        let fid = guest.open("file", open::RDWR);
        for process in 0..OWNERS {
            granted(&mut guest.client, fid, &own(process, lock::WRLCK));
        }
        end(&mut guest.client, fid).unwrap();
        assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
    }
}

#[test]
fn giving_up_nothing_succeeds() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.open("file", open::RDONLY);
    let before = descriptors(&guest);
    for process in 1..20 {
        let nothing = of_process(process, Lock::whole(lock::UNLCK));
        assert_eq!(guest.client.lock(fid, 0, &nothing).unwrap(), lock::SUCCESS);
    }
    // It took no descriptor of the host to give nothing up.
    assert_eq!(descriptors(&guest), before);
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

#[test]
fn a_file_that_becomes_writable_can_be_locked_for_writing() {
    let launch = Launch::new(BINARY);
    let mut guest = Guest::on(match nix::unistd::geteuid().is_root() {
        true => launch.arg("--modcaps=-dac_override"),
        false => launch,
    });
    let path = guest.file("file", "x");
    let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let host = host_file(&guest);
    set_mode(0o400);
    let reader = guest.open("file", open::RDONLY);
    granted(&mut guest.client, reader, &range(lock::RDLCK, 0, 1));
    refused(
        guest.client.lock(reader, 0, &range(lock::WRLCK, 10, 1)),
        Errno::ENOLCK,
    );
    set_mode(0o600);
    let writer = guest.open("file", open::RDWR);
    let c = &mut guest.client;
    let bytes = |host: &File| [0, 5, 10].map(|byte| host_sees(host, byte, 1));
    let (read, write, free) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
    granted(c, writer, &of_process(2, range(lock::WRLCK, 10, 1)));
    assert_eq!(bytes(&host), [read, free, write]);
    granted(c, writer, &range(lock::WRLCK, 0, 10));
    assert_eq!(bytes(&host), [write, write, write]);
    c.clunk(writer).unwrap();
    assert_eq!(bytes(&host), [free, free, free]);
}

/// A fid of a file of which one process has locked so many bytes, each alone.
fn locked_in_many_places(guest: &mut Guest, count: u64) -> u32 {
    guest.file("file", "x");
    let fid = guest.open("file", open::RDWR);
    for byte in 0..count {
        granted(&mut guest.client, fid, &range(lock::WRLCK, 2 * byte, 1));
    }
    fid
}

#[test]
fn the_ranges_of_one_file_are_bounded() {
    const MOST: u64 = 4096;
    let mut guest = Guest::new();
    let fid = locked_in_many_places(&mut guest, MOST - 1);
    let host = host_file(&guest);
    let c = &mut guest.client;
    granted(c, fid, &of_process(2, range(lock::WRLCK, 1, 1)));
    for process in 1..4 {
        let more = of_process(process, range(lock::RDLCK, 1 << 20, 1));
        refused(c.lock(fid, 0, &more), Errno::ENOLCK);
    }
    // What makes no more, and another file.
    granted(c, fid, &range(lock::RDLCK, 0, 1));
    let file = guest.open("file", open::RDWR);
    guest.file("another", "x");
    let another = guest.open("another", open::RDWR);
    let c = &mut guest.client;
    granted(c, another, &range(lock::WRLCK, 0, 1));
    granted(c, fid, &range(lock::UNLCK, 0, 1));
    granted(c, file, &of_process(3, range(lock::RDLCK, 1 << 20, 1)));
    refused(
        c.lock(fid, 0, &range(lock::WRLCK, 1 << 21, 1)),
        Errno::ENOLCK,
    );
    c.clunk(file).unwrap();
    granted(c, fid, &range(lock::WRLCK, 1 << 21, 1));
    c.clunk(fid).unwrap();
    assert_eq!(host_sees(&host, 0, 0), libc::F_UNLCK);
}

#[test]
fn a_stop_does_not_wait_for_locks_in_many_places_that_have_not_begun() {
    let mut guest = Guest::new();
    let fid = locked_in_many_places(&mut guest, 500);
    let host = host_file(&guest);
    let c = &mut guest.client;
    // Each takes hundreds of calls, one after the other.
    let waiting = [(); 30].map(|()| {
        [lock::RDLCK, lock::UNLCK].map(|kind| {
            let whole = of_process(2, Lock::whole(kind));
            c.submit(&tlock(fid, 0, &whole), &[]).unwrap()
        })
    });
    c.kick().unwrap();
    c.front_end().stop().unwrap();
    let waiting = waiting.as_flattened();
    let mut lasts = Vec::new();
    for tag in waiting {
        // What was not taken out of the ring is not answered.
        if c.is_used(*tag).unwrap() {
            lasts.push(status(c.wait(*tag)));
        }
    }
    assert!(
        lasts.is_empty() || lasts.contains(&lock::BLOCKED),
        "{lasts:?}"
    );
    assert_eq!(host_sees(&host, 998, 1), libc::F_WRLCK);
}

/// A guest that waits for what another holds.
struct Waits {
    /// Ends before the guest, which has the directory.
    other: Option<Guest>,
    /// Of the other.
    held: u32,
    guest: Guest,
    /// Of the guest, locked at byte 100.
    own: u32,
    waiting: u16,
}

fn one_holds_and_one_waits() -> Waits {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let mut other = another(&guest);
    let held = other.open("file", open::RDWR);
    granted(&mut other.client, held, &range(lock::WRLCK, 0, 10));
    let (own, fid) = (
        guest.open("file", open::RDWR),
        guest.open("file", open::RDWR),
    );
    let c = &mut guest.client;
    granted(c, own, &range(lock::WRLCK, 100, 1));
    let wanted = of_process(2, range(lock::WRLCK, 0, 10));
    let waiting = c.submit(&tlock(fid, lock::BLOCK, &wanted), &[]).unwrap();
    c.kick().unwrap();
    // Other requests go on meanwhile.
    assert_eq!(c.read(own, 0, 1).unwrap(), b"x");
    assert!(!c.is_done(waiting).unwrap());
    Waits {
        other: Some(other),
        held,
        guest,
        own,
        waiting,
    }
}

fn status(reply: stub_guest::Result<stub_guest::Reply>) -> u8 {
    match reply.unwrap().message().unwrap() {
        Rmessage::Lock(Rlock { status }) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blocking_lock_is_answered_when_it_is_granted() {
    let mut waits = one_holds_and_one_waits();
    let (c, held) = (&mut waits.other.as_mut().unwrap().client, waits.held);
    granted(c, held, &Lock::whole(lock::UNLCK));
    assert_eq!(
        status(waits.guest.client.wait(waits.waiting)),
        lock::SUCCESS
    );
    blocked(c, held, &range(lock::WRLCK, 0, 10));
}

#[test]
fn a_blocking_lock_is_granted_when_the_holder_s_fid_goes() {
    let mut waits = one_holds_and_one_waits();
    let c = &mut waits.other.as_mut().unwrap().client;
    c.clunk(waits.held).unwrap();
    assert_eq!(
        status(waits.guest.client.wait(waits.waiting)),
        lock::SUCCESS
    );
}

#[test]
fn locks_go_while_another_is_waited_for() {
    let mut waits = one_holds_and_one_waits();
    let host = host_file(&waits.guest);
    assert_eq!(host_sees(&host, 100, 1), libc::F_WRLCK);
    waits.guest.client.clunk(waits.own).unwrap();
    assert_eq!(host_sees(&host, 100, 1), libc::F_UNLCK);
}

#[test]
fn a_blocking_lock_waits_for_a_process_of_the_host_too() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let host = host_file(&guest);
    lock_on_host(&host, libc::F_WRLCK, 0, 0);
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
    let mut waits = one_holds_and_one_waits();
    let (c, waiting) = (&mut waits.guest.client, waits.waiting);
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
    waits.other = None;
    c.clunk(waits.own).unwrap();
    assert_eq!(host_sees(&host_file(&waits.guest), 0, 0), libc::F_UNLCK);
}

#[test]
fn a_new_session_ends_the_wait_and_the_locks() {
    let mut waits = one_holds_and_one_waits();
    waits.guest.client.version(8192, b"9P2000.L").unwrap();
    assert_eq!(
        status(waits.guest.client.wait(waits.waiting)),
        lock::BLOCKED
    );
    let host = host_file(&waits.guest);
    assert_eq!(host_sees(&host, 100, 1), libc::F_UNLCK);
}

#[test]
fn a_stop_answers_what_waits_and_keeps_the_locks() {
    let mut waits = one_holds_and_one_waits();
    waits.guest.client.front_end().stop().unwrap();
    // The client asks again after BLOCKED; nothing is lost.
    assert_eq!(
        status(waits.guest.client.wait(waits.waiting)),
        lock::BLOCKED
    );
    let host = host_file(&waits.guest);
    assert_eq!(host_sees(&host, 100, 1), libc::F_WRLCK);
}

#[test]
fn a_wait_is_not_ended_by_what_was_stopped_before_it_began() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let host = host_file(&guest);
    lock_on_host(&host, libc::F_WRLCK, 0, 0);
    for _ in 0..2 {
        let fid = guest.open("file", open::RDWR);
        let c = &mut guest.client;
        let wanted = Lock::whole(lock::WRLCK);
        let wait = tlock(fid, lock::BLOCK, &wanted);
        let waiting = [(); 3].map(|()| c.submit(&wait, &[]).unwrap());
        c.kick().unwrap();
        assert_eq!(c.read(fid, 0, 1).unwrap(), b"x");
        for tag in waiting {
            assert!(!c.is_done(tag).unwrap());
            let flush = Tmessage::Flush(Tflush { oldtag: tag });
            c.call(&flush).unwrap().message().unwrap();
            assert!(matches!(c.wait(tag), Err(Error::Flushed)));
        }
        // Nothing waits now.
        guest.root = c.mount(&Attach::default()).unwrap();
    }
}

#[test]
fn a_disconnect_ends_the_locks_also_of_one_that_waits() {
    let Waits {
        other: _other,
        guest,
        ..
    } = one_holds_and_one_waits();
    let host = host_file(&guest);
    let Guest {
        client, mut daemon, ..
    } = guest;
    drop(client);
    // Served only after the old session has ended.
    daemon.mount().unwrap();
    assert_eq!(host_sees(&host, 100, 1), libc::F_UNLCK);
}

#[test]
fn no_wait_begins_while_everything_is_to_end() {
    // The file is opened for the locks first: the wait begins some time after the request has
    // come, perhaps after everything was told to stop.
    let hold = |guest: &Guest| {
        guest.file("file", "x");
        let host = host_file(guest);
        lock_on_host(&host, libc::F_WRLCK, 0, 0);
        host
    };
    let mut guest = Guest::new();
    let mut _host = hold(&guest);
    for process in 2..40 {
        let fid = guest.open("file", open::RDWR);
        let c = &mut guest.client;
        let wanted = of_process(process, Lock::whole(lock::WRLCK));
        let waiting = c.submit(&tlock(fid, lock::BLOCK, &wanted), &[]).unwrap();
        c.kick().unwrap();
        if process % 2 == 0 {
            let front_end = c.front_end();
            front_end.stop().unwrap();
            // If it had been taken out of the ring it was answered.
            if c.is_used(waiting).unwrap() {
                assert_eq!(status(c.wait(waiting)), lock::BLOCKED);
            }
            guest = Guest::new();
            _host = hold(&guest);
        } else {
            c.version(8192, b"9P2000.L").unwrap();
            assert_eq!(status(c.wait(waiting)), lock::BLOCKED);
            guest.root = c.mount(&Attach::default()).unwrap();
        }
    }
}
