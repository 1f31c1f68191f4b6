//! Stop and hand-over in the middle of a full ring: what was taken is answered and done, what was
//! not is still available, and after the answer nothing is written into the guest's memory.

mod common;

use common::BINARY;
use common::load::{Load, Posted};
use stub_guest::control::request;
use stub_guest::{Attach, Client, Daemon, Options};

/// So many requests are in a ring of so many descriptors.
const REQUESTS: usize = 128;

/// A daemon, and a guest in the middle of a session on it.
struct Guest {
    client: Client,
    load: Load,
    daemon: Daemon,
}

impl Guest {
    fn new(seed: u64) -> Guest {
        let mut daemon = Daemon::start(BINARY).unwrap();
        let load = Load::prepare(daemon.share(), seed);
        let options = Options {
            regions: vec![4 << 20, 8 << 20],
            ..Options::default()
        };
        let client = daemon.client_with(options).unwrap();
        let mut guest = Guest {
            client,
            load,
            daemon,
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
        let mut interrupt = Some(interrupt);
        let mut posted = Vec::new();
        for (n, planned) in plan.into_iter().enumerate() {
            if n == at && let Some(interrupt) = interrupt.take() {
                interrupt(self);
            }
            let next = self.load.post(&mut self.client, planned, &posted);
            posted.push(next);
            if n % kick_every == kick_every - 1 {
                self.client.kick().unwrap();
            }
        }
        if let Some(interrupt) = interrupt.take() {
            self.client.kick().unwrap();
            interrupt(self);
        }
        posted
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
}

/// In how many places a test interrupts.
fn rounds() -> usize {
    let rounds = std::env::var("STOP_ROUNDS").ok();
    rounds.map_or(25, |rounds| rounds.parse().expect("STOP_ROUNDS is a number"))
}

#[test]
fn after_get_vring_base_each_request_is_either_answered_or_still_available() {
    let mut guest = Guest::new(1);
    let mut left_over = 0;
    for round in 0..rounds() {
        let posted = guest.post_around(|guest| {
            let control = guest.client.front_end().control();
            control.begin_get_vring_base().unwrap();
        });
        let front_end = guest.client.front_end();
        let base = front_end.control().end_get_vring_base().unwrap();
        let before = guest.fingerprint();

        let end = guest.client.front_end().ring().0.avail_idx();
        let left = usize::from(end.wrapping_sub(base));
        let answered = guest.answered(&posted);
        assert_eq!(answered + left, REQUESTS, "round {round}");
        left_over += left;
        let (done, rest) = posted.split_at(answered);
        rest.iter().for_each(|request| guest.load.check_not_done(request));
        guest.check(done, &posted);
        // It has every reason to go on, if it were not stopped.
        guest.load.let_go();
        let front_end = guest.client.front_end();
        front_end.force_kick().unwrap();
        front_end.control().get_u64(request::GET_FEATURES).unwrap();
        assert_eq!(guest.fingerprint(), before, "round {round}: written after the stop");

        guest.client.front_end().start(base).unwrap();
        guest.check(rest, &posted);
        guest.load.end(Some(&mut guest.client));
    }
    assert!(left_over > 0, "no request was ever left in the ring");
}
