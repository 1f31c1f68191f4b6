//! A file system that hangs: who asked it for something waits, and nobody else.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use protocol::{
    Names, Rmessage, Tflush, Tfsync, Tgetattr, Tlock, Tlopen, Tmessage, Tread, Treaddir, Tstatfs,
    Twalk, Twrite, getattr, lock, open,
};
use stub_guest::control::request;
use stub_guest::daemon::Launch;
use stub_guest::{Client, Completion, Error, Options};

use super::Host;
use super::faulty::Op;

/// A moment in which nothing may come. It only has to be long enough to be an argument: a test that
/// passes by mistake on a slow machine fails on others.
const A_WHILE: Duration = Duration::from_millis(100);

/// Fids of the two file systems.
struct Fids {
    /// Open on the one that hangs.
    there: u32,
    /// Its root.
    directory: u32,
    /// Its root, open.
    list: u32,
    /// Open on the other one.
    here: u32,
}

fn open_both(host: &mut Host) -> Fids {
    Fids {
        there: host.open("faulty/file", open::RDWR),
        directory: host.walk("faulty"),
        list: host.open("faulty", open::RDONLY | open::DIRECTORY),
        here: host.open("file", open::RDWR),
    }
}

/// A request that makes the host do `op`.
fn submit(client: &mut Client, fids: &Fids, op: Op) -> u16 {
    let (fid, offset) = (fids.there, 0);
    let message = match op {
        Op::Lookup => {
            let mut names = Names::new();
            assert!(names.push(b"file"));
            let newfid = client.alloc_fid();
            Tmessage::Walk(Twalk {
                fid: fids.directory,
                newfid,
                names,
            })
        }
        Op::Getattr => Tmessage::Getattr(Tgetattr {
            fid,
            mask: getattr::ALL,
        }),
        Op::Read => Tmessage::Read(Tread {
            fid,
            offset,
            count: 10,
        }),
        Op::Write => Tmessage::Write(Twrite {
            fid,
            offset,
            count: 10,
        }),
        Op::Fsync => Tmessage::Fsync(Tfsync { fid, datasync: 0 }),
        Op::Statfs => Tmessage::Statfs(Tstatfs { fid }),
        Op::Readdir => Tmessage::Readdir(Treaddir {
            fid: fids.list,
            offset,
            count: 4000,
        }),
        _ => unreachable!("{op:?} has no request here"),
    };
    let payload: &[u8] = if op == Op::Write { b"0123456789" } else { b"" };
    let tag = client.submit(&message, payload).unwrap();
    client.kick().unwrap();
    tag
}

const OPS: [Op; 7] = [
    Op::Lookup,
    Op::Getattr,
    Op::Read,
    Op::Write,
    Op::Fsync,
    Op::Statfs,
    Op::Readdir,
];

/// What the guest does with the healthy file system meanwhile.
fn use_the_other(client: &mut Client, root: u32, here: u32) {
    client.getattr(here, getattr::ALL).unwrap();
    assert_eq!(client.read(here, 2, 3).unwrap(), b"234");
    client.fsync(here, 0).unwrap();
    client.write_file(root, "new", b"content").unwrap();
    assert_eq!(client.read_file(root, "new").unwrap(), b"content");
    client.remove_path(root, "new").unwrap();
    assert_eq!(client.read_dir(root, "").unwrap().len(), 4);
}

#[test]
fn what_hangs_waits_alone_and_is_answered_once() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    for op in OPS {
        for end in [Ok(()), Err(Errno::EIO)] {
            // The kernel asks for a name again that it knew and that could not be confirmed.
            if op == Op::Lookup && end.is_err() {
                continue;
            }
            host.faulty.hang(op);
            let tag = submit(&mut host.client, &fids, op);
            host.faulty.wait_for_hanging(1);
            use_the_other(&mut host.client, root, fids.here);
            assert!(!host.client.is_done(tag).unwrap(), "{op:?}");
            host.faulty.release_with(end);
            let reply = host.client.wait(tag).unwrap();
            let answer = reply.message().map(drop).map_err(|error| error.errno());
            assert_eq!(answer, end.map_err(|errno| Some(errno as i32)), "{op:?}");
            assert_eq!(host.client.outstanding(), 0);
        }
    }
    assert_eq!(host.client.read(fids.there, 0, 10).unwrap(), b"0123456789");
}

#[test]
fn a_flush_of_what_hangs_is_answered_after_it() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    for op in OPS {
        host.faulty.hang(op);
        let oldtag = submit(&mut host.client, &fids, op);
        host.faulty.wait_for_hanging(1);
        // Asked for twice, as by a guest that has not the patience to wait.
        let flush = Tmessage::Flush(Tflush { oldtag });
        let flushes = [(); 2].map(|()| host.client.submit(&flush, &[]).unwrap());
        use_the_other(&mut host.client, root, fids.here);
        for tag in flushes {
            assert!(!host.client.is_done(tag).unwrap(), "{op:?}");
        }
        host.faulty.release();
        let order: Vec<u16> = [(); 3].map(|()| next(&mut host.client).tag).into();
        assert_eq!(order[0], oldtag, "{op:?}: {order:?}");
        assert_eq!(host.client.outstanding(), 0);
    }
}

/// The next request that comes back, with a reply.
fn next(client: &mut Client) -> Completion {
    let completion = client.wait_any().unwrap();
    let reply = completion.reply.as_ref().unwrap();
    reply.message().unwrap();
    completion
}

/// Asserts that all of these requests come back, each once, with the file's content if they ask for it.
#[track_caller]
fn assert_all_answered(client: &mut Client, mut tags: Vec<u16>) {
    while !tags.is_empty() {
        let Completion { tag, reply } = next(client);
        let place = tags.iter().position(|other| *other == tag);
        tags.swap_remove(place.expect("the request is outstanding"));
        let reply = reply.unwrap();
        if let Ok(Rmessage::Read(_)) = reply.message() {
            assert_eq!(reply.payload(), b"0123456789");
        }
    }
    assert_eq!(client.outstanding(), 0);
}

#[test]
fn more_may_hang_than_there_are_workers() {
    for threads in [2, 4, 9] {
        let Some(mut host) = Host::new(|launch| launch.arg("--threads").arg(threads.to_string()))
        else {
            return;
        };
        let fids = open_both(&mut host);
        let root = host.root;
        for op in OPS {
            host.faulty.hang(op);
            let tags = (0..40)
                .map(|_| submit(&mut host.client, &fids, op))
                .collect();
            host.faulty.wait_for_hanging(1);
            // Among it what only a worker may do: some are left for this.
            use_the_other(&mut host.client, root, fids.here);
            host.faulty.release();
            assert_all_answered(&mut host.client, tags);
        }
    }
}

#[test]
fn those_who_enter_a_file_system_that_hangs_leave_workers_for_others() {
    let Some(mut host) = Host::new(|launch| launch.arg("--threads").arg("4")) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    // The mount's own attributes are asked for when it is entered.
    host.faulty.hang(Op::Getattr);
    let tags = (0..40).map(|_| {
        let mut names = Names::new();
        assert!(names.push(b"faulty"));
        let newfid = host.guest.client.alloc_fid();
        let fid = root;
        let walk = Tmessage::Walk(Twalk { fid, newfid, names });
        host.guest.client.submit(&walk, &[]).unwrap()
    });
    let tags = tags.collect();
    host.client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    use_the_other(&mut host.client, root, fids.here);
    host.faulty.release();
    assert_all_answered(&mut host.client, tags);
}

#[test]
fn a_file_that_is_pinned_again_for_want_of_descriptors_holds_nobody_up() {
    // Few descriptors: those of open files' inodes are given up.
    let few = |launch: Launch| launch.arg("--rlimit-nofile").arg("80");
    let Some(mut host) = Host::new(few) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    for n in 0..200 {
        host.file(&format!("many-{n}"), "");
        let fid = host.walk(&format!("many-{n}"));
        host.client.getattr(fid, getattr::ALL).unwrap();
    }
    host.faulty.hang(Op::Getattr);
    let tag = submit(&mut host.client, &fids, Op::Getattr);
    host.faulty.wait_for_hanging(1);
    host.client.getattr(fids.here, getattr::ALL).unwrap();
    host.client.write_file(root, "new", b"content").unwrap();
    host.faulty.release();
    assert_all_answered(&mut host.client, vec![tag]);
}

#[test]
fn descriptors_are_had_from_the_file_system_that_does_not_hang() {
    for handles in HANDLES {
        let Some(mut host) = Host::new(few_descriptors(handles)) else {
            return;
        };
        let there = walk_many_there(&mut host, 40);
        host.faulty.hang(Op::Getattr);
        host.faulty.hang(Op::Lookup);
        walk_many_here(&mut host);
        host.faulty.release();
        for fid in there {
            host.client.getattr(fid, getattr::ALL).unwrap();
        }
    }
}

#[test]
fn descriptors_of_the_file_system_that_hangs_are_not_waited_for() {
    for handles in HANDLES {
        let Some(mut host) = Host::new(few_descriptors(handles)) else {
            return;
        };
        let there = walk_many_there(&mut host, 40);
        // These are kept, for nothing else leads to them.
        let gone: Vec<u32> = (0..35)
            .map(|n| {
                let path = host.file(&format!("gone-{n}"), "");
                let fid = host.walk(&format!("gone-{n}"));
                std::fs::remove_file(path).unwrap();
                fid
            })
            .collect();
        host.faulty.hang(Op::Getattr);
        host.faulty.hang(Op::Lookup);
        // It may be asked, too, for who was not used for longest are those that are kept.
        walk_many_here(&mut host);
        walk_many_here(&mut host);
        host.faulty.release();
        for fid in there.into_iter().chain(gone) {
            host.client.getattr(fid, getattr::ALL).unwrap();
        }
    }
}

/// How inodes are found again.
const HANDLES: [&str; 2] = ["prefer", "never"];

fn few_descriptors(handles: &str) -> impl FnOnce(Launch) -> Launch {
    move |launch| {
        let launch = launch.arg("--rlimit-nofile").arg("120");
        launch.arg("--inode-file-handles").arg(handles)
    }
}

/// Fids of so many files on the file system that is going to hang.
fn walk_many_there(host: &mut Host, count: usize) -> Vec<u32> {
    let walk = |n| {
        std::fs::write(host.faulty.path(&format!("many-{n}")), "").unwrap();
        host.walk(&format!("faulty/many-{n}"))
    };
    (0..count).map(walk).collect()
}

/// More files on the other one than there are descriptors.
fn walk_many_here(host: &mut Host) {
    for n in 0..200 {
        host.file(&format!("many-{n}"), "");
        let fid = host.walk(&format!("many-{n}"));
        host.client.getattr(fid, getattr::ALL).unwrap();
    }
}

#[test]
fn a_close_that_hangs_holds_nobody_up_whoever_had_the_file_last() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    // A read outlives the fid, and with it the file is closed.
    host.faulty.hang(Op::Read);
    let read = submit(&mut host.client, &fids, Op::Read);
    host.faulty.wait_for_hanging(1);
    host.client.clunk(fids.there).unwrap();
    host.faulty.hang(Op::Flush);
    host.faulty.release_only(Op::Read);
    let reply = host.client.wait(read).unwrap();
    assert_eq!(reply.payload(), b"0123456789");
    host.faulty.wait_for_hanging(1);
    use_the_other(&mut host.client, root, fids.here);
    host.faulty.release();

    // Tremove gives its fid back, too; and a lock has a description of its own.
    let open = host.open("faulty/file", open::RDWR);
    let lock = stub_guest::messages::Lock::whole(protocol::lock::WRLCK);
    host.client.lock(open, 0, &lock).unwrap();
    host.faulty.hang(Op::Flush);
    let remove = Tmessage::Remove(protocol::Tremove { fid: open });
    let remove = host.client.submit(&remove, &[]).unwrap();
    host.client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    use_the_other(&mut host.client, root, fids.here);
    host.faulty.release();
    assert_all_answered(&mut host.client, vec![remove]);

    // A new session closes what the one before has left open, and other messages go on.
    host.client
        .lcreate(fids.directory, "file", open::RDWR, 0o600, u32::MAX)
        .unwrap();
    host.faulty.hang(Op::Flush);
    let version = Tmessage::Version(protocol::Tversion {
        msize: 65_536,
        version: b"9P2000.L",
    });
    let version = host.client.submit(&version, &[]).unwrap();
    host.client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    let control = host.client.front_end().control();
    control.get_u64(request::GET_FEATURES).unwrap();
    assert!(!host.client.is_done(version).unwrap());
    host.faulty.release();
    assert_all_answered(&mut host.client, vec![version]);
}

/// Lets the opens end that hang, and asserts that a close hangs then and holds nobody up.
#[track_caller]
fn assert_closed_elsewhere(host: &mut Host, here: u32, tags: Vec<u16>) {
    let root = host.root;
    host.faulty.hang(Op::Flush);
    host.faulty.release_only(Op::Open);
    host.faulty.wait_for_hanging(1);
    use_the_other(&mut host.client, root, here);
    // It is nobody's any more: who has dropped it does not wait either.
    for tag in tags {
        let reply = host.client.wait(tag).unwrap();
        // Which of two is the first is the host's business.
        let error = reply.message().err().map(|error| error.errno());
        assert!(error.is_none_or(|errno| errno == Some(Errno::EINVAL as i32)));
    }
    host.faulty.release();
    assert_eq!(host.client.outstanding(), 0);
}

#[test]
fn a_file_that_is_opened_in_vain_is_not_closed_on_the_loop() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let here = host.open("file", open::RDWR);
    for flags in [open::RDONLY, open::RDWR] {
        let lopen = |host: &mut Host, fid| {
            let lopen = Tmessage::Lopen(Tlopen { fid, flags });
            let tag = host.client.submit(&lopen, &[]).unwrap();
            host.client.kick().unwrap();
            tag
        };

        // The fid is given back meanwhile.
        let fid = host.walk("faulty/file");
        host.faulty.hang(Op::Open);
        let tag = lopen(&mut host, fid);
        host.faulty.wait_for_hanging(1);
        host.client.clunk(fid).unwrap();
        assert_closed_elsewhere(&mut host, here, vec![tag]);

        // It stands for something else meanwhile.
        let fid = host.walk("faulty/file");
        host.faulty.hang(Op::Open);
        let tag = lopen(&mut host, fid);
        host.faulty.wait_for_hanging(1);
        host.client.walk(fid, fid, &[] as &[&str]).unwrap();
        assert_closed_elsewhere(&mut host, here, vec![tag]);
        host.client.getattr(fid, getattr::ALL).unwrap();

        // Another open of it was faster.
        let fid = host.walk("faulty/file");
        host.faulty.hang(Op::Open);
        let tags = vec![lopen(&mut host, fid), lopen(&mut host, fid)];
        host.faulty.wait_for_hanging(2);
        assert_closed_elsewhere(&mut host, here, tags);
        host.client.read(fid, 0, 10).unwrap();
        host.client.clunk(fid).unwrap();
    }
}

#[test]
fn a_description_for_locks_is_not_opened_or_closed_on_the_loop() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    let root = host.root;
    let lock = |host: &mut Host, kind| {
        let lock = Tmessage::Lock(Tlock {
            fid: fids.there,
            kind,
            flags: 0,
            start: 0,
            length: 0,
            proc_id: 1,
            client_id: b"guest",
        });
        host.client.submit(&lock, &[]).unwrap()
    };
    // The second waits for the first.
    host.faulty.hang(Op::Open);
    let tags = [(); 2].map(|()| lock(&mut host, lock::WRLCK));
    host.client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    use_the_other(&mut host.client, root, fids.here);
    host.faulty.release();
    assert_all_answered(&mut host.client, tags.into());
    // It goes with the last lock.
    host.faulty.hang(Op::Flush);
    let tag = lock(&mut host, lock::UNLCK);
    host.client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    host.client.wait(tag).unwrap().message().unwrap();
    use_the_other(&mut host.client, root, fids.here);
    host.faulty.release();
}

/// Asserts that the daemon has no answer on the control socket.
#[track_caller]
fn assert_no_answer(client: &mut Client) {
    let answer = client.front_end().wait_answer(A_WHILE);
    assert!(matches!(answer, Err(Error::Timeout(_))), "an answer came");
}

#[test]
fn a_stop_waits_for_what_hangs() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    host.faulty.hang(Op::Read);
    let tags = [(); 5].map(|()| submit(&mut host.client, &fids, Op::Read));
    host.faulty.wait_for_hanging(tags.len());
    let control = host.client.front_end().control();
    control.begin_get_vring_base().unwrap();
    assert_no_answer(&mut host.client);
    host.faulty.release();
    let control = host.client.front_end().control();
    let base = control.end_get_vring_base().unwrap();
    // The worker would write into the guest's memory; now it has.
    for tag in tags {
        assert!(host.client.is_used(tag).unwrap());
        assert_eq!(host.client.wait(tag).unwrap().payload(), b"0123456789");
    }
    host.client.front_end().start(base).unwrap();
    assert_eq!(host.client.read(fids.there, 0, 10).unwrap(), b"0123456789");
}

#[test]
fn a_full_ring_half_of_which_hangs_is_stopped_in_order() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    for round in 0..20 {
        OPS.iter().for_each(|op| host.faulty.hang(*op));
        let mut tags = Vec::new();
        for n in 0..64 {
            tags.push(submit(&mut host.client, &fids, OPS[n % OPS.len()]));
            let (fid, mask) = (fids.here, getattr::ALL);
            let here = Tmessage::Getattr(Tgetattr { fid, mask });
            tags.push(host.client.submit(&here, &[]).unwrap());
        }
        // From before the first request hangs to when all do that there are workers for.
        host.faulty.wait_for_hanging(round);
        let control = host.client.front_end().control();
        control.begin_get_vring_base().unwrap();
        host.client.kick().unwrap();
        host.faulty.release();
        let front_end = host.client.front_end();
        let base = front_end.control().end_get_vring_base().unwrap();
        let before = front_end.memory().fingerprint().unwrap();
        let left = front_end.ring().0.avail_idx().wrapping_sub(base);
        // What was taken is answered, and nothing else: the ring is taken from in order.
        let answered = tags.len() - usize::from(left);
        for (n, tag) in tags.iter().enumerate() {
            let used = host.client.is_used(*tag).unwrap();
            assert_eq!(used, n < answered, "round {round}, request {n}");
        }
        let front_end = host.client.front_end();
        front_end.control().get_u64(request::GET_FEATURES).unwrap();
        assert_eq!(front_end.memory().fingerprint().unwrap(), before);
        front_end.start(base).unwrap();
        assert_all_answered(&mut host.client, tags);
    }
}

#[test]
fn a_reset_waits_for_what_hangs() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    host.faulty.hang(Op::Write);
    submit(&mut host.client, &fids, Op::Write);
    host.faulty.wait_for_hanging(1);
    let control = host.client.front_end().control();
    control.begin_set(request::RESET_DEVICE, &[], &[]).unwrap();
    assert_no_answer(&mut host.client);
    host.faulty.release();
    let control = host.client.front_end().control();
    control.end_set(request::RESET_DEVICE).unwrap();
    host.client.front_end().reset().unwrap();
    host.client.forget();
    host.client.front_end().restart().unwrap();
    host.root = host.guest.client.mount(&Default::default()).unwrap();
    open_both(&mut host);
}

#[test]
fn a_new_session_waits_for_what_hangs() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    host.faulty.hang(Op::Getattr);
    let hung = submit(&mut host.client, &fids, Op::Getattr);
    host.faulty.wait_for_hanging(1);
    let version = Tmessage::Version(protocol::Tversion {
        msize: 65_536,
        version: b"9P2000.L",
    });
    let version = host.client.submit(&version, &[]).unwrap();
    let control = host.client.front_end().control();
    control.get_u64(request::GET_FEATURES).unwrap();
    assert!(!host.client.is_done(version).unwrap());
    host.faulty.release();
    let first = next(&mut host.client);
    let second = next(&mut host.client);
    assert_eq!((first.tag, second.tag), (hung, version));
    let reply = second.reply.unwrap();
    assert!(matches!(reply.message(), Ok(Rmessage::Version(_))));
    host.root = host.guest.client.mount(&Default::default()).unwrap();
    open_both(&mut host);
}

#[test]
fn the_next_front_end_and_sigterm_wait_for_what_hangs() {
    let Some(mut host) = Host::new(|launch| launch) else {
        return;
    };
    let fids = open_both(&mut host);
    host.faulty.hang(Op::Fsync);
    submit(&mut host.client, &fids, Op::Fsync);
    host.faulty.wait_for_hanging(1);
    host.client.front_end().control().hang_up().unwrap();
    let stream = host.guest.daemon.stream().unwrap();
    let impatient = Options {
        timeout: A_WHILE,
        ..Options::default()
    };
    let early = stub_guest::FrontEnd::negotiate(stream, impatient);
    assert!(matches!(early, Err(Error::Timeout(_))));
    host.faulty.release();
    let (mut client, root) = host.guest.daemon.mount().unwrap();
    client.read_file(root, "faulty/file").unwrap();

    let fid = client.walk_path(root, "faulty/file").unwrap();
    host.faulty.hang(Op::Statfs);
    let statfs = Tmessage::Statfs(Tstatfs { fid });
    let tag = client.submit(&statfs, &[]).unwrap();
    client.kick().unwrap();
    host.faulty.wait_for_hanging(1);
    host.daemon.signal(Signal::SIGTERM).unwrap();
    assert!(client.front_end().wait_closed(A_WHILE).is_err());
    host.faulty.release();
    assert!(host.guest.daemon.wait().unwrap().success());
    // Its end has answered it.
    client.wait(tag).unwrap().message().unwrap();
}
