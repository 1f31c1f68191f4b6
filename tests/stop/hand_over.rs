//! Stop and hand-over: each request is either answered, once, or still available.

use nix::sys::signal::Signal;
use stub_guest::control::request;
use stub_guest::daemon::Launch;

use super::common::BINARY;
use super::{Guest, rounds};

#[test]
fn after_get_vring_base_each_request_is_either_answered_or_still_available() {
    let mut guest = Guest::new(1);
    let mut left_over = 0;
    for round in 0..rounds("STOP_ROUNDS", 25) {
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
    for round in 0..rounds("STOP_ROUNDS", 25) {
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
    for _ in 0..rounds("STOP_ROUNDS", 25) {
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
    for round in 0..rounds("STOP_ROUNDS", 25) {
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
    for round in 0..rounds("STOP_ROUNDS", 25) {
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
    for round in 0..rounds("STOP_ROUNDS", 25) {
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
