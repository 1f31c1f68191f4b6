//! What a coroutine promises.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use coroutine::{Coroutine, current, in_coroutine, spawn, yield_now};

#[test]
fn lifecycle() {
    for _ in 0..2 {
        let done = Rc::new(Cell::new(false));
        let inside = done.clone();
        let mut coroutine = Coroutine::create(move || inside.set(true)).unwrap();
        assert!(!done.get());
        assert!(!coroutine.enter());
        assert!(done.get() && coroutine.is_finished());
    }
}

#[test]
fn yields_exactly_five_times() {
    let count = Rc::new(Cell::new(0));
    let inside = count.clone();
    let mut coroutine = Coroutine::create(move || {
        for i in 1..=5 {
            inside.set(i);
            yield_now();
        }
    })
    .unwrap();
    let mut entered = 0;
    while coroutine.enter() {
        entered += 1;
        assert_eq!(count.get(), entered);
    }
    assert_eq!(entered, 5);
}

#[test]
fn knows_where_it_is() {
    assert!(!in_coroutine());
    assert_eq!(current(), None);
    let seen = Rc::new(Cell::new(None));
    let inside = seen.clone();
    let mut coroutine = Coroutine::create(move || {
        assert!(in_coroutine());
        inside.set(current());
    })
    .unwrap();
    let id = coroutine.id();
    coroutine.enter();
    assert_eq!(seen.get(), Some(id));
    assert_eq!(current(), None);
}

#[test]
fn nests() {
    fn nest(depth: u32, deepest: Rc<Cell<u32>>) {
        deepest.set(deepest.get().max(depth));
        if depth < 128 {
            let below = deepest.clone();
            let mut inner = Coroutine::create(move || nest(depth + 1, below)).unwrap();
            while inner.enter() {}
        }
        yield_now();
    }
    let deepest = Rc::new(Cell::new(0));
    let inside = deepest.clone();
    let mut outer = Coroutine::create(move || nest(1, inside)).unwrap();
    while outer.enter() {}
    assert_eq!(deepest.get(), 128);
}

#[test]
fn two_alternate() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let make = |name: u32| {
        let order = order.clone();
        Coroutine::create(move || {
            for step in 1..=3 {
                order.borrow_mut().push((name, step));
                yield_now();
            }
        })
        .unwrap()
    };
    let (mut one, mut two) = (make(1), make(2));
    while one.enter() | two.enter() {}
    assert_eq!(
        *order.borrow(),
        [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    );
}

#[test]
fn a_panic_reaches_who_entered() {
    let mut coroutine = Coroutine::create(|| {
        yield_now();
        panic!("at last");
    })
    .unwrap();
    assert!(coroutine.enter());
    let panic = catch_unwind(AssertUnwindSafe(|| coroutine.enter())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"at last"));
    assert!(coroutine.is_finished());
    assert!(!in_coroutine());
}

#[test]
fn a_dropped_coroutine_is_unwound() {
    struct Sets(Rc<Cell<u32>>);
    impl Drop for Sets {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let dropped = Rc::new(Cell::new(0));
    let suspended = Sets(dropped.clone());
    let mut coroutine = Coroutine::create(move || {
        let _held = suspended;
        yield_now();
        unreachable!("the coroutine went on");
    })
    .unwrap();
    assert!(coroutine.enter());
    drop(coroutine);
    assert_eq!(dropped.get(), 1);
    // One that never began drops what it was made of.
    let unused = Sets(dropped.clone());
    drop(Coroutine::create(move || drop(unused)).unwrap());
    assert_eq!(dropped.get(), 2);
}

#[test]
#[should_panic(expected = "a finished coroutine was entered")]
fn a_finished_one_is_not_entered() {
    let mut coroutine = Coroutine::create(|| ()).unwrap();
    coroutine.enter();
    coroutine.enter();
}

#[test]
#[should_panic(expected = "outside of a coroutine")]
fn there_is_nothing_to_yield_outside() {
    yield_now();
}

#[test]
fn many_live_at_once_and_leave_nothing() {
    let count = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let mut all: Vec<_> = (0..2000)
            .map(|_| {
                let count = count.clone();
                Coroutine::create(move || {
                    count.set(count.get() + 1);
                    yield_now();
                    count.set(count.get() - 1);
                })
                .unwrap()
            })
            .collect();
        all.iter_mut()
            .for_each(|coroutine| assert!(coroutine.enter()));
        assert_eq!(count.get(), 2000);
        all.iter_mut()
            .for_each(|coroutine| assert!(!coroutine.enter()));
        assert_eq!(count.get(), 0);
    }
    assert_eq!(Rc::strong_count(&count), 1);
}

#[test]
fn spawned_ones_run_at_once() {
    let done = Rc::new(Cell::new(false));
    let inside = done.clone();
    spawn(move || inside.set(true)).unwrap();
    assert!(done.get());
}
