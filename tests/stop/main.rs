//! A full ring that is interrupted somewhere in the middle, at another place in each round.
//!
//! `hand_over`: what was taken is answered and done, what was not is still available, and after the
//! answer nothing is written into the guest's memory. `gone`: nothing of it is left in the daemon.
//! `crash`: another process takes it over.

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod gone;
mod hand_over;

use std::time::{Duration, Instant};

use common::BINARY;
use common::load::{Load, Posted};
use stub_guest::control::request;
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Client, Daemon, Options};
use tempfile::TempDir;

/// So many requests are in a ring of so many descriptors.
const REQUESTS: usize = 128;
/// So many workers has the daemon.
const THREADS: usize = 4;

/// A guest with little memory, in two regions.
fn options() -> Options {
    Options {
        regions: vec![4 << 20, 8 << 20],
        ..Options::default()
    }
}

/// How often a test interrupts: `variable`, or so often by default.
fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        let number = text.parse();
        number.unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

/// A daemon, and a guest in the middle of a session on it.
struct Guest {
    client: Client,
    load: Load,
    daemon: Daemon,
    share: TempDir,
}

impl Guest {
    fn new(seed: u64) -> Guest {
        let share = tempfile::tempdir().unwrap();
        let load = Load::prepare(share.path(), seed);
        let launch = Launch::new(BINARY).share(share.path());
        let mut daemon = launch
            .arg("--threads")
            .arg(THREADS.to_string())
            .start()
            .unwrap();
        let client = daemon.client_with(options()).unwrap();
        let mut guest = Guest {
            client,
            load,
            daemon,
            share,
        };
        guest.mount();
        guest
    }

    fn mount(&mut self) {
        let root = self.client.mount(&Attach::default()).unwrap();
        self.load.begin(&mut self.client, root);
    }

    /// Posts a full ring of requests and calls `interrupt` somewhere in the middle: it sends the
    /// message that stops things, and what is posted afterwards meets the daemon dealing with it.
    fn post_around(&mut self, interrupt: impl FnOnce(&mut Guest)) -> Vec<Posted> {
        let at = self.load.random(REQUESTS + 1);
        self.post_around_at(at, REQUESTS, interrupt)
    }

    /// [`post_around`](Self::post_around) with `count` requests, of which `at` come before the
    /// interruption.
    fn post_around_at(
        &mut self,
        at: usize,
        count: usize,
        interrupt: impl FnOnce(&mut Guest),
    ) -> Vec<Posted> {
        let plan = self.load.plan(&mut self.client, count);
        let kick_every = 1 << self.load.random(8);
        let kick_after = self.load.random(2) == 0;
        let mut interrupt = Some(interrupt);
        let mut posted = Vec::new();
        for (n, planned) in plan.into_iter().enumerate() {
            if n == at {
                if let Some(interrupt) = interrupt.take() {
                    self.let_some_be_answered(&posted);
                    interrupt(self);
                }
            }
            let next = self.load.post(&mut self.client, planned, &posted);
            posted.push(next);
            if n % kick_every == kick_every - 1 && (kick_after || interrupt.is_some()) {
                self.client.kick().unwrap();
            }
        }
        if let Some(interrupt) = interrupt.take() {
            self.client.kick().unwrap();
            self.let_some_be_answered(&posted);
            interrupt(self);
        }
        posted
    }

    /// Waits for one of these requests, or does not: so the interruption finds the daemon asleep, busy
    /// with what it has taken, or idle.
    fn let_some_be_answered(&mut self, posted: &[Posted]) {
        let one = self.load.random(2 * posted.len() + 1);
        if let Some(request) = posted.get(one).filter(|request| !request.waits()) {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !self.client.is_done(request.tag).unwrap() {
                assert!(Instant::now() < deadline, "{request:?} is not answered");
                std::thread::yield_now();
            }
        }
    }

    /// How many of the requests have come back. They are the first ones: each that was taken, and no
    /// other.
    #[track_caller]
    fn answered(&mut self, posted: &[Posted]) -> usize {
        let used: Vec<bool> = posted
            .iter()
            .map(|request| self.client.is_used(request.tag).unwrap())
            .collect();
        let count = used.iter().filter(|used| **used).count();
        assert!(
            used[..count].iter().all(|used| *used),
            "answered in spite of one before that was not: {used:?}"
        );
        count
    }

    /// How many of the requests have come back, in any order.
    fn answered_before(&mut self, posted: &[Posted]) -> usize {
        let used = |request: &&Posted| self.client.is_used(request.tag).unwrap();
        posted.iter().filter(used).count()
    }

    /// The message that stops the ring.
    fn ask_for_base(&mut self) {
        let control = self.client.front_end().control();
        control.begin_get_vring_base().unwrap();
    }

    /// Another connection takes the ring over; it is not started yet.
    fn reconnect(&mut self) {
        let front_end = self.client.front_end();
        // Else the daemon waits for its end, and the next front-end for its turn.
        let _ = front_end.control().hang_up();
        let stream = self.daemon.stream().unwrap();
        front_end.reconnect(stream).unwrap();
    }

    /// Starts the ring where a device that is gone must have stopped: all that it took is used.
    fn start_behind_used(&mut self) {
        let front_end = self.client.front_end();
        let (ring, _) = front_end.ring();
        let base = ring.avail_idx().wrapping_sub(ring.outstanding() as u16);
        front_end.start(base).unwrap();
    }

    /// To be called when the device has stopped, in whatever way. What was taken is answered, and done;
    /// of the rest, which is returned, nothing is. Then nothing is written any more.
    #[track_caller]
    fn check_silent<'a>(&mut self, posted: &'a [Posted]) -> &'a [Posted] {
        let before = self.fingerprint();
        let answered = self.answered(posted);
        let (done, rest) = posted.split_at(answered);
        for request in rest {
            self.load.check_not_done(request);
        }
        self.check(done, posted);
        // The daemon has every reason to go on, if it were not stopped.
        self.load.let_go();
        let front_end = self.client.front_end();
        front_end.force_kick().unwrap();
        // Not there any more, or it answers.
        let _ = front_end.control().get_u64(request::GET_FEATURES);
        assert_eq!(self.fingerprint(), before, "written after the stop");
        rest
    }

    /// [`check_silent`](Self::check_silent), and what was not answered begins at `base`.
    #[track_caller]
    fn check_stopped<'a>(&mut self, posted: &'a [Posted], base: u16) -> &'a [Posted] {
        let rest = self.check_silent(posted);
        let end = self.client.front_end().ring().0.avail_idx();
        assert_eq!(
            usize::from(end.wrapping_sub(base)),
            rest.len(),
            "base {base}"
        );
        rest
    }

    /// A hash of all of guest memory.
    fn fingerprint(&mut self) -> u64 {
        self.client.front_end().memory().fingerprint().unwrap()
    }

    /// Checks the answers to requests that come back, or have.
    #[track_caller]
    fn check(&mut self, requests: &[Posted], all: &[Posted]) {
        for request in requests {
            let reply = self.client.wait_unkicked(request.tag);
            self.load.check(request, reply, all);
        }
    }

    /// Waits for requests that come to a daemon without their session.
    #[track_caller]
    fn check_refused(&mut self, requests: &[Posted]) {
        for request in requests {
            let reply = self.client.wait_unkicked(request.tag);
            self.load.check_refused(request, reply);
        }
    }
}
