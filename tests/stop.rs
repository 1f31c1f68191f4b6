//! Stop and hand-over in the middle of a full ring: what was taken is answered and done, what was
//! not is still available, and after the answer nothing is written into the guest's memory.

mod common;

use std::time::{Duration, Instant};

use common::BINARY;
use common::load::{Load, Posted};
use nix::sys::signal::Signal;
use stub_guest::control::request;
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Client, Daemon, Options};
use tempfile::TempDir;

/// So many requests are in a ring of so many descriptors.
const REQUESTS: usize = 128;

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
        let mut daemon = Launch::new(BINARY).share(share.path()).start().unwrap();
        let options = Options {
            regions: vec![4 << 20, 8 << 20],
            ..Options::default()
        };
        let client = daemon.client_with(options).unwrap();
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
        let plan = self.load.plan(&mut self.client, REQUESTS);
        let at = self.load.random(REQUESTS + 1);
        let kick_every = 1 << self.load.random(8);
        let kick_after = self.load.random(2) == 0;
        let mut interrupt = Some(interrupt);
        let mut posted = Vec::new();
        for (n, planned) in plan.into_iter().enumerate() {
            if n == at
                && let Some(interrupt) = interrupt.take()
            {
                self.let_some_be_answered(&posted);
                interrupt(self);
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

/// In how many places a test interrupts.
fn rounds() -> usize {
    let rounds = std::env::var("STOP_ROUNDS").ok();
    rounds.map_or(25, |rounds| {
        rounds.parse().expect("STOP_ROUNDS is a number")
    })
}

#[test]
fn after_get_vring_base_each_request_is_either_answered_or_still_available() {
    let mut guest = Guest::new(1);
    let mut left_over = 0;
    for round in 0..rounds() {
        let posted = guest.post_around(Guest::ask_for_base);
        let control = guest.client.front_end().control();
        let base = control.end_get_vring_base().unwrap();
        let rest = guest.check_stopped(&posted, base);
        left_over += rest.len();
        // It goes on where it stopped; the session is the same.
        guest.client.front_end().start(base).unwrap();
        guest.check(rest, &posted);
        guest.load.end(Some(&mut guest.client));
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
    }
    assert!(left_over > 0, "no request was ever left in the ring");
}

#[test]
fn what_is_left_is_handed_over_to_another_connection() {
    let mut guest = Guest::new(2);
    for round in 0..rounds() {
        let posted = guest.post_around(Guest::ask_for_base);
        let control = guest.client.front_end().control();
        let base = control.end_get_vring_base().unwrap();
        let rest = guest.check_stopped(&posted, base);
        // The front-end leaves, and another has the ring. It knows nothing of the session.
        guest.reconnect();
        guest.client.front_end().start(base).unwrap();
        guest.check_refused(rest);
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
        guest.load.end(None);
        guest.mount();
    }
}

#[test]
fn a_reset_answers_what_was_taken_and_forgets_the_rest() {
    let mut guest = Guest::new(3);
    for _ in 0..rounds() {
        let posted = guest.post_around(|guest| {
            let control = guest.client.front_end().control();
            control.begin_set(request::RESET_DEVICE, &[], &[]).unwrap();
        });
        let control = guest.client.front_end().control();
        control.end_set(request::RESET_DEVICE).unwrap();
        guest.check_silent(&posted);
        // The driver forgets the rest, too.
        guest.load.end(None);
        guest.client.front_end().reset().unwrap();
        guest.client.forget();
        guest.client.front_end().restart().unwrap();
        guest.mount();
    }
}

#[test]
fn a_memory_table_that_comes_in_between_changes_no_answer() {
    let mut guest = Guest::new(4);
    for round in 0..rounds() {
        let posted = guest.post_around(|guest| {
            guest.client.front_end().begin_set_mem_table().unwrap();
        });
        let control = guest.client.front_end().control();
        control.end_set(request::SET_MEM_TABLE).unwrap();
        guest.load.let_go();
        guest.client.front_end().force_kick().unwrap();
        guest.check(&posted, &posted);
        guest.load.end(Some(&mut guest.client));
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
    }
}

#[test]
fn a_front_end_that_disappears_finds_its_ring_in_order() {
    let mut guest = Guest::new(5);
    for round in 0..rounds() {
        let posted = guest.post_around(|guest| {
            guest.client.front_end().control().hang_up().unwrap();
        });
        // Served only when the other connection's requests have ended.
        guest.reconnect();
        let rest = guest.check_silent(&posted);
        // What QEMU takes for the base of a back-end that is gone: the used index.
        guest.start_behind_used();
        guest.check_refused(rest);
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
        guest.load.end(None);
        guest.mount();
    }
}

#[test]
fn sigterm_ends_what_was_taken_and_leaves_the_rest_to_another_daemon() {
    let mut guest = Guest::new(6);
    for round in 0..rounds() {
        let posted = guest.post_around(|guest| {
            guest.daemon.signal(Signal::SIGTERM).unwrap();
        });
        assert!(guest.daemon.wait().unwrap().success());
        let rest = guest.check_silent(&posted);
        let share = guest.share.path();
        guest.daemon = Launch::new(BINARY).share(share).start().unwrap();
        guest.reconnect();
        guest.start_behind_used();
        guest.check_refused(rest);
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
        guest.load.end(None);
        guest.mount();
    }
}
