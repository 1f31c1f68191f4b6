//! Locks, wait queues and timers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coroutine::{
    Coroutine, Mutex, RwLock, WaitQueue, next_deadline, run_ready, run_timers, sleep, spawn,
};

/// A log of what the coroutines do.
type Order = Rc<RefCell<Vec<&'static str>>>;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// Runs the loop until there are no timers left.
fn serve_timers() {
    while let Some(deadline) = next_deadline() {
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        run_timers();
        run_ready();
    }
}

#[test]
fn co_mutex() {
    // The second coroutine waits for the first, which yields while it holds the lock.
    let (mutex, gate) = (Rc::new(Mutex::new(0)), Rc::new(WaitQueue::new()));
    let (first, until) = (mutex.clone(), gate.clone());
    spawn(move || {
        let mut value = first.lock();
        until.wait();
        *value += 1;
    })
    .unwrap();
    let second = mutex.clone();
    spawn(move || *second.lock() += 10).unwrap();
    assert!(mutex.try_lock().is_none());
    gate.wake_one();
    run_ready();
    assert_eq!(*mutex.try_lock().unwrap(), 11);
}

#[test]
fn a_released_mutex_cannot_be_snatched() {
    let (mutex, gate) = (Rc::new(Mutex::new(())), Rc::new(WaitQueue::new()));
    let (first, until) = (mutex.clone(), gate.clone());
    spawn(move || {
        let guard = first.lock();
        until.wait();
        drop(guard);
        // The second holds it already, but has not run yet.
        assert!(first.try_lock().is_none());
    })
    .unwrap();
    let second = mutex.clone();
    spawn(move || drop(second.lock())).unwrap();
    gate.wake_one();
    run_ready();
    assert!(mutex.try_lock().is_some());
}

#[test]
fn co_rwlock_upgrade() {
    // A sole reader that upgrades queues behind a waiting writer.
    let lock = Rc::new(RwLock::new(0));
    let gate = Rc::new(WaitQueue::new());
    let order: Order = Rc::default();
    {
        let (lock, gate, order) = (lock.clone(), gate.clone(), order.clone());
        spawn(move || {
            let guard = lock.read();
            gate.wait();
            let mut guard = guard.upgrade();
            order.borrow_mut().push("upgraded");
            assert_eq!(*guard, 1);
            *guard = 2;
        })
        .unwrap();
    }
    {
        let (lock, order) = (lock.clone(), order.clone());
        spawn(move || {
            *lock.write() = 1;
            order.borrow_mut().push("written");
        })
        .unwrap();
    }
    gate.wake_one();
    run_ready();
    assert_eq!(*order.borrow(), ["written", "upgraded"]);
    assert_eq!(*lock.try_read().unwrap(), 2);
}

#[test]
fn a_sole_reader_upgrades_at_once() {
    let lock = RwLock::new(0);
    let guard = lock.read();
    *guard.upgrade() = 1;
    assert_eq!(*lock.read(), 1);
}

#[test]
fn co_rwlock_downgrade() {
    // A writer that downgrades admits the reader behind it, but not the writer behind that, nor a
    // reader behind the writer.
    let lock = Rc::new(RwLock::new(0));
    let gates: Rc<[WaitQueue; 2]> = Rc::default();
    let order: Order = Rc::default();
    {
        let (lock, gates, order) = (lock.clone(), gates.clone(), order.clone());
        spawn(move || {
            let guard = lock.write();
            gates[0].wait();
            let _guard = guard.downgrade();
            order.borrow_mut().push("downgraded");
            gates[1].wait();
            order.borrow_mut().push("released");
        })
        .unwrap();
    }
    for (name, write) in [("reader", false), ("writer", true), ("late reader", false)] {
        let (lock, order) = (lock.clone(), order.clone());
        spawn(move || {
            if write {
                drop(lock.write());
            } else {
                drop(lock.read());
            }
            order.borrow_mut().push(name);
        })
        .unwrap();
    }
    gates[0].wake_one();
    run_ready();
    assert_eq!(*order.borrow(), ["downgraded", "reader"]);
    gates[1].wake_one();
    run_ready();
    assert_eq!(order.borrow()[2..], ["released", "writer", "late reader"]);
}

#[test]
fn a_timeout_ends_a_wait() {
    let queue = Rc::new(WaitQueue::new());
    let result = Rc::new(Cell::new(None));
    let (inside, seen) = (queue.clone(), result.clone());
    let start = Instant::now();
    spawn(move || seen.set(Some(inside.wait_timeout(Duration::from_millis(5))))).unwrap();
    assert_eq!(result.get(), None);
    serve_timers();
    assert_eq!(result.get(), Some(false));
    assert!(start.elapsed() >= Duration::from_millis(5));
    assert!(
        queue.is_empty(),
        "who does not wait any more is still in the queue"
    );
}

#[test]
fn a_wake_ends_a_sleep_and_its_timer() {
    let queue = Rc::new(WaitQueue::new());
    let result = Rc::new(Cell::new(None));
    let (inside, seen) = (queue.clone(), result.clone());
    spawn(move || seen.set(Some(inside.wait_timeout(LONG)))).unwrap();
    assert!(next_deadline().is_some());
    assert!(queue.wake_one());
    run_ready();
    assert_eq!(result.get(), Some(true));
    assert_eq!(
        next_deadline(),
        None,
        "a timer is left that would wake an idle loop"
    );
}

#[test]
fn sleepers_wake_in_the_order_of_time() {
    let order: Order = Rc::default();
    let start = Instant::now();
    for (name, milliseconds) in [("third", 60), ("first", 20), ("second", 40)] {
        let order = order.clone();
        let until = start + Duration::from_millis(milliseconds);
        spawn(move || {
            sleep(until.saturating_duration_since(Instant::now()));
            order.borrow_mut().push(name);
        })
        .unwrap();
    }
    serve_timers();
    assert_eq!(*order.borrow(), ["first", "second", "third"]);
}

#[test]
fn a_wake_goes_past_one_whose_time_is_over() {
    let queue = Rc::new(WaitQueue::new());
    let order: Order = Rc::default();
    for (name, time) in [("impatient", Duration::ZERO), ("patient", LONG)] {
        let (queue, order) = (queue.clone(), order.clone());
        spawn(move || {
            if queue.wait_timeout(time) {
                order.borrow_mut().push(name);
            }
        })
        .unwrap();
    }
    // Its deadline has passed, but it has not run yet and is still in the queue.
    assert_eq!(run_timers(), 1);
    assert!(queue.wake_one());
    run_ready();
    assert_eq!(*order.borrow(), ["patient"]);
}

#[test]
fn a_cancelled_waiter_passes_its_wake_on() {
    let queue = Rc::new(WaitQueue::new());
    let woken = Rc::new(Cell::new(false));
    let inside = queue.clone();
    let mut cancelled = Coroutine::create(move || inside.wait()).unwrap();
    assert!(cancelled.enter());
    let (inside, seen) = (queue.clone(), woken.clone());
    spawn(move || {
        inside.wait();
        seen.set(true);
    })
    .unwrap();
    drop(cancelled);
    assert!(queue.wake_one());
    run_ready();
    assert!(woken.get());
}

/// Many coroutines take locks in a random order and hold them across a random number of yields. A
/// writer is always alone, and each coroutine gets its locks.
#[test]
fn locks_under_random_schedules() {
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..50 {
        let lock = Rc::new(RwLock::new(0_u64));
        let readers = Rc::new(Cell::new(0));
        let gate = Rc::new(WaitQueue::new());
        let finished = Rc::new(Cell::new(0));
        let mut writers = 0;
        for _ in 0..40 {
            let (lock, readers, until) = (lock.clone(), readers.clone(), gate.clone());
            let finished = finished.clone();
            let (kind, yields) = (next(4), next(4));
            writers += u64::from(kind == 0 || kind == 1);
            spawn(move || {
                let hold = || (0..yields).for_each(|_| until.wait());
                match kind {
                    0 => {
                        let mut value = lock.write();
                        assert_eq!(readers.get(), 0);
                        let before = *value;
                        hold();
                        assert_eq!(*value, before);
                        *value += 1;
                    }
                    1 => {
                        let mut value = lock.read().upgrade();
                        assert_eq!(readers.get(), 0);
                        *value += 1;
                        let value = value.downgrade();
                        readers.set(readers.get() + 1);
                        let before = *value;
                        hold();
                        assert_eq!(*value, before);
                        readers.set(readers.get() - 1);
                    }
                    _ => {
                        let value = lock.read();
                        readers.set(readers.get() + 1);
                        let before = *value;
                        hold();
                        assert_eq!(*value, before);
                        readers.set(readers.get() - 1);
                    }
                }
                finished.set(finished.get() + 1);
            })
            .unwrap();
            if next(3) == 0 {
                gate.wake_one();
                run_ready();
            }
        }
        while gate.wake_all() > 0 {
            run_ready();
        }
        assert_eq!(finished.get(), 40);
        assert_eq!(*lock.try_read().unwrap(), writers);
    }
}
