//! What one guest may take: each bound is reached, answered with its own error, and free again
//! afterwards; and how fast it may be.

mod common;

use std::collections::HashSet;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{BINARY, Guest, host_set, refused};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use protocol::{Tgetattr, Tmessage, Tread, getattr, lock, open};
use stub_guest::daemon::Launch;
use stub_guest::messages::Lock;
use stub_guest::{Attach, CallFd, Client, Daemon, Error};

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
    refused(client.walk(root, more, &["file"]), Errno::ENFILE);
    refused(client.walk(root, more, &[] as &[&str]), Errno::ENFILE);
    refused(client.attach(more, "", "", 0), Errno::ENFILE);
    refused(client.xattrwalk(fids[0], more, ""), Errno::ENFILE);
    // All that needs no further one goes on, and a walk onto the fid itself needs none.
    client.getattr(fids[5], getattr::BASIC).unwrap();
    client.lopen(fids[6], open::RDONLY).unwrap();
    client.walk(fids[7], fids[7], &[] as &[&str]).unwrap();
    client.clunk(fids[8]).unwrap();
    client.walk(root, fids[8], &["file"]).unwrap();
    refused(client.walk(root, more, &["file"]), Errno::ENFILE);
    // A new session has none.
    client.forget();
    guest.root = guest.client.mount(&Default::default()).unwrap();
    for _ in 1..20 {
        guest.walk("file");
    }
}

/// Asserts that the daemon has descriptors left for its front-end and for the next one.
#[track_caller]
fn assert_reserve(mut guest: Guest, count: usize) {
    assert!((100..180).contains(&count), "{count} descriptors");
    for _ in 0..3 {
        let front_end = guest.client.front_end();
        front_end.replace_call(CallFd::EventFd).unwrap();
        front_end.replace_kick().unwrap();
        guest.client.getattr(guest.root, getattr::BASIC).unwrap();
    }
    // A walk of many names has them all at once.
    let path = "d/".repeat(15);
    let deep = guest
        .client
        .walk_path(guest.root, path.trim_end_matches('/'));
    assert!(
        deep.is_ok() || matches!(deep, Err(Error::Errno(code)) if code == Errno::ENFILE as u32)
    );
    guest.client.front_end().set_mem_table().unwrap();
    let base = guest.client.front_end().stop().unwrap();
    guest.client.front_end().start(base).unwrap();
    guest.client.getattr(guest.root, getattr::BASIC).unwrap();
    let Guest {
        client, mut daemon, ..
    } = guest;
    drop(client);
    let (mut client, root) = daemon.mount().unwrap();
    client.getattr(root, getattr::BASIC).unwrap();
}

/// Takes until there is no more, and returns how often that was; twice, for once proves no limit.
#[track_caller]
fn until_refused(mut take: impl FnMut() -> Result<(), Error>) -> usize {
    let count = (0..).find(|_| match take() {
        Ok(()) => false,
        refusal => {
            refused(refusal, Errno::ENFILE);
            true
        }
    });
    refused(take(), Errno::ENFILE);
    count.unwrap()
}

#[test]
fn open_files_leave_the_daemon_its_descriptors() {
    for handles in ["prefer", "never"] {
        let mut guest = guest(&["--rlimit-nofile=200", "--inode-file-handles", handles]);
        std::fs::create_dir_all(guest.path(&"d/".repeat(15))).unwrap();
        guest.file("file", "content");
        let root = guest.root;
        let client = &mut guest.client;
        let count = until_refused(|| {
            let fid = client.walk_path(root, "file")?;
            client.lopen(fid, open::RDONLY).map(drop)
        });
        assert_reserve(guest, count);
    }
}

#[test]
fn new_files_leave_the_daemon_its_descriptors() {
    let mut guest = guest(&["--rlimit-nofile=200"]);
    std::fs::create_dir_all(guest.path(&"d/".repeat(15))).unwrap();
    let root = guest.root;
    let client = &mut guest.client;
    let mut number = 0;
    let count = until_refused(|| {
        let fid = client.alloc_fid();
        client.walk(root, fid, &[] as &[&str])?;
        number += 1;
        let name = number.to_string();
        client
            .lcreate(fid, &name, open::RDWR | open::EXCL, 0o600, common::NO_ID)
            .map(drop)
    });
    // What was refused was not made.
    assert!(!guest.path(&number.to_string()).exists());
    assert_reserve(guest, count);
}

#[test]
fn locks_leave_the_daemon_its_descriptors() {
    let mut guest = guest(&["--rlimit-nofile=200"]);
    std::fs::create_dir_all(guest.path(&"d/".repeat(15))).unwrap();
    let root = guest.root;
    let client = &mut guest.client;
    let mut number = 0;
    // Each file has a descriptor, and its locks have another.
    let count = until_refused(|| {
        let fid = client.alloc_fid();
        client.walk(root, fid, &[] as &[&str])?;
        number += 1;
        let name = number.to_string();
        client.lcreate(fid, &name, open::RDWR, 0o600, common::NO_ID)?;
        let locked = client.lock(fid, 0, &Lock::whole(lock::RDLCK));
        if locked.is_err() {
            client.clunk(fid)?;
        }
        locked.map(drop)
    });
    assert_reserve(guest, 2 * count);
}

#[test]
fn files_without_a_name_leave_the_daemon_its_descriptors() {
    for handles in ["prefer", "never"] {
        let mut guest = guest(&["--rlimit-nofile=200", "--inode-file-handles", handles]);
        std::fs::create_dir_all(guest.path(&"d/".repeat(15))).unwrap();
        let mut number = 0;
        let count = until_refused(|| {
            number += 1;
            let name = format!("file-{number}");
            let path = guest.file(&name, "");
            let fid = guest.client.walk_path(guest.root, &name);
            std::fs::remove_file(path).unwrap();
            fid.map(drop)
        });
        assert_reserve(guest, count);
    }
}

/// Sets the daemon's limit of descriptors.
fn allow(daemon: &Daemon, limit: u64) {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: 1024,
    };
    let (pid, none) = (daemon.pid() as i32, std::ptr::null_mut());
    // SAFETY: the limit is one struct rlimit, and nothing is written.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, none) };
    assert_eq!(result, 0);
}

/// Lets the daemon have so many descriptors more than it has.
fn allow_more(daemon: &Daemon, count: usize) {
    let of_daemon = format!("/proc/{}/fd", daemon.pid());
    let numbers: HashSet<u64> = std::fs::read_dir(of_daemon)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse())
        .map(Result::unwrap)
        .collect();
    let mut free = (0..).filter(|number| !numbers.contains(number));
    allow(daemon, free.nth(count).unwrap());
}

/// A way to make a file of this name.
type Make<'a> = &'a dyn Fn(&mut Guest, &str) -> Result<(), Error>;

#[test]
fn without_descriptors_a_file_is_made_once_or_not_at_all() {
    for model in ["passthrough", "none", "mapped-xattr", "mapped-file"] {
        let mut guest = guest(&["--security-model", model]);
        if model == "mapped-xattr" && !host_set(&guest.path(""), "user.test", b"") {
            continue;
        }
        let flags = open::RDWR | open::EXCL;
        let create = |guest: &mut Guest, name: &str| {
            let fid = guest.client.alloc_fid();
            let root = guest.root;
            guest.client.walk(root, fid, &[] as &[&str]).unwrap();
            guest.client.lcreate(fid, name, flags, 0o600, common::NO_ID)
        };
        // Some that can be given up, and none.
        for idle in [true, false] {
            for more in 0..8 {
                if idle {
                    for number in 0..20 {
                        guest.file(&format!("idle-{number}"), "");
                        guest.walk(&format!("idle-{number}"));
                    }
                } else {
                    guest.client.forget();
                    guest.root = guest.client.mount(&Default::default()).unwrap();
                }
                let ways: [(&str, Make<'_>); 4] = [
                    ("dir", &|guest, name| {
                        let root = guest.root;
                        guest
                            .client
                            .mkdir(root, name, 0o700, common::NO_ID)
                            .map(drop)
                    }),
                    ("link", &|guest, name| {
                        let root = guest.root;
                        guest
                            .client
                            .symlink(root, name, "target", common::NO_ID)
                            .map(drop)
                    }),
                    ("fifo", &|guest, name| {
                        let (root, mode) = (guest.root, libc::S_IFIFO | 0o600);
                        guest
                            .client
                            .mknod(root, name, mode, (0, 0), common::NO_ID)
                            .map(drop)
                    }),
                    ("file", &|guest, name| create(guest, name).map(drop)),
                ];
                for (kind, make) in ways {
                    let name = format!("{kind}-{more}-{idle}");
                    allow_more(&guest.daemon, more);
                    let result = make(&mut guest, &name);
                    allow(&guest.daemon, 1024);
                    let there = guest.path(&name).symlink_metadata().is_ok();
                    assert_eq!(there, result.is_ok(), "{model}, {name}: {result:?}");
                    if result.is_err() {
                        refused(result, Errno::ENFILE);
                        assert!(!idle || model != "passthrough", "{name}");
                        make(&mut guest, &name).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn a_front_end_waits_that_the_host_has_no_descriptor_for() {
    let Guest {
        client, mut daemon, ..
    } = guest(&[]);
    drop(client);
    allow(&daemon, 3);
    // Accepted by the kernel alone.
    let stream = daemon.stream().unwrap();
    let begin = Instant::now();
    while !daemon.stderr().contains("cannot accept") {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    allow(&daemon, 1024);
    let front_end = stub_guest::FrontEnd::new(stream, Default::default()).unwrap();
    Client::new(front_end).mount(&Default::default()).unwrap();
    daemon.signal(Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
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
    // A process that holds nothing any more does not count.
    for proc_id in 0..100 {
        for kind in [lock::WRLCK, lock::UNLCK] {
            let lock = of(proc_id, kind, 10 * u64::from(proc_id), 5);
            assert_eq!(client.lock(fid, 0, &lock).unwrap(), lock::SUCCESS);
        }
    }
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
fn reads_have_limits_of_their_own() {
    for options in [
        ["--throttle-iops-read=20,2", "--throttle-bps-write=1"],
        [
            "--throttle-bps-read=1000000,100000",
            "--throttle-iops-write=1",
        ],
    ] {
        let mut guest = guest(&options);
        guest.file("file", vec![7; 50_000]);
        let request = Tmessage::Read(Tread {
            fid: guest.open("file", open::RDONLY),
            offset: 0,
            count: 50_000,
        });
        // Two at once, the others one each 50 ms, and none waits for the limits of writes.
        let times = times(&mut guest, &request, 6);
        assert!(
            times[5] >= Duration::from_millis(195),
            "{options:?}: {times:?}"
        );
    }
}

/// What ends the waits of a guest's requests; the guest can be used afterwards.
type Cut = fn(&mut Guest);

const CUTS: &[(&str, Cut)] = &[
    ("Tversion", |guest| {
        guest.root = guest.client.mount(&Attach::default()).unwrap();
    }),
    ("stop", |guest| {
        let base = guest.client.front_end().stop().unwrap();
        guest.client.front_end().start(base).unwrap();
    }),
    ("reset", |guest| {
        guest.client.front_end().reset().unwrap();
        guest.client.forget();
        guest.client.front_end().restart().unwrap();
        guest.root = guest.client.mount(&Attach::default()).unwrap();
    }),
    ("reconnect", |guest| {
        guest.client.front_end().control().hang_up().unwrap();
        (guest.client, guest.root) = guest.daemon.mount().unwrap();
    }),
];

#[test]
fn nothing_that_ends_waits_makes_a_guest_faster() {
    const ROUNDS: u32 = 4;
    const READS: u32 = 10;
    const COUNT: u32 = 50_000;
    const RATE: u32 = 4_000_000;
    for (what, cut) in CUTS {
        let mut guest = guest(&[&format!("--throttle-bps={RATE},{COUNT}")]);
        guest.file("file", vec![7; COUNT as usize]);
        let begin = Instant::now();
        for _ in 0..ROUNDS {
            let read = Tmessage::Read(Tread {
                fid: guest.open("file", open::RDONLY),
                offset: 0,
                count: COUNT,
            });
            for _ in 0..READS {
                guest.client.submit(&read, &[]).unwrap();
            }
            guest.client.kick().unwrap();
            // All are taken out of the ring before it is taken away.
            let getattr = |guest: &mut Guest| guest.client.getattr(guest.root, getattr::BASIC);
            getattr(&mut guest).unwrap();
            cut(&mut guest);
            // Answered at once, for nobody waits for it; what comes afterwards is not.
            getattr(&mut guest).unwrap();
        }
        let paid = (ROUNDS * READS - 1) * COUNT;
        let least = Duration::from_secs(1) * paid / RATE - Duration::from_millis(1);
        let took = begin.elapsed();
        assert!(took >= least, "{what}: {took:?} instead of {least:?}");
    }
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

/// Without memory for a coroutine's stack a request is answered with ENOMEM, and nothing that a stop
/// would wait for is left.
#[test]
fn no_memory_for_a_request() {
    let mut daemon = Launch::new(BINARY).start().unwrap();
    let mut client = daemon.client().unwrap();
    let before = limit_address_space(daemon.pid(), 1);
    refused(client.version(8192, "9P2000.L"), Errno::ENOMEM);
    refused(client.version(8192, "9P2000.L"), Errno::ENOMEM);
    limit_address_space(daemon.pid(), before);
    let base = client.front_end().stop().unwrap();
    client.front_end().start(base).unwrap();
    let root = client.mount(&Attach::default()).unwrap();
    client.getattr(root, getattr::BASIC).unwrap();
}

/// Sets the limit of a process's address space, and returns the limit before.
fn limit_address_space(pid: u32, limit: libc::rlim_t) -> libc::rlim_t {
    let pid = pid as libc::pid_t;
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: of the two structures the calls read one and write the other.
    unsafe {
        assert_eq!(
            libc::prlimit(pid, libc::RLIMIT_AS, std::ptr::null(), &raw mut limits),
            0
        );
        let before = limits.rlim_cur;
        limits.rlim_cur = limit;
        assert_eq!(
            libc::prlimit(
                pid,
                libc::RLIMIT_AS,
                &raw const limits,
                std::ptr::null_mut()
            ),
            0
        );
        before
    }
}
