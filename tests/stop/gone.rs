//! Whoever leaves in the middle takes everything along: descriptors, threads, memory.

use std::fs;
use std::io::{BufRead, BufReader, Read, stdin};
use std::path::Path;
use std::process::{Command, Stdio};

use protocol::{Rmessage, Tmessage, Tversion};
use stub_guest::control::request;
use stub_guest::{Attach, Client, Daemon, FrontEnd};

use super::common::load::Load;
use super::{Guest, REQUESTS, THREADS, options, rounds};

/// A way to leave, and to come back.
type Cycle = fn(&mut Guest);

const CYCLES: [(&str, Cycle); 6] = [
    ("the front-end disconnects", disconnect),
    ("the front-end is killed", kill_front_end),
    ("the driver resets the device", reset),
    ("the guest begins a new session", remount),
    ("memory that nobody uses is removed", unplug_spare_memory),
    ("memory in use is removed", unplug_memory_in_use),
];

#[test]
fn nothing_is_left_behind_by_whoever_leaves_in_the_middle() {
    let mut guest = Guest::new(7);
    // Pools are filled and files are cached in the first rounds.
    for (_, cycle) in CYCLES.repeat(5) {
        cycle(&mut guest);
    }
    let before = Footprint::of(&guest.daemon);
    let cycles = rounds("GONE_CYCLES", 60);
    for (round, (name, cycle)) in (0..cycles).zip(CYCLES.into_iter().cycle()) {
        cycle(&mut guest);
        Footprint::of(&guest.daemon).assert_is(&before, name, round);
    }
    let after = Footprint::of(&guest.daemon);
    println!("{cycles} cycles: {before:?} before, {after:?} after");
}

/// What the daemon holds.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    /// Mappings of guest memory.
    regions: usize,
    /// Memory of its own, in KiB.
    anonymous: usize,
}

impl Footprint {
    fn of(daemon: &Daemon) -> Footprint {
        let process = format!("/proc/{}", daemon.pid());
        let count = |what| fs::read_dir(format!("{process}/{what}")).unwrap().count();
        let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB"))
            .unwrap();
        Footprint {
            descriptors: count("fd"),
            threads: count("task"),
            regions: maps
                .lines()
                .filter(|line| line.contains("memfd:stub-guest"))
                .count(),
            anonymous: anonymous.trim().parse().unwrap(),
        }
    }

    #[track_caller]
    fn assert_is(&self, before: &Footprint, name: &str, round: usize) {
        let told = || format!("round {round}, {name}: {self:?}, and before {before:?}");
        assert_eq!(self.descriptors, before.descriptors, "{}", told());
        assert_eq!(self.regions, before.regions, "{}", told());
        // ThreadSanitizer has a thread, and memory for what it has seen.
        let watched = cfg!(feature = "tsan");
        let others = 1 + usize::from(watched);
        assert!(self.threads <= others + THREADS, "{}", told());
        // The allocator keeps some of what it has had; ten thousand rounds would show more.
        let most = before.anonymous + 2048;
        assert!(watched || self.anonymous < most, "{}", told());
    }
}

impl Guest {
    /// Another front-end comes, once the daemon has done with the last, and mounts the share.
    fn come_again(&mut self) {
        let stream = self.daemon.stream().unwrap();
        self.client = Client::new(FrontEnd::new(stream, options()).unwrap());
        self.mount();
    }
}

fn disconnect(guest: &mut Guest) {
    guest.post_around(|guest| guest.client.front_end().control().hang_up().unwrap());
    guest.load.let_go();
    guest.come_again();
    guest.load.sweep();
}

fn reset(guest: &mut Guest) {
    let posted = guest.post_around(|guest| {
        let control = guest.client.front_end().control();
        control.begin_set(request::RESET_DEVICE, &[], &[]).unwrap();
    });
    let control = guest.client.front_end().control();
    control.end_set(request::RESET_DEVICE).unwrap();
    guest.check_silent(&posted);
    guest.load.end(None);
    guest.client.front_end().reset().unwrap();
    guest.client.forget();
    guest.client.front_end().restart().unwrap();
    guest.mount();
}

fn remount(guest: &mut Guest) {
    let mut version = 0;
    // One descriptor is for the new session.
    let at = guest.load.random(REQUESTS);
    let posted = guest.post_around_at(at, REQUESTS - 1, |guest| {
        let message = Tmessage::Version(Tversion {
            msize: 500_000,
            version: b"9P2000.L",
        });
        version = guest.client.submit(&message, &[]).unwrap();
    });
    guest.client.front_end().force_kick().unwrap();
    let (of_this, of_the_next) = posted.split_at(at);
    guest.check(of_this, &posted);
    let reply = guest.client.wait(version).unwrap();
    assert!(matches!(reply.message(), Ok(Rmessage::Version(_))));
    guest.check_refused(of_the_next);
    guest.load.let_go();
    guest.load.end(None);
    guest.mount();
}

fn unplug_spare_memory(guest: &mut Guest) {
    let front_end = guest.client.front_end();
    let spare = front_end.plug_memory(1 << 20).unwrap();
    front_end.memory().retire(spare);
    let posted = guest.post_around(|guest| {
        let front_end = guest.client.front_end();
        front_end.begin_unplug_memory(spare).unwrap();
    });
    let control = guest.client.front_end().control();
    control.end_set(request::REM_MEM_REG).unwrap();
    guest.load.let_go();
    guest.client.front_end().force_kick().unwrap();
    guest.check(&posted, &posted);
    guest.load.end(None);
    // Only the front-end has the region still: the next one does not.
    guest.client.front_end().control().hang_up().unwrap();
    guest.come_again();
}

/// The front-end takes memory away that requests are in: what was taken is done with it, the rest
/// breaks the ring.
fn unplug_memory_in_use(guest: &mut Guest) {
    guest.post_around(|guest| {
        let front_end = guest.client.front_end();
        front_end.begin_unplug_memory(1).unwrap();
    });
    let front_end = guest.client.front_end();
    front_end.control().end_set(request::REM_MEM_REG).unwrap();
    let before = front_end.memory().fingerprint_of(1..2).unwrap();
    front_end.force_kick().unwrap();
    front_end.control().get_u64(request::GET_FEATURES).unwrap();
    let after = front_end.memory().fingerprint_of(1..2).unwrap();
    assert_eq!(after, before, "written into memory that is gone");
    front_end.control().hang_up().unwrap();
    guest.load.let_go();
    guest.come_again();
    guest.load.sweep();
}

/// Where the process below finds the daemon's socket, and the share.
const SOCKET: &str = "STOP_TEST_SOCKET";
const SHARE: &str = "STOP_TEST_SHARE";
const SEED: &str = "STOP_TEST_SEED";

fn kill_front_end(guest: &mut Guest) {
    guest.client.front_end().control().hang_up().unwrap();
    let seed = 1000 + guest.load.random(1 << 20);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gone::front_end_that_is_killed", "--nocapture"])
        .env(SOCKET, guest.daemon.socket())
        .env(SHARE, guest.share.path())
        .env(SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let ready = output.lines().any(|line| line.unwrap().contains("posting"));
    assert!(ready, "the front-end does not come so far");
    for _ in 0..guest.load.random(200_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    guest.come_again();
    guest.load.sweep();
}

/// Not a test but a process of [`kill_front_end`]'s: a front-end that is in the middle of things for
/// ever, or as long as its parent lives.
#[test]
fn front_end_that_is_killed() {
    let Ok(socket) = std::env::var(SOCKET) else {
        return;
    };
    let share = std::env::var(SHARE).unwrap();
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mut load = Load::on(Path::new(&share), seed);
    let front_end = FrontEnd::connect(Path::new(&socket), options()).unwrap();
    let mut client = Client::new(front_end);
    let root = client.mount(&Attach::default()).unwrap();
    load.begin(&mut client, root);
    let mut posted = Vec::new();
    for planned in load.plan(&mut client, REQUESTS) {
        if posted.len() == 1 {
            println!("posting");
        }
        let next = load.post(&mut client, planned, &posted);
        posted.push(next);
        client.kick().unwrap();
    }
    let _ = stdin().read(&mut [0]);
}
