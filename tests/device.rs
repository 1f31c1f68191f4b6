//! The vhost-user device: negotiation, the ring in every form, stop, reset, disconnect, memory.

mod common;

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::{BINARY, Guest, pattern, refused};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use protocol::{Tfsync, Tgetattr, Tmessage, Tread, getattr, open};
use stub_guest::control::{protocol_feature, request};
use stub_guest::daemon::Launch;
use stub_guest::front_end::{
    FEATURE_EVENT_IDX, FEATURE_INDIRECT_DESC, FEATURE_LOG_ALL, FEATURE_MOUNT_TAG,
    FEATURE_PROTOCOL_FEATURES, FEATURE_VERSION_1,
};
use stub_guest::{Attach, CallFd, Client, Daemon, Error, FrontEnd, Options};

fn daemon() -> Daemon {
    Daemon::start(BINARY).unwrap()
}

/// A session's worth of work: what is written is read again, by way of the host.
#[track_caller]
fn exercise(daemon: &Daemon, client: &mut Client) {
    let root = client.mount(&Attach::default()).unwrap();
    let content = pattern(150_000);
    client.write_file(root, "exercise", &content).unwrap();
    assert!(fs::read(daemon.path("exercise")).unwrap() == content);
    assert!(client.read_file(root, "exercise").unwrap() == content);
    assert_eq!(client.read_dir(root, "").unwrap().len(), 3);
    // Several at once, more than a small ring holds.
    let file = client.walk_path(root, "exercise").unwrap();
    client.lopen(file, open::RDONLY).unwrap();
    let mut waiting = HashMap::new();
    for n in 0..50u64 {
        let read = Tmessage::Read(Tread {
            fid: file,
            offset: n * 100,
            count: 100,
        });
        let tag = loop {
            match client.submit(&read, &[]) {
                Ok(tag) => break tag,
                Err(Error::RingFull) => finish(client, &mut waiting, &content),
                Err(error) => panic!("{error}"),
            }
        };
        waiting.insert(tag, n as usize * 100);
    }
    while !waiting.is_empty() {
        finish(client, &mut waiting, &content);
    }
    client.close(file).unwrap();
}

/// Waits for one of the reads of `exercise`.
fn finish(client: &mut Client, waiting: &mut HashMap<u16, usize>, content: &[u8]) {
    let completion = client.wait_any().unwrap();
    let at = waiting.remove(&completion.tag).unwrap();
    assert!(completion.reply.unwrap().payload() == &content[at..at + 100]);
}

/// Requests of many kinds, posted and kicked but not waited for.
fn load(client: &mut Client, file: u32, count: usize) -> Vec<u16> {
    let mut tags = Vec::new();
    for n in 0..count {
        let message = match n % 3 {
            0 => Tmessage::Read(Tread {
                fid: file,
                offset: 0,
                count: 200_000,
            }),
            1 => Tmessage::Fsync(Tfsync {
                fid: file,
                datasync: 0,
            }),
            _ => Tmessage::Getattr(Tgetattr {
                fid: file,
                mask: getattr::ALL,
            }),
        };
        tags.push(client.submit(&message, &[]).unwrap());
    }
    client.kick().unwrap();
    tags
}

/// A guest with little memory and an open file of 200 kB.
fn loaded_guest() -> (Guest, u32) {
    let mut daemon = daemon();
    let options = Options {
        regions: vec![24 << 20],
        ..Options::default()
    };
    let mut client = daemon.client_with(options).unwrap();
    let root = client.mount(&Attach::default()).unwrap();
    let mut guest = Guest {
        client,
        root,
        daemon,
    };
    guest.file("file", pattern(200_000));
    let file = guest.open("file", open::RDWR);
    (guest, file)
}

fn fds(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        .count()
}

#[test]
fn exactly_the_implemented_features_are_offered() {
    let mut daemon = daemon();
    let front_end = daemon.front_end(Options::default()).unwrap();
    let offered = FEATURE_MOUNT_TAG
        | FEATURE_LOG_ALL
        | FEATURE_INDIRECT_DESC
        | FEATURE_EVENT_IDX
        | FEATURE_PROTOCOL_FEATURES
        | FEATURE_VERSION_1;
    assert_eq!(front_end.offered_features(), offered);
    let needed = protocol_feature::CONFIG
        | protocol_feature::REPLY_ACK
        | protocol_feature::LOG_SHMFD
        | protocol_feature::RESET_DEVICE
        | protocol_feature::CONFIGURE_MEM_SLOTS
        | protocol_feature::DEVICE_STATE;
    let found = front_end.protocol_features();
    assert_eq!(found & needed, needed);
    assert_eq!(found & !(needed | protocol_feature::MQ), 0, "{found:#x}");
}

#[test]
fn any_range_of_the_config_space_can_be_read() {
    let tag = "a tag of 254 bytes ".repeat(14)[..254].to_owned();
    for tag in ["host", "x", tag.as_str()] {
        let mut daemon = Launch::new(BINARY).arg("--tag").arg(tag).start().unwrap();
        let mut front_end = daemon.front_end(Options::default()).unwrap();
        let expected = [&(tag.len() as u16).to_le_bytes(), tag.as_bytes()].concat();
        let size = expected.len() as u32;
        assert_eq!(front_end.config(0, size).unwrap(), expected);
        // User-mode Linux asks for 2, 3, 4 ... bytes from the beginning.
        for length in 1..=size {
            assert_eq!(
                front_end.config(0, length).unwrap(),
                expected[..length as usize]
            );
        }
        for offset in 0..size {
            assert_eq!(
                front_end.config(offset, 1).unwrap(),
                expected[offset as usize..][..1]
            );
            assert_eq!(
                front_end.config(offset, size - offset).unwrap(),
                expected[offset as usize..]
            );
        }
    }
}

#[test]
fn every_ring_size_up_to_1024_works() {
    let mut daemon = daemon();
    for queue_size in [2, 4, 8, 16, 64, 128, 256, 512, 1024] {
        for features in [0, FEATURE_INDIRECT_DESC] {
            let options = Options {
                queue_size,
                ..Options::default()
            }
            .without(features);
            let mut client = daemon.client_with(options).unwrap();
            exercise(&daemon, &mut client);
        }
    }
}

#[test]
fn other_ring_sizes_are_refused() {
    let mut daemon = daemon();
    for size in [
        0,
        3,
        100,
        127,
        129,
        1025,
        2048,
        32_768,
        65_535,
        65_536,
        u32::MAX,
    ] {
        let stream = daemon.stream().unwrap();
        let mut front_end = FrontEnd::negotiate(stream, Options::default()).unwrap();
        let result = front_end.control().set_vring(request::SET_VRING_NUM, size);
        let refused = matches!(result, Err(Error::Refused { .. } | Error::Disconnected));
        assert!(refused, "{size}: {result:?}");
    }
    let mut client = daemon.client().unwrap();
    exercise(&daemon, &mut client);
}

#[test]
fn the_ring_works_with_every_set_of_features_and_notifications() {
    let mut daemon = daemon();
    let both = FEATURE_EVENT_IDX | FEATURE_INDIRECT_DESC;
    for features in [
        0,
        FEATURE_EVENT_IDX,
        FEATURE_INDIRECT_DESC,
        FEATURE_LOG_ALL,
        both,
    ] {
        for call in [
            CallFd::EventFd,
            CallFd::Pipe,
            CallFd::SocketPair,
            CallFd::Absent,
        ] {
            for base in [0, 65_500] {
                let options = Options {
                    call,
                    base,
                    ..Options::default()
                }
                .without(features);
                let mut client = daemon.client_with(options).unwrap();
                exercise(&daemon, &mut client);
            }
        }
    }
}

#[test]
fn the_ring_works_without_a_kick_fd() {
    let mut daemon = daemon();
    for features in [0, FEATURE_EVENT_IDX] {
        for call in [CallFd::EventFd, CallFd::Absent] {
            let options = Options {
                kick: false,
                call,
                ..Options::default()
            }
            .without(features);
            let mut client = daemon.client_with(options).unwrap();
            exercise(&daemon, &mut client);
        }
    }
}

#[test]
fn a_front_end_without_protocol_features_is_served() {
    // Its ring needs no enabling, and nothing is acknowledged.
    let mut daemon = daemon();
    let options = Options::default().without(FEATURE_PROTOCOL_FEATURES);
    let mut client = daemon.client_with(options).unwrap();
    assert_eq!(client.front_end().protocol_features(), 0);
    exercise(&daemon, &mut client);
}

#[test]
fn a_front_end_without_acknowledgements_is_served() {
    let mut daemon = daemon();
    let protocol_features = !protocol_feature::REPLY_ACK;
    let options = Options {
        protocol_features,
        ..Options::default()
    };
    let mut client = daemon.client_with(options).unwrap();
    exercise(&daemon, &mut client);
}

#[test]
fn guest_memory_may_have_many_regions() {
    let mut daemon = daemon();
    for count in [2, 3, 8, 32] {
        let options = Options {
            regions: vec![8 << 20; count],
            ..Options::default()
        };
        let mut client = daemon.client_with(options).unwrap();
        exercise(&daemon, &mut client);
    }
}

#[test]
fn the_ring_may_be_filled_with_large_requests() {
    let mut guest = Guest::new();
    let content = pattern(4_000_000);
    guest.file("file", &content);
    let file = guest.open("file", open::RDONLY);
    let client = &mut guest.client;
    let mut expected = HashMap::new();
    for n in 0..128usize {
        let offset = n * 27_000;
        let read = Tread {
            fid: file,
            offset: offset as u64,
            count: 500_000,
        };
        expected.insert(client.submit(&Tmessage::Read(read), &[]).unwrap(), offset);
    }
    let more = client.submit(
        &Tmessage::Fsync(Tfsync {
            fid: file,
            datasync: 0,
        }),
        &[],
    );
    assert!(matches!(more, Err(Error::RingFull)));
    for _ in 0..128 {
        let completion = client.wait_any().unwrap();
        let offset = expected.remove(&completion.tag).unwrap();
        assert!(completion.reply.unwrap().payload() == &content[offset..offset + 500_000]);
    }
}

#[test]
fn nothing_is_announced_that_nobody_waits_for() {
    for features in [0, FEATURE_EVENT_IDX] {
        let mut daemon = daemon();
        let mut client = daemon
            .client_with(Options::default().without(features))
            .unwrap();
        let root = client.mount(&Attach::default()).unwrap();
        // The mount has slept; from here on the driver looks by itself.
        let (ring, memory) = client.front_end().ring();
        ring.mute(memory).unwrap();
        client
            .front_end()
            .control()
            .get_u64(request::GET_FEATURES)
            .unwrap();
        while client.front_end().wait_call(Duration::ZERO).is_ok() {}
        for _ in 0..100 {
            let message = Tmessage::Getattr(Tgetattr {
                fid: root,
                mask: getattr::ALL,
            });
            let tag = client.submit(&message, &[]).unwrap();
            while !client.is_done(tag).unwrap() {
                std::hint::spin_loop();
            }
            client.wait(tag).unwrap().message().unwrap();
        }
        // An answer on the control socket shows that the loop is past the last reply but one.
        client
            .front_end()
            .control()
            .get_u64(request::GET_FEATURES)
            .unwrap();
        let call = client.front_end().wait_call(Duration::ZERO);
        assert!(
            matches!(call, Err(Error::Timeout(_))),
            "a call came that was not asked for"
        );
    }
}

#[test]
fn the_kick_fd_may_be_replaced_while_the_ring_runs() {
    let (mut guest, file) = loaded_guest();
    for round in 0..50 {
        // Idle and busy by turns.
        let tags = if round % 2 == 0 {
            Vec::new()
        } else {
            load(&mut guest.client, file, 9)
        };
        guest.client.front_end().replace_kick().unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
        guest.client.getattr(file, getattr::ALL).unwrap();
    }
}

#[test]
fn a_kick_is_not_lost_with_the_fd_it_went_to() {
    let (mut guest, file) = loaded_guest();
    let getattr = Tmessage::Getattr(Tgetattr {
        fid: file,
        mask: getattr::ALL,
    });
    for _ in 0..50 {
        let tag = guest.client.submit(&getattr, &[]).unwrap();
        guest.client.kick().unwrap();
        guest.client.front_end().replace_kick().unwrap();
        guest.client.wait(tag).unwrap().message().unwrap();
    }
}

#[test]
fn a_long_queue_is_emptied_whatever_happens_to_the_kick() {
    let mut daemon = daemon();
    let options = Options {
        queue_size: 1024,
        ..Options::default()
    };
    let mut client = daemon.client_with(options).unwrap();
    let root = client.mount(&Attach::default()).unwrap();
    let post = |client: &mut Client| -> Vec<u16> {
        let message = Tmessage::Getattr(Tgetattr {
            fid: root,
            mask: getattr::ALL,
        });
        (0..1000)
            .map(|_| client.submit(&message, &[]).unwrap())
            .collect()
    };
    for round in 0..5 {
        // The kick goes to a descriptor that is replaced at once ...
        let tags = post(&mut client);
        client.kick().unwrap();
        client.front_end().replace_kick().unwrap();
        for tag in tags {
            let reply = client
                .wait(tag)
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            reply.message().unwrap();
        }
        // ... or there is none, because the requests were there before the ring was started.
        let base = client.front_end().stop().unwrap();
        let tags = post(&mut client);
        client.front_end().start(base).unwrap();
        for tag in tags {
            let used = client.wait_unkicked(tag);
            let reply = used.unwrap_or_else(|error| panic!("started, round {round}: {error}"));
            reply.message().unwrap();
        }
    }
}

#[test]
fn the_call_fd_may_be_replaced_while_the_ring_runs() {
    let (mut guest, file) = loaded_guest();
    for call in [
        CallFd::Pipe,
        CallFd::Absent,
        CallFd::SocketPair,
        CallFd::EventFd,
    ]
    .repeat(5)
    {
        let tags = load(&mut guest.client, file, 9);
        guest.client.front_end().replace_call(call).unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
    }
}

#[test]
fn a_call_pipe_that_nobody_empties_does_not_stop_the_device() {
    for call in [CallFd::Pipe, CallFd::SocketPair] {
        let mut daemon = daemon();
        let options = Options {
            call,
            ..Options::default()
        }
        .without(FEATURE_EVENT_IDX);
        let mut client = daemon.client_with(options).unwrap();
        let root = client.mount(&Attach::default()).unwrap();
        // Ask for every notification and take none of them: more than any pipe holds.
        let (ring, memory) = client.front_end().ring();
        ring.listen(memory).unwrap();
        for _ in 0..20_000 {
            let message = Tmessage::Getattr(Tgetattr { fid: root, mask: 0 });
            let tag = client.submit(&message, &[]).unwrap();
            client.front_end().force_kick().unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !client.is_done(tag).unwrap() {
                assert!(
                    Instant::now() < deadline,
                    "the device waits for the reader of its {call:?}"
                );
                std::thread::yield_now();
            }
            let reply = client.wait(tag).unwrap();
            client.recycle(reply);
        }
        client
            .front_end()
            .control()
            .get_u64(request::GET_FEATURES)
            .unwrap();
    }
}

#[test]
fn stop_ends_what_was_taken_and_touches_nothing_after() {
    let (mut guest, file) = loaded_guest();
    for round in 0..10 {
        let tags = load(&mut guest.client, file, 40);
        let front_end = guest.client.front_end();
        let base = front_end.stop().unwrap();
        let before = front_end.memory().fingerprint().unwrap();
        // What was taken is answered, the rest is still available.
        let left = usize::from(front_end.ring().0.avail_idx().wrapping_sub(base));
        assert!(left <= tags.len(), "round {round}: base {base}");
        // Kicks go nowhere while the ring is stopped.
        front_end.force_kick().unwrap();
        front_end.control().get_u64(request::GET_FEATURES).unwrap();
        assert_eq!(
            front_end.memory().fingerprint().unwrap(),
            before,
            "written after the stop"
        );
        let mut done = 0;
        for tag in &tags {
            done += usize::from(guest.client.is_done(*tag).unwrap());
        }
        assert_eq!(done + left, tags.len(), "round {round}: base {base}");
        // It goes on where it stopped; the session is the same.
        guest.client.front_end().start(base).unwrap();
        guest.client.front_end().force_kick().unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
    }
}

#[test]
fn a_disabled_ring_waits() {
    let (mut guest, file) = loaded_guest();
    guest.client.front_end().enable(false).unwrap();
    let tags = load(&mut guest.client, file, 12);
    guest.client.front_end().force_kick().unwrap();
    guest
        .client
        .front_end()
        .control()
        .get_u64(request::GET_FEATURES)
        .unwrap();
    for tag in &tags {
        assert!(
            !guest.client.is_done(*tag).unwrap(),
            "served while disabled"
        );
    }
    guest.client.front_end().enable(true).unwrap();
    guest.client.front_end().force_kick().unwrap();
    for tag in tags {
        guest.client.wait(tag).unwrap().message().unwrap();
    }
}

#[test]
fn reset_ends_the_session() {
    let (mut guest, file) = loaded_guest();
    for round in 0..10 {
        if round % 2 == 1 {
            load(&mut guest.client, file, 40);
        }
        guest.client.front_end().reset().unwrap();
        guest.client.forget();
        let before = guest.client.front_end().memory().fingerprint().unwrap();
        guest
            .client
            .front_end()
            .control()
            .get_u64(request::GET_FEATURES)
            .unwrap();
        assert_eq!(
            guest.client.front_end().memory().fingerprint().unwrap(),
            before
        );
        guest.client.front_end().restart().unwrap();
        refused(guest.client.getattr(file, getattr::ALL), Errno::EBADF);
        let root = guest.client.mount(&Attach::default()).unwrap();
        guest.client.walk(root, file, &["file"]).unwrap();
        guest.client.lopen(file, open::RDWR).unwrap();
    }
}

#[test]
fn a_remount_on_the_same_device_is_a_new_session() {
    let (mut guest, file) = loaded_guest();
    let before = fds(&guest.daemon);
    for _ in 0..5 {
        let root = guest.client.mount(&Attach::default()).unwrap();
        refused(guest.client.getattr(file, getattr::ALL), Errno::EBADF);
        guest.client.walk(root, file, &["file"]).unwrap();
        guest.client.lopen(file, open::RDWR).unwrap();
    }
    assert_eq!(fds(&guest.daemon), before);
}

#[test]
fn nothing_is_left_over_after_200_connections() {
    let mut daemon = Launch::new(BINARY)
        .arg("--threads")
        .arg("4")
        .start()
        .unwrap();
    fs::write(daemon.path("file"), pattern(200_000)).unwrap();
    let options = Options {
        regions: vec![24 << 20],
        ..Options::default()
    };
    let mut counts = Vec::new();
    for round in 0..220 {
        let mut client = daemon.client_with(options.clone()).unwrap();
        let root = client.mount(&Attach::default()).unwrap();
        // Counted where every round is in the same state: the one before is gone for certain.
        counts.push((fds(&daemon), threads(&daemon)));
        let file = client.walk_path(root, "file").unwrap();
        client.lopen(file, open::RDWR).unwrap();
        client.walk(root, 90, &["file"]).unwrap();
        client.getattr(90, getattr::ALL).unwrap();
        if round % 2 == 0 {
            // It goes in the middle of things.
            load(&mut client, file, 30);
        }
    }
    let first = counts[0].0;
    assert!(
        counts.iter().all(|count| count.0 == first),
        "descriptors, threads: {counts:?}"
    );
    // The loop and at most four workers.
    assert!(
        counts.iter().all(|count| count.1 <= 5),
        "descriptors, threads: {counts:?}"
    );
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn mappings_are_not_left_over() {
    let mut daemon = daemon();
    let regions = |daemon: &Daemon| {
        let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
        maps.lines()
            .filter(|line| line.contains("memfd:stub-guest"))
            .count()
    };
    for _ in 0..10 {
        let options = Options {
            regions: vec![8 << 20; 4],
            ..Options::default()
        };
        let mut client = daemon.client_with(options).unwrap();
        exercise(&daemon, &mut client);
        assert_eq!(regions(&daemon), 4);
        client.front_end().set_mem_table().unwrap();
        assert_eq!(regions(&daemon), 4);
    }
}

#[test]
fn pages_that_the_guest_has_read_into_are_logged_by_whoever_serves() {
    const PAGE: usize = 0x1000;
    let (mut guest, _) = loaded_guest();
    let log: fs::File = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap().into();
    let front_end = guest.client.front_end();
    let memory = front_end.memory().snapshot().unwrap();
    let (start, bytes) = memory.last().unwrap();
    let size = (start + bytes.len() as u64) / (8 * PAGE as u64) + 1;
    log.set_len(size).unwrap();
    front_end.start_log(log.as_fd(), size).unwrap();
    for (number, byte) in [0xa1, 0xa2, 0xa3, 0xa4].into_iter().enumerate() {
        let name = format!("{number}");
        guest.file(&name, vec![byte; 300_000]);
        if number % 2 == 1 {
            guest.daemon.kill_server().unwrap();
        }
        // More than one worker may read.
        let file = guest.open(&name, open::RDONLY);
        let content = guest.client.read(file, 0, 300_000).unwrap();
        assert!(!content.is_empty() && content.iter().all(|other| *other == byte));
        let mut marked = vec![0; size as usize];
        log.read_exact_at(&mut marked, 0).unwrap();
        let mut found = 0;
        for (start, bytes) in guest.client.front_end().memory().snapshot().unwrap() {
            for (place, page) in (start as usize / PAGE..).zip(bytes.chunks(PAGE)) {
                // No request has as many.
                if page.chunks(32).any(|bytes| bytes == [byte; 32]) {
                    assert_ne!(marked[place / 8] & 1 << (place % 8), 0, "page {place:#x}");
                    found += 1;
                }
            }
        }
        assert!(found >= content.len() / PAGE);
    }
}

#[test]
fn the_next_front_end_waits_for_its_turn() {
    let mut daemon = daemon();
    let (mut first, root) = daemon.mount().unwrap();
    // Connected, but not served while the first one is there, which the log says.
    let second = daemon.stream().unwrap();
    daemon.said("another front-end waits").unwrap();
    first.write_file(root, "file", b"first").unwrap();
    drop(first);
    let mut client = Client::new(FrontEnd::new(second, Options::default()).unwrap());
    let root = client.mount(&Attach::default()).unwrap();
    assert_eq!(client.read_file(root, "file").unwrap(), b"first");
}

#[test]
fn the_memory_table_may_be_sent_again_while_the_ring_runs() {
    let (mut guest, file) = loaded_guest();
    for round in 0..20 {
        let tags = if round % 2 == 0 {
            Vec::new()
        } else {
            load(&mut guest.client, file, 30)
        };
        guest.client.front_end().set_mem_table().unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
        assert!(guest.client.read(file, 0, 200_000).unwrap() == pattern(200_000));
    }
}

#[test]
fn the_memory_table_may_grow_while_the_ring_runs() {
    let (mut guest, file) = loaded_guest();
    for _ in 0..5 {
        let tags = load(&mut guest.client, file, 30);
        let front_end = guest.client.front_end();
        front_end.memory().add_region(8 << 20).unwrap();
        front_end.set_mem_table().unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
        // Buffers come from all regions by turns.
        for _ in 0..6 {
            assert!(guest.client.read(file, 0, 200_000).unwrap() == pattern(200_000));
        }
    }
}

#[test]
fn memory_may_be_plugged_and_unplugged_while_the_ring_runs() {
    let (mut guest, file) = loaded_guest();
    let slots = guest
        .client
        .front_end()
        .control()
        .get_u64(request::GET_MAX_MEM_SLOTS)
        .unwrap();
    assert!(slots >= 8, "{slots} slots");
    for _ in 0..3 {
        let tags = load(&mut guest.client, file, 30);
        let region = guest.client.front_end().plug_memory(8 << 20).unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
        for _ in 0..6 {
            assert!(guest.client.read(file, 0, 200_000).unwrap() == pattern(200_000));
        }
        // A driver gives memory back before it goes.
        guest.client.front_end().memory().retire(region);
        let tags = load(&mut guest.client, file, 30);
        guest.client.front_end().unplug_memory(region).unwrap();
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
        guest.client.getattr(file, getattr::ALL).unwrap();
    }
}

#[test]
fn malformed_control_messages_cost_the_connection_at_most() {
    let mut daemon = daemon();
    let messages: [&[u8]; 7] = [
        &[0; 12],
        &[0xff; 64],
        // An unknown request.
        &[200, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        // GET_FEATURES of another version.
        &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        // SET_VRING_NUM of a ring that is not there.
        &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 128, 0, 0, 0],
        // SET_MEM_TABLE that counts 7 regions and has none.
        &[5, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
        // Half a header.
        &[1, 0, 0, 0, 1, 0],
    ];
    for message in messages {
        for running in [false, true] {
            let stream = daemon.stream().unwrap();
            let mut front_end = FrontEnd::negotiate(stream, Options::default()).unwrap();
            if running {
                front_end.start(0).unwrap();
            }
            front_end.control().send_bytes(message, &[]).unwrap();
        }
    }
    let mut client = daemon.client().unwrap();
    exercise(&daemon, &mut client);
}

#[test]
fn a_configuration_space_of_the_wrong_size_is_told_of() {
    let mut daemon = daemon();
    // The tag is "host". Some front-ends ask for its length first, and then for all, or for a byte
    // more each time.
    let mut front_end = daemon.front_end(Options::default()).unwrap();
    for size in [2, 6, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6] {
        front_end.config(0, size).unwrap();
    }
    assert!(!daemon.stderr().contains("to the guest"));
    let less = "passes only 4 of the 6 bytes";
    for _ in 0..3 {
        front_end.config(0, 4).unwrap();
    }
    assert!(daemon.said(less).unwrap().contains("config_size=6"));
    assert_eq!(daemon.stderr().matches(less).count(), 1);
    drop(front_end);
    let mut front_end = daemon.front_end(Options::default()).unwrap();
    front_end.config(0, 64).unwrap();
    let more = daemon.said("passes more than the 6 bytes").unwrap();
    assert!(more.contains("config_size=6"), "{more}");
    drop(front_end);
    // As QEMU without config_size.
    let without = Options {
        protocol_features: !protocol_feature::CONFIG,
        ..Options::default()
    };
    let _front_end = daemon.front_end(without).unwrap();
    let none = daemon.said("passes no configuration").unwrap();
    assert!(none.contains("config_size=6"), "{none}");
}

#[test]
fn memory_that_is_not_shared_is_told_of() {
    // None of it is, as in QEMU without a memory back-end.
    let mut daemon = daemon();
    let mut front_end = FrontEnd::negotiate(daemon.stream().unwrap(), Options::default()).unwrap();
    front_end.unplug_memory(0).unwrap();
    assert!(front_end.start(0).is_err());
    let said = daemon.said("is not in the memory that the front-end shares");
    assert!(said.unwrap().contains("share=on"));
    drop(front_end);
    // Or a private copy of its file, as with share=off.
    let mut front_end = FrontEnd::negotiate(daemon.stream().unwrap(), Options::default()).unwrap();
    front_end.memory().empty().unwrap();
    front_end.start(0).unwrap();
    let said = daemon.said("nothing was ever written to the memory");
    assert!(said.unwrap().contains("share=on"));
}

#[test]
fn a_connection_may_end_at_any_step() {
    let mut daemon = daemon();
    drop(daemon.stream().unwrap());
    drop(FrontEnd::negotiate(daemon.stream().unwrap(), Options::default()).unwrap());
    drop(daemon.front_end(Options::default()).unwrap());
    let mut front_end = daemon.front_end(Options::default()).unwrap();
    front_end.stop().unwrap();
    drop(front_end);
    let mut client = daemon.client().unwrap();
    exercise(&daemon, &mut client);
}
