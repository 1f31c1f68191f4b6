//! Coroutines that migrate between threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use coroutine::{SendCoroutine, Step, WaitQueue, current, in_coroutine, yield_inline, yield_now};

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// Not inlined, as the contract of [`SendCoroutine`] demands.
#[inline(never)]
fn here() -> usize {
    HERE.get()
}

#[inline(never)]
fn set_here(value: usize) {
    HERE.set(value);
}

#[test]
#[cfg_attr(
    feature = "threads",
    ignore = "thread-locals are those of the coroutine's own thread"
)]
fn thread_locals_are_those_of_the_thread_that_runs() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inside = seen.clone();
    // SAFETY: at its yields nothing is on the stack but what is Send.
    let mut coroutine = unsafe {
        SendCoroutine::create(move || {
            for _ in 0..4 {
                let before = here();
                let id = current();
                inside.lock().unwrap().push(before);
                yield_now();
                // The library's thread-local state: on the new thread this is the same coroutine.
                assert!(in_coroutine());
                assert_eq!(current(), id);
                assert_ne!(here(), before, "the old thread's variable was read");
            }
        })
    }
    .unwrap();
    set_here(100);
    assert!(coroutine.enter());
    for name in 1..=3 {
        coroutine = thread::spawn(move || {
            set_here(name);
            assert!(!in_coroutine());
            assert!(coroutine.enter());
            assert!(!in_coroutine());
            coroutine
        })
        .join()
        .unwrap();
    }
    assert!(!coroutine.enter());
    assert_eq!(*seen.lock().unwrap(), [100, 1, 2, 3]);
}

#[test]
fn values_go_along() {
    // SAFETY: at its yields nothing is on the stack but what is Send.
    let mut sum = unsafe {
        SendCoroutine::with_values(|yielder, first: u64| {
            let mut sum = first;
            for _ in 0..9 {
                sum += yielder.yield_value(sum);
            }
            sum
        })
    }
    .unwrap();
    let mut last = Step::Waiting;
    for i in 1..=10 {
        (sum, last) = thread::spawn(move || {
            let step = sum.pass(i);
            (sum, step)
        })
        .join()
        .unwrap();
    }
    assert_eq!(last, Step::Finished(55));
}

const COROUTINES: usize = if cfg!(any(miri, feature = "threads")) {
    8
} else {
    200
};
const YIELDS: usize = if cfg!(any(miri, feature = "threads")) {
    5
} else {
    500
};

#[test]
fn a_migration_storm() {
    const THREADS: usize = 4;
    let total = Arc::new(AtomicUsize::new(0));
    // Each thread passes the coroutine that it has entered to the next.
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS)
        .map(|_| mpsc::channel::<SendCoroutine>())
        .unzip();
    let left = Arc::new(AtomicUsize::new(COROUTINES));
    for i in 0..COROUTINES {
        let total = total.clone();
        // SAFETY: at its yields nothing is on the stack but what is Send.
        let coroutine = unsafe {
            SendCoroutine::create(move || {
                let mut sum = 0;
                for step in 0..YIELDS {
                    sum += step;
                    // Both kinds of yield, as the compiler can inline one of them.
                    if step % 2 == 0 {
                        yield_now()
                    } else {
                        yield_inline()
                    }
                }
                total.fetch_add(sum, Ordering::Relaxed);
            })
        };
        senders[i % THREADS].send(coroutine.unwrap()).unwrap();
    }
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(index, receiver)| {
            let (next, left) = (senders[(index + 1) % THREADS].clone(), left.clone());
            thread::spawn(move || {
                while left.load(Ordering::Acquire) > 0 {
                    let wait = std::time::Duration::from_millis(1);
                    let Ok(mut coroutine) = receiver.recv_timeout(wait) else {
                        continue;
                    };
                    if coroutine.enter() {
                        next.send(coroutine).unwrap();
                    } else {
                        left.fetch_sub(1, Ordering::Release);
                    }
                }
                // What has come since is not finished by anybody: there is none.
                assert!(receiver.try_recv().is_err());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(
        total.load(Ordering::Relaxed),
        COROUTINES * YIELDS * (YIELDS - 1) / 2
    );
}

#[test]
fn one_is_unwound_on_another_thread() {
    let token = Arc::new(());
    let held = token.clone();
    // SAFETY: what is on the stack at its yield is Send.
    let mut coroutine = unsafe {
        SendCoroutine::create(move || {
            let _held = held;
            yield_now();
            unreachable!("the coroutine went on");
        })
    }
    .unwrap();
    assert!(coroutine.enter());
    thread::spawn(move || drop(coroutine)).join().unwrap();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
#[should_panic(expected = "waits for something that belongs to one")]
fn one_that_migrates_does_not_wait() {
    // SAFETY: it never gets to yield.
    let mut coroutine = unsafe { SendCoroutine::create(|| WaitQueue::new().wait()) }.unwrap();
    coroutine.enter();
}
