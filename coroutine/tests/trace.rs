//! Trace points.
#![cfg(feature = "trace")]

use std::cell::RefCell;
use std::rc::Rc;

use coroutine::trace::{Event, Kind, subscribe, unsubscribe};
use coroutine::{Coroutine, Workers, spawn, yield_now};

thread_local! {
    static SEEN: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

fn seen(event: Event) {
    SEEN.with_borrow_mut(|seen| seen.push(event));
}

#[test]
fn each_step_is_told() {
    subscribe(seen);
    let mut coroutine = Coroutine::create(yield_now).unwrap();
    let id = coroutine.id();
    coroutine.enter();
    coroutine.enter();
    let kinds = |seen: Vec<Event>| seen.into_iter().map(|event| event.kind).collect::<Vec<_>>();
    let events = SEEN.take();
    assert!(events.iter().all(|event| event.coroutine == id));
    assert_eq!(
        kinds(events),
        [Kind::Enter, Kind::Yield, Kind::Enter, Kind::Terminate]
    );

    let workers = Rc::new(Workers::new(1).unwrap());
    let inside = workers.clone();
    spawn(move || inside.offload(|| ())).unwrap();
    while workers.wait_completed() > 0 {}
    assert_eq!(
        kinds(SEEN.take()),
        [
            Kind::Enter,
            Kind::Yield,
            Kind::Offload,
            Kind::Complete,
            Kind::Enter,
            Kind::Terminate
        ]
    );
    unsubscribe();
    spawn(|| ()).unwrap();
    assert_eq!(SEEN.take(), []);
}
