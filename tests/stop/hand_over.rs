//! Stop and hand-over: each request is either answered, once, or still available.

use nix::sys::signal::Signal;
use stub_guest::control::request;
use stub_guest::daemon::Launch;

use super::common::BINARY;
use super::{Guest, REQUESTS, rounds};

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
fn nothing_but_the_answers_and_the_used_ring_is_written() {
    let mut guest = Guest::new(8);
    for round in 0..rounds("STOP_ROUNDS", 25) {
        // The driver writes nothing from here on, so all that changes is the device's.
        let posted = guest.post_around_at(0, REQUESTS, |_| {});
        let buffers: Vec<_> = posted
            .iter()
            .map(|request| guest.client.writable(request.tag))
            .collect();
        let mut before = guest.client.front_end().memory().snapshot().unwrap();
        guest.client.front_end().force_kick().unwrap();
        guest.let_some_be_answered(&posted);
        let base = guest.client.front_end().stop().unwrap();
        let after = guest.client.front_end().memory().snapshot().unwrap();

        let answered = guest.answered(&posted);
        for (request, buffers) in posted.iter().zip(buffers).take(answered) {
            let mut left = guest.client.used_length(request.tag).unwrap();
            for (address, length) in buffers {
                take_over(&mut before, &after, address, length.min(left));
                left -= length.min(left);
            }
        }
        let (ring, _) = guest.client.front_end().ring();
        let (used, size) = (ring.layout().used, usize::from(ring.size()));
        // flags, index, elements, and the index of the next kick.
        take_over(&mut before, &after, used, 4 + 8 * size + 2);
        for ((address, before), (_, after)) in before.iter().zip(&after) {
            if before != after {
                let place = before.iter().zip(after).position(|(a, b)| a != b);
                panic!("round {round}: written at {place:?} from {address:#x}");
            }
        }

        let rest = guest.check_stopped(&posted, base);
        guest.client.front_end().start(base).unwrap();
        guest.check(rest, &posted);
        guest.load.end(Some(&mut guest.client));
    }
}

/// Accepts that `length` bytes from a guest address on are now what they are.
fn take_over(before: &mut [(u64, Vec<u8>)], after: &[(u64, Vec<u8>)], address: u64, length: usize) {
    for ((first, before), (_, after)) in before.iter_mut().zip(after) {
        let at = address.wrapping_sub(*first) as usize;
        if at < before.len() {
            before[at..at + length].copy_from_slice(&after[at..at + length]);
        }
    }
}

#[test]
fn a_ring_that_is_disabled_goes_on_where_it_was() {
    let mut guest = Guest::new(10);
    for round in 0..rounds("STOP_ROUNDS", 25) {
        let posted = guest.post_around(|guest| {
            let control = guest.client.front_end().control();
            // Ring 0, and 0 for disabled.
            let message = control.begin_set(request::SET_VRING_ENABLE, &[0; 8], &[]);
            message.unwrap();
        });
        let control = guest.client.front_end().control();
        control.end_set(request::SET_VRING_ENABLE).unwrap();
        let rest = guest.check_silent(&posted);
        guest.client.front_end().enable(true).unwrap();
        guest.check(rest, &posted);
        guest.load.end(Some(&mut guest.client));
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
    }
}

#[test]
fn what_is_left_goes_on_in_memory_that_has_moved() {
    let mut guest = Guest::new(9);
    for round in 0..rounds("STOP_ROUNDS", 25) {
        let posted = guest.post_around(Guest::ask_for_base);
        let control = guest.client.front_end().control();
        let base = control.end_get_vring_base().unwrap();
        let rest = guest.check_stopped(&posted, base);
        let front_end = guest.client.front_end();
        let before = front_end.memory().relocate().unwrap();
        front_end.set_mem_table().unwrap();
        front_end.start(base).unwrap();
        guest.check(rest, &posted);
        guest.load.end(Some(&mut guest.client));
        let after = guest.client.front_end().memory().fingerprint_of_left();
        assert_eq!(after, before, "round {round}: written where it was");
    }
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
