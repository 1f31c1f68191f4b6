//! The behaviour of coroutines.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use coroutine::{
    Coroutine, Mutex, Step, current, entered, in_coroutine, spawn, yield_inline, yield_now,
};

#[test]
fn no_dangling_access() {
    // Outer enters inner, which yields. Then outer ends, and its stack is unmapped. Inner must not
    // access it when other code enters it.
    let inner = Rc::new(RefCell::new(Coroutine::create(yield_now).unwrap()));
    let entering = inner.clone();
    let mut outer = Coroutine::create_with_stack(64 * 1024, move || {
        entering.borrow_mut().enter();
    })
    .unwrap();
    assert!(!outer.enter());
    drop(outer);
    assert!(!inner.borrow_mut().enter());
}

#[test]
fn lifecycle() {
    // Twice: with a new coroutine, and with one from the pool.
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
fn nesting() {
    fn nest(depth: u32, entered: &Rc<Cell<u32>>, returned: &Rc<Cell<u32>>) {
        entered.set(entered.get() + 1);
        if depth < 128 {
            let counts = (entered.clone(), returned.clone());
            let mut inner =
                Coroutine::create(move || nest(depth + 1, &counts.0, &counts.1)).unwrap();
            // Its yield returns here, not further out.
            while inner.enter() {}
        }
        yield_now();
        returned.set(returned.get() + 1);
    }
    let (entered, returned) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let counts = (entered.clone(), returned.clone());
    let mut outer = Coroutine::create(move || nest(1, &counts.0, &counts.1)).unwrap();
    while outer.enter() {}
    assert_eq!((entered.get(), returned.get()), (128, 128));
}

#[test]
fn itself() {
    assert_eq!(current(), None);
    let seen = Rc::new(Cell::new(None));
    let inside = seen.clone();
    let mut coroutine = Coroutine::create(move || inside.set(current())).unwrap();
    let id = coroutine.id();
    coroutine.enter();
    assert_eq!(seen.get(), Some(id));
    assert_eq!(current(), None);
    // At the same address, but another coroutine.
    drop(coroutine);
    assert_ne!(Coroutine::create(|| ()).unwrap().id(), id);
}

#[test]
fn in_a_coroutine() {
    assert!(!in_coroutine());
    let mut coroutine = Coroutine::create(|| assert!(in_coroutine())).unwrap();
    coroutine.enter();
    assert!(!in_coroutine());
}

#[test]
fn is_entered() {
    let outer_id = Rc::new(Cell::new(None));
    let seen = outer_id.clone();
    let mut inner = Coroutine::create(move || {
        assert!(entered(current().unwrap()));
        assert!(
            entered(seen.get().unwrap()),
            "who entered this one is entered itself"
        );
        yield_now();
        assert!(!entered(seen.get().unwrap()));
    })
    .unwrap();
    let inner_id = inner.id();
    let give = Rc::new(RefCell::new(None));
    let back = give.clone();
    let mut outer = Coroutine::create(move || {
        assert!(!entered(inner_id));
        inner.enter();
        assert!(!entered(inner_id));
        *back.borrow_mut() = Some(inner);
    })
    .unwrap();
    outer_id.set(Some(outer.id()));
    assert!(!entered(outer.id()));
    outer.enter();
    assert!(!entered(outer.id()) && !entered(inner_id));
    let mut inner = give.take().unwrap();
    assert!(!inner.enter());
}

#[test]
fn order() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let make = |name: u32, steps: u32| {
        let order = order.clone();
        Coroutine::create(move || {
            for step in 1..=steps {
                order.borrow_mut().push((name, step));
                if step < steps {
                    yield_now();
                }
            }
        })
        .unwrap()
    };
    let (mut one, mut two) = (make(1, 3), make(2, 2));
    while one.enter() {
        two.enter();
    }
    assert_eq!(*order.borrow(), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)]);
}

#[test]
fn co_mutex_lockable() {
    // Released where its guard's block ends.
    let mutex = Rc::new(Mutex::new(0));
    let inside = mutex.clone();
    spawn(move || {
        {
            let mut value = inside.lock();
            *value += 1;
            assert!(inside.try_lock().is_none());
        }
        *inside.try_lock().unwrap() += 1;
    })
    .unwrap();
    assert_eq!(*mutex.try_lock().unwrap(), 2);
}

#[test]
fn copied_into_the_caller_it_is_the_same() {
    // Each way to enter with each way to yield.
    for entering in [Coroutine::enter, |coroutine: &mut Coroutine| {
        coroutine.enter_inline()
    }] {
        for yielding in [yield_now, || yield_inline()] {
            let count = Rc::new(Cell::new(0_u64));
            let inside = count.clone();
            let mut coroutine = Coroutine::create(move || {
                for i in 1..=100_u64 {
                    let kept = [i, i * i, i * i * i];
                    inside.set(inside.get() + kept[0]);
                    yielding();
                    assert_eq!(kept, [i, i * i, i * i * i]);
                }
            })
            .unwrap();
            while entering(&mut coroutine) {}
            assert_eq!(count.get(), 5050);
            // Both are unwound.
            let held = count.clone();
            let mut coroutine = Coroutine::create(move || {
                let _held = held;
                yielding();
                unreachable!("the coroutine went on");
            })
            .unwrap();
            entering(&mut coroutine);
            drop(coroutine);
            assert_eq!(Rc::strong_count(&count), 1);
            // Panics continue in the code that entered.
            let mut coroutine = Coroutine::create(move || {
                yielding();
                panic!("out");
            })
            .unwrap();
            entering(&mut coroutine);
            let panic = catch_unwind(AssertUnwindSafe(|| entering(&mut coroutine))).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"out"));
        }
    }
}

#[test]
fn values_go_in_and_out() {
    let mut echo = Coroutine::with_values(|yielder, first: String| {
        let mut text = first;
        while text != "end" {
            let reply = format!("{text}?");
            text = yielder.yield_value(reply);
        }
        text.len()
    })
    .unwrap();
    assert_eq!(echo.pass("one".into()), Step::Yielded("one?".into()));
    assert_eq!(echo.pass("two".into()), Step::Yielded("two?".into()));
    assert_eq!(echo.pass("end".into()), Step::Finished(3));
    assert!(echo.is_finished());
}

#[test]
fn a_coroutine_is_an_iterator() {
    let squares = Coroutine::with_values(|yielder, ()| {
        for i in 1..=5 {
            yielder.yield_value(i * i);
        }
    })
    .unwrap();
    assert_eq!(squares.collect::<Vec<u32>>(), [1, 4, 9, 16, 25]);
}

#[test]
fn values_that_nobody_takes_are_dropped() {
    let token = Rc::new(());
    let (first, last) = (token.clone(), token.clone());
    let mut coroutine = Coroutine::with_values(move |yielder, _: Rc<()>| {
        yielder.yield_value(first);
        last
    })
    .unwrap();
    assert!(matches!(coroutine.pass(token.clone()), Step::Yielded(_)));
    drop(coroutine);
    assert_eq!(Rc::strong_count(&token), 1);
    let value = token.clone();
    let never_entered = Coroutine::<(), (), _>::with_values(move |_, ()| value).unwrap();
    drop(never_entered);
    assert_eq!(Rc::strong_count(&token), 1);
}

#[test]
#[should_panic(expected = "has yielded without one")]
fn a_coroutine_with_values_yields_values() {
    let mut coroutine = Coroutine::<u32, u32>::with_values(|_, _| yield_now()).unwrap();
    coroutine.pass(1);
}

#[test]
#[should_panic(expected = "ended while it held a coroutine lock")]
fn a_coroutine_does_not_end_with_a_lock() {
    let mutex: &'static Mutex<()> = Box::leak(Box::new(Mutex::new(())));
    let mut coroutine = Coroutine::create(move || std::mem::forget(mutex.lock())).unwrap();
    coroutine.enter();
}

#[test]
#[should_panic(expected = "a running coroutine was entered")]
fn a_running_one_is_not_entered() {
    // Misuse that the compiler refuses, by unsafe code.
    let place: Rc<Cell<*mut Coroutine>> = Rc::new(Cell::new(std::ptr::null_mut()));
    let inside = place.clone();
    // SAFETY: the coroutine is alive when it is entered, by whomever.
    let mut coroutine = Coroutine::create(move || unsafe {
        (*inside.get()).enter();
    })
    .unwrap();
    place.set(&raw mut coroutine);
    coroutine.enter();
}

#[test]
fn a_panicking_one_does_not_yield() {
    struct Yields(Rc<Cell<bool>>);
    impl Drop for Yields {
        fn drop(&mut self) {
            let refused = catch_unwind(yield_now).is_err();
            self.0.set(refused);
        }
    }
    let refused = Rc::new(Cell::new(false));
    let inside = refused.clone();
    let mut coroutine = Coroutine::create(move || {
        let _yields = Yields(inside);
        panic!("first");
    })
    .unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| coroutine.enter())).is_err());
    assert!(refused.get());
}

#[test]
fn one_is_dropped_while_another_panics() {
    // Its unwinding enters a third, which may yield, as it does not panic.
    struct Nests;
    impl Drop for Nests {
        fn drop(&mut self) {
            drop(Coroutine::create(|| ()).unwrap());
        }
    }
    let result = catch_unwind(|| {
        let mut coroutine = Coroutine::create(|| {
            let _nests = Nests;
            yield_now();
        })
        .unwrap();
        coroutine.enter();
        panic!("out here");
    });
    assert_eq!(
        result.unwrap_err().downcast_ref::<&str>(),
        Some(&"out here")
    );
}

#[test]
fn who_catches_its_unwinding_is_unwound_again() {
    let rounds = Rc::new(Cell::new(0));
    let inside = rounds.clone();
    let mut coroutine = Coroutine::create(move || {
        for _ in 0..5 {
            let _ = catch_unwind(yield_now);
            inside.set(inside.get() + 1);
        }
    })
    .unwrap();
    coroutine.enter();
    drop(coroutine);
    assert_eq!(rounds.get(), 5);
}

#[test]
#[should_panic(expected = "catches its unwinding")]
fn who_never_ends_is_told_so() {
    let mut coroutine = Coroutine::create(|| {
        loop {
            let _ = catch_unwind(yield_now);
        }
    })
    .unwrap();
    coroutine.enter();
    drop(coroutine);
}

#[test]
fn panics_at_every_depth() {
    fn nest(depth: usize, panics: usize, seen: &Rc<Cell<usize>>) {
        if depth == panics {
            panic!("at {depth}");
        }
        let inside = seen.clone();
        let mut inner = Coroutine::create(move || nest(depth + 1, panics, &inside)).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| inner.enter())).unwrap_err();
        seen.set(seen.get() + 1);
        std::panic::resume_unwind(panic);
    }
    for panics in 1..=32 {
        let seen = Rc::new(Cell::new(0));
        let inside = seen.clone();
        let mut outer = Coroutine::create(move || nest(1, panics, &inside)).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| outer.enter())).unwrap_err();
        assert_eq!(
            panic.downcast_ref::<String>(),
            Some(&format!("at {panics}"))
        );
        assert_eq!(seen.get(), panics - 1);
        assert!(!in_coroutine());
    }
}

#[test]
fn a_nest_is_dropped_from_its_root() {
    struct Counts(Rc<Cell<usize>>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    // Each holds the next, suspended; the outermost is dropped.
    fn nest(depth: usize, dropped: &Rc<Cell<usize>>) -> Coroutine {
        let dropped = dropped.clone();
        let mut coroutine = Coroutine::create(move || {
            let _counts = Counts(dropped.clone());
            let _inner = (depth > 1).then(|| nest(depth - 1, &dropped));
            yield_now();
            unreachable!("the coroutine went on");
        })
        .unwrap();
        assert!(coroutine.enter());
        coroutine
    }
    let dropped = Rc::new(Cell::new(0));
    let outermost = nest(100, &dropped);
    assert_eq!(dropped.get(), 0);
    drop(outermost);
    assert_eq!(dropped.get(), 100);
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
    // One that was never entered drops its closure.
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
