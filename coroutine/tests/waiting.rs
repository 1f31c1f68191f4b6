//! Workers, and coroutines that wait for them.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use coroutine::{Coroutine, Mutex, RwLock, WaitQueue, Workers, run_ready, spawn};

fn workers(threads: usize) -> Rc<Workers> {
    Rc::new(Workers::new(threads).unwrap())
}

fn drain(workers: &Workers) {
    while run_ready() + workers.wait_completed() > 0 {}
}

#[test]
fn a_closure_borrows_from_the_coroutine_s_stack() {
    let workers = workers(2);
    let result = Rc::new(RefCell::new(Vec::new()));
    for i in 0..100_u64 {
        let (workers, result) = (workers.clone(), result.clone());
        spawn(move || {
            let mut on_the_stack = [i; 16];
            let home = std::thread::current().id();
            let sum = workers.offload(|| {
                assert_ne!(std::thread::current().id(), home);
                on_the_stack.iter_mut().for_each(|n| *n += 1);
                on_the_stack.iter().sum::<u64>()
            });
            assert_eq!(std::thread::current().id(), home);
            assert_eq!(on_the_stack, [i + 1; 16]);
            result.borrow_mut().push(sum);
        })
        .unwrap();
    }
    assert_eq!(workers.outstanding(), 100);
    drain(&workers);
    let mut result = result.take();
    result.sort_unstable();
    assert_eq!(result, (0..100).map(|i| (i + 1) * 16).collect::<Vec<_>>());
}

#[test]
fn jobs_run_side_by_side() {
    let workers = workers(4);
    let barrier = Rc::new(Arc::new(Barrier::new(4)));
    for _ in 0..4 {
        let (workers, barrier) = (workers.clone(), barrier.clone());
        spawn(move || {
            let barrier: &Barrier = &barrier;
            workers.offload(|| barrier.wait());
        })
        .unwrap();
    }
    drain(&workers);
    assert_eq!(workers.outstanding(), 0);
}

/// Whether this thread blocks SIGUSR1, which new threads inherit. Blocks it first if `block`.
fn is_blocked(block: bool) -> bool {
    // SAFETY: both sets are this function's, and the first is empty or holds a signal that exists.
    unsafe {
        let (mut wanted, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&raw mut wanted);
        if block {
            libc::sigaddset(&raw mut wanted, libc::SIGUSR1);
        }
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const wanted, &raw mut before);
        assert_eq!(result, 0);
        libc::sigismember(&raw const before, libc::SIGUSR1) == 1
    }
}

#[test]
fn a_worker_begins_as_it_was_told_to_or_inherits_it() {
    let doubly = Arc::new(AtomicBool::new(false));
    let seen = doubly.clone();
    let start = move || {
        seen.fetch_or(is_blocked(true), Ordering::SeqCst);
    };
    let workers = Rc::new(Workers::with_start(4, start).unwrap());
    // Other workers start most of them, while this thread sleeps.
    let barrier = Rc::new(Arc::new(Barrier::new(4)));
    let begun = Rc::new(Cell::new(0));
    for _ in 0..4 {
        let (workers, barrier, begun) = (workers.clone(), barrier.clone(), begun.clone());
        spawn(move || {
            let barrier: &Barrier = &barrier;
            let blocked = workers.offload(|| {
                barrier.wait();
                is_blocked(false)
            });
            begun.set(begun.get() + usize::from(blocked));
        })
        .unwrap();
    }
    drain(&workers);
    assert_eq!(begun.get(), 4);
    assert!(
        !doubly.load(Ordering::SeqCst),
        "it was inherited, and done again"
    );
    assert!(!is_blocked(false), "this thread is not concerned");
}

#[test]
fn a_panic_in_the_closure_comes_back() {
    let workers = workers(1);
    let caught = Rc::new(Cell::new(false));
    {
        let (workers, caught) = (workers.clone(), caught.clone());
        spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| workers.offload(|| panic!("there"))));
            caught.set(result.unwrap_err().downcast_ref::<&str>() == Some(&"there"));
        })
        .unwrap();
    }
    drain(&workers);
    assert!(caught.get());
}

#[test]
fn the_descriptor_wakes_a_sleeping_loop() {
    let workers = workers(1);
    let done = Rc::new(Cell::new(0));
    for round in 1..=1000 {
        let (inside, count) = (workers.clone(), done.clone());
        spawn(move || {
            inside.offload(|| ());
            count.set(count.get() + 1);
        })
        .unwrap();
        while done.get() < round {
            if workers.prepare_sleep() {
                let fd = workers.as_fd().as_raw_fd();
                let mut poll = libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one pollfd.
                let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
                assert_eq!(ready, 1, "a wake-up was lost in round {round}");
            }
            workers.awake();
            workers.run_completed();
        }
    }
}

#[test]
fn dropped_while_its_job_runs_it_is_unwound_afterwards() {
    struct Sets(Rc<Cell<bool>>);
    impl Drop for Sets {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let workers = workers(1);
    let dropped = Rc::new(Cell::new(false));
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (inside, guard) = (workers.clone(), Sets(dropped.clone()));
    let mut coroutine = Coroutine::create(move || {
        let _guard = guard;
        let on_the_stack = [7_u8; 64];
        let borrowed = &on_the_stack;
        inside.offload(move || {
            let _ = gate.recv();
            assert_eq!(*borrowed, [7; 64]);
        });
        unreachable!("the coroutine went on");
    })
    .unwrap();
    assert!(coroutine.enter());
    let entered = catch_unwind(AssertUnwindSafe(|| coroutine.enter()));
    assert!(entered.is_err(), "a coroutine was entered under its job");
    drop(coroutine);
    assert!(!dropped.get());
    release.send(()).unwrap();
    drain(&workers);
    assert!(dropped.get());
}

#[test]
fn outside_of_a_coroutine_the_closure_runs_in_place() {
    let here = std::thread::current().id();
    assert_eq!(workers(1).offload(|| std::thread::current().id()), here);
}

#[test]
fn a_mutex_is_handed_on_in_order() {
    let workers = workers(4);
    let order = Rc::new(Mutex::new(Vec::new()));
    let inside = Rc::new(Cell::new(false));
    for i in 0..20 {
        let (workers, order, inside) = (workers.clone(), order.clone(), inside.clone());
        spawn(move || {
            let mut order = order.lock();
            assert!(!inside.replace(true));
            workers.offload(|| ());
            assert!(inside.replace(false));
            order.push(i);
        })
        .unwrap();
    }
    drain(&workers);
    assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_writer_waits_for_those_before_it_only() {
    let workers = workers(4);
    let lock = Rc::new(RwLock::new(0));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let reader = |name: &'static str| {
        let (workers, lock, seen) = (workers.clone(), lock.clone(), seen.clone());
        spawn(move || {
            let value = lock.read();
            workers.offload(|| ());
            seen.borrow_mut().push((name, *value));
        })
        .unwrap();
    };
    reader("before");
    reader("before");
    {
        let (workers, lock) = (workers.clone(), lock.clone());
        spawn(move || {
            let mut value = lock.write();
            workers.offload(|| ());
            *value = 1;
        })
        .unwrap();
    }
    reader("behind");
    drain(&workers);
    assert_eq!(
        *seen.borrow(),
        [("before", 0), ("before", 0), ("behind", 1)]
    );
}

#[test]
fn a_cancelled_waiter_passes_the_lock_on() {
    let lock = Rc::new(RwLock::new(()));
    let queue = Rc::new(WaitQueue::new());
    let (held, until) = (lock.clone(), queue.clone());
    spawn(move || {
        let _guard = held.write();
        until.wait();
    })
    .unwrap();
    let waits = lock.clone();
    let mut cancelled = Coroutine::create(move || {
        let _guard = waits.read();
        unreachable!("the coroutine went on");
    })
    .unwrap();
    assert!(cancelled.enter());
    let got = Rc::new(Cell::new(false));
    let (last, flag) = (lock.clone(), got.clone());
    spawn(move || {
        let _guard = last.write();
        flag.set(true);
    })
    .unwrap();
    drop(cancelled);
    assert_eq!(queue.wake_all(), 1);
    run_ready();
    assert!(got.get());
}

#[test]
fn a_queue_wakes_in_order() {
    let queue = Rc::new(WaitQueue::new());
    let order = Rc::new(RefCell::new(Vec::new()));
    for i in 0..5 {
        let (queue, order) = (queue.clone(), order.clone());
        spawn(move || {
            queue.wait();
            order.borrow_mut().push(i);
        })
        .unwrap();
    }
    assert!(queue.wake_one());
    assert!(order.borrow().is_empty());
    run_ready();
    assert_eq!(*order.borrow(), [0]);
    assert_eq!(queue.wake_all(), 4);
    run_ready();
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
    assert!(!queue.wake_one());
}

#[test]
fn a_job_that_blocks_does_not_hold_up_the_next() {
    // The first ends when the second is done: each needs its own worker, also while the loop
    // sleeps.
    let workers = workers(2);
    for _ in 0..100 {
        let (open, gate) = std::sync::mpsc::channel();
        let inside = workers.clone();
        spawn(move || inside.offload(move || gate.recv().unwrap())).unwrap();
        let inside = workers.clone();
        spawn(move || inside.offload(move || open.send(()).unwrap())).unwrap();
        drain(&workers);
    }
    assert_eq!(workers.hops(), 200);
}

#[test]
fn it_is_dropped_with_jobs_running() {
    // Waits for running jobs, resumes their coroutines, and leaves no working thread.
    let done = Rc::new(Cell::new(0));
    {
        let workers = workers(3);
        for _ in 0..20 {
            let (inside, done) = (Rc::downgrade(&workers), done.clone());
            spawn(move || {
                // Not held across the wait: the last owner is outside.
                // SAFETY: the pool waits for this coroutine before it goes away.
                let workers = unsafe { &*inside.as_ptr() };
                workers.offload(std::thread::yield_now);
                done.set(done.get() + 1);
            })
            .unwrap();
        }
    }
    assert_eq!(done.get(), 20);
}

#[test]
fn a_panic_in_a_continued_coroutine_leaves_the_others_to_the_next_turn() {
    let workers = workers(1);
    let done = Rc::new(Cell::new(0));
    for i in 0..10 {
        let (inside, done) = (workers.clone(), done.clone());
        spawn(move || {
            inside.offload(|| ());
            assert!(i % 2 == 0, "odd");
            done.set(done.get() + 1);
        })
        .unwrap();
    }
    let mut panics = 0;
    while workers.outstanding() > 0 {
        panics += u32::from(catch_unwind(AssertUnwindSafe(|| workers.wait_completed())).is_err());
    }
    assert_eq!((panics, done.get()), (5, 5));
}

#[test]
fn the_loop_may_be_asked_from_within() {
    // A resumed coroutine drains the others, whose completions may be half taken.
    let workers = workers(2);
    let done = Rc::new(Cell::new(0));
    for i in 0..10 {
        let (inside, done) = (workers.clone(), done.clone());
        spawn(move || {
            inside.offload(|| ());
            done.set(done.get() + 1);
            if i == 0 {
                while inside.outstanding() > 0 {
                    inside.wait_completed();
                }
                assert_eq!(done.get(), 10);
            }
        })
        .unwrap();
    }
    drain(&workers);
    assert_eq!(done.get(), 10);
}

#[test]
fn while_it_is_unwound_it_does_not_hop() {
    struct Offloads(Rc<Workers>, Rc<Cell<bool>>);
    impl Drop for Offloads {
        fn drop(&mut self) {
            let here = std::thread::current().id();
            self.1
                .set(self.0.offload(|| std::thread::current().id()) == here);
        }
    }
    let workers = workers(1);
    let in_place = Rc::new(Cell::new(false));
    let guard = Offloads(workers.clone(), in_place.clone());
    let result = catch_unwind(AssertUnwindSafe(|| {
        spawn(move || {
            let _guard = guard;
            panic!("now");
        })
    }));
    assert!(result.is_err() && in_place.get());
}

#[test]
fn a_storm_of_hops() {
    const COROUTINES: usize = if cfg!(any(miri, feature = "threads")) {
        5
    } else {
        100
    };
    const HOPS: u64 = if cfg!(any(miri, feature = "threads")) {
        5
    } else {
        300
    };
    let workers = workers(4);
    let sum = Rc::new(Cell::new(0));
    for i in 0..COROUTINES as u64 {
        let (workers, sum) = (workers.clone(), sum.clone());
        spawn(move || {
            for hop in 0..HOPS {
                let mut on_the_stack = [i, hop];
                workers.offload(|| on_the_stack[0] += 1);
                sum.set(sum.get() + on_the_stack[0]);
            }
        })
        .unwrap();
    }
    drain(&workers);
    let count = COROUTINES as u64;
    assert_eq!(sum.get(), HOPS * count * (count + 1) / 2);
    assert_eq!(workers.hops(), HOPS * count);
}
