//! The process that serves is killed, and another one takes over: each request is answered once, and
//! done once.

use nix::sys::signal::Signal;

use super::{Guest, REQUESTS, rounds};

#[test]
fn a_kill_in_a_full_ring_is_a_pause_and_nothing_else() {
    let mut guest = Guest::new(20);
    let mut again = 0;
    for round in 0..rounds("CRASH_ROUNDS", 25) {
        let posted = guest.post_around(|guest| guest.daemon.kill_server().unwrap());
        again += REQUESTS - guest.answered_before(&posted);
        guest.load.let_go();
        guest.check(&posted, &posted);
        guest.load.end(Some(&mut guest.client));
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
    }
    assert!(again > 0, "every request was answered before the kill");
}

/// The same when another program takes over in order.
#[test]
fn an_upgrade_in_a_full_ring_is_a_pause_and_nothing_else() {
    let mut guest = Guest::new(21);
    for round in 1..=rounds("UPGRADE_ROUNDS", 8) {
        let posted = guest.post_around(|guest| {
            guest.daemon.signal(Signal::SIGHUP).unwrap();
            guest.daemon.said_often("hands over", round).unwrap();
        });
        guest.load.let_go();
        guest.check(&posted, &posted);
        guest.load.end(Some(&mut guest.client));
        assert_eq!(guest.client.outstanding(), 0, "round {round}");
        guest.daemon.said_often("took over in", round).unwrap();
    }
}
