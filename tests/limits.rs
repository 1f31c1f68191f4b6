//! What one guest may take: each bound is reached, answered with its own error, and free again
//! afterwards; and how fast it may be.

mod common;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{BINARY, Guest, host_set, refused};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use protocol::{Tgetattr, Tmessage, Tread, getattr, lock, open};
use stub_guest::daemon::Launch;
use stub_guest::messages::Lock;
use stub_guest::{Client, Error};

fn guest(args: &[&str]) -> Guest {
    let launch = Launch::new(BINARY);
    Guest::on(args.iter().fold(launch, |launch, arg| launch.arg(arg)))
}

#[test]
fn fids() {
    let mut guest = guest(&["--limit-fids=20"]);
    guest.file("file", "content");
    let root = guest.root;
    // The root is the first.
    let fids: Vec<u32> = (1..20).map(|_| guest.walk("file")).collect();
    let client = &mut guest.client;
    let more = client.alloc_fid();
    refused(client.walk(root, more, &["file"]), Errno::EMFILE);
    refused(client.walk(root, more, &[] as &[&str]), Errno::EMFILE);
    refused(client.attach(more, "", "", 0), Errno::EMFILE);
    refused(client.xattrwalk(fids[0], more, ""), Errno::EMFILE);
    // All that needs no further one goes on, and a walk onto the fid itself needs none.
    client.getattr(fids[5], getattr::BASIC).unwrap();
    client.lopen(fids[6], open::RDONLY).unwrap();
    client.walk(fids[7], fids[7], &[] as &[&str]).unwrap();
    client.clunk(fids[8]).unwrap();
    client.walk(root, fids[8], &["file"]).unwrap();
    refused(client.walk(root, more, &["file"]), Errno::EMFILE);
    // A new session has none.
    client.forget();
    guest.root = guest.client.mount(&Default::default()).unwrap();
    for _ in 1..20 {
        guest.walk("file");
    }
}

#[test]
fn attributes_that_are_read_and_written() {
    const SIZE: usize = 60_000;
    let mut guest = guest(&["--limit-xattr-bytes=65536"]);
    let path = guest.file("file", "");
    if !host_set(&path, "user.a", &[7; 1000]) {
        return;
    }
    let (file, draft) = (guest.walk("file"), guest.walk("file"));
    let client = &mut guest.client;
    client.xattrcreate(draft, "user.b", SIZE as u64, 0).unwrap();
    let values: Vec<u32> = (0..5).map(|_| client.alloc_fid()).collect();
    for value in &values {
        client.xattrwalk(file, *value, "user.a").unwrap();
    }
    let more = client.alloc_fid();
    refused(client.xattrwalk(file, more, "user.a"), Errno::ENOMEM);
    refused(client.xattrcreate(file, "user.c", 1000, 0), Errno::ENOMEM);
    // What is read is all there still.
    assert_eq!(client.read(values[4], 0, 2000).unwrap(), [7; 1000]);
    client.clunk(values[0]).unwrap();
    client.xattrwalk(file, more, "user.a").unwrap();
    refused(client.xattrcreate(file, "user.c", 1000, 0), Errno::ENOMEM);
    // A draft that is given up counts no longer, whether or not it was complete.
    refused(client.clunk(draft), Errno::EINVAL);
    client.xattrcreate(file, "user.c", 1000, 0).unwrap();
    client.write(file, 0, &[8; 1000]).unwrap();
    client.clunk(file).unwrap();
}

#[test]
fn locks() {
    let mut guest = guest(&["--limit-locks=20"]);
    guest.file("file", "");
    let fid = guest.open("file", open::RDWR);
    let client = &mut guest.client;
    let of = |proc_id, kind, start, length| Lock {
        proc_id,
        start,
        length,
        ..Lock::whole(kind)
    };
    // One for the process, and one for each range: two bytes apart, they stay separate.
    for number in 0..19 {
        let lock = of(1, lock::WRLCK, 10 * number, 5);
        assert_eq!(client.lock(fid, 0, &lock).unwrap(), lock::SUCCESS);
    }
    refused(
        client.lock(fid, 0, &of(1, lock::WRLCK, 1000, 5)),
        Errno::ENOLCK,
    );
    refused(
        client.lock(fid, 0, &of(2, lock::WRLCK, 1000, 5)),
        Errno::ENOLCK,
    );
    // To unlock the middle of a range makes two of it.
    refused(
        client.lock(fid, 0, &of(1, lock::UNLCK, 2, 1)),
        Errno::ENOLCK,
    );
    // What makes less is always allowed, and what it leaves is there for others.
    assert_eq!(
        client.lock(fid, 0, &of(1, lock::UNLCK, 0, 25)).unwrap(),
        lock::SUCCESS
    );
    assert_eq!(
        client.lock(fid, 0, &of(2, lock::WRLCK, 1000, 5)).unwrap(),
        lock::SUCCESS
    );
    refused(
        client.lock(fid, 0, &of(3, lock::WRLCK, 2000, 5)),
        Errno::ENOLCK,
    );
    client.clunk(fid).unwrap();
    let fid = guest.open("file", open::RDWR);
    let client = &mut guest.client;
    for proc_id in 0..10 {
        let lock = of(proc_id, lock::WRLCK, 10 * u64::from(proc_id), 5);
        assert_eq!(client.lock(fid, 0, &lock).unwrap(), lock::SUCCESS);
    }
    refused(
        client.lock(fid, 0, &of(11, lock::RDLCK, 500, 1)),
        Errno::ENOLCK,
    );
    // The name of a guest is kept for each of them.
    let long = Lock {
        client_id: vec![b'x'; 256],
        ..of(1, lock::RDLCK, 0, 1)
    };
    refused(client.lock(fid, 0, &long), Errno::ENAMETOOLONG);
}

#[test]
fn lines_of_the_log() {
    const FRONT_ENDS: usize = 300;
    let guest = guest(&[]);
    let stderr = || -> Vec<String> { guest.daemon.stderr().lines().map(str::to_owned).collect() };
    assert!(stderr().len() < 20);
    let Guest {
        client, mut daemon, ..
    } = guest;
    drop(client);
    for _ in 0..FRONT_ENDS {
        // Each is accepted and told of, as is its end.
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        Client::new(stub_guest::FrontEnd::new(stream, Default::default()).unwrap());
    }
    daemon.signal(Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let lines = daemon.stderr();
    let count = lines.lines().count();
    // A hundred at once, and five more each second, of 600 and more.
    assert!(count < 2 * FRONT_ENDS, "{count} lines");
    assert!(count > 90, "{lines}");
}

/// Sends `count` requests at once and returns when each was answered.
fn times(guest: &mut Guest, request: &Tmessage<'_>, count: usize) -> Vec<Duration> {
    let begin = Instant::now();
    for _ in 0..count {
        guest.client.submit(request, &[]).unwrap();
    }
    let mut times = Vec::new();
    for _ in 0..count {
        guest
            .client
            .wait_any()
            .unwrap()
            .reply
            .unwrap()
            .message()
            .unwrap();
        times.push(begin.elapsed());
    }
    times
}

#[test]
fn requests_each_second() {
    let mut guest = guest(&["--throttle-iops=20,10"]);
    let request = Tmessage::Getattr(Tgetattr {
        fid: guest.root,
        mask: getattr::BASIC,
    });
    // Of the burst the mount has taken two.
    let times = times(&mut guest, &request, 18);
    for (number, time) in times.iter().enumerate().skip(10) {
        // A moment may have passed since the first was let through. None of them comes too early; how
        // late, is the machine's business.
        let due = Duration::from_millis(50 * (number as u64 - 10));
        assert!(
            *time + Duration::from_millis(1) >= due,
            "{number}: {times:?}"
        );
    }
}

#[test]
fn bytes_each_second() {
    let mut guest = guest(&["--throttle-bps=1000000,100000"]);
    guest.file("file", vec![7; 100_000]);
    let fid = guest.open("file", open::RDONLY);
    let request = Tmessage::Read(Tread {
        fid,
        offset: 0,
        count: 50_000,
    });
    let times = times(&mut guest, &request, 10);
    // Two at once, the others one each 50 ms.
    assert!(times[9] >= Duration::from_millis(395), "{times:?}");
    // Other requests do not wait.
    guest.client.getattr(fid, getattr::BASIC).unwrap();
}

#[test]
fn a_request_that_is_held_up_can_be_flushed_and_delays_no_stop() {
    // One now, and the next in three months.
    let mut guest = guest(&["--throttle-bps=1,10000000"]);
    guest.file("file", "content");
    let fid = guest.open("file", open::RDONLY);
    let read = |count| {
        Tmessage::Read(Tread {
            fid,
            offset: 0,
            count,
        })
    };
    guest
        .client
        .call(&read(9_999_999))
        .unwrap()
        .message()
        .unwrap();
    let [first, second] = [(); 2].map(|()| guest.client.submit(&read(1000), &[]).unwrap());
    // The loop goes on.
    guest.client.getattr(guest.root, getattr::BASIC).unwrap();
    assert!(!guest.client.is_done(first).unwrap());
    guest.client.flush(first).unwrap();
    assert!(matches!(guest.client.wait(first), Err(Error::Flushed)));
    assert!(!guest.client.is_done(second).unwrap());
    // A stop is not held up either, and nothing is lost by it.
    guest.client.front_end().stop().unwrap();
    assert_eq!(
        guest.client.wait_unkicked(second).unwrap().payload(),
        b"content"
    );
}
