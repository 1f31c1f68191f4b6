//! Panics and drops, at every depth of a nest of coroutines.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::rc::Rc;

use coroutine::{Coroutine, counters, current, in_coroutine, yield_now};

const DEPTH: u32 = if cfg!(miri) { 6 } else { 40 };

type Marks = Rc<RefCell<Vec<u32>>>;

/// Logs its number when it is dropped.
struct Mark(u32, Marks);

impl Drop for Mark {
    fn drop(&mut self) {
        self.1.borrow_mut().push(self.0);
    }
}

/// `DEPTH` nested coroutines, each of which is suspended on the way. The one at depth `at` panics
/// with its depth.
fn panics_at(at: u32, depth: u32, marks: &Marks) -> Coroutine {
    let marks = marks.clone();
    Coroutine::create(move || {
        let _mark = Mark(depth, marks.clone());
        yield_now();
        if depth == at {
            panic_any(depth);
        }
        let mut inner = panics_at(at, depth + 1, &marks);
        while inner.enter() {
            yield_now();
        }
    })
    .unwrap()
}

#[test]
fn a_panic_at_every_depth_reaches_the_outermost() {
    for at in 1..=DEPTH {
        let marks = Marks::default();
        let mut outer = panics_at(at, 1, &marks);
        let panic = catch_unwind(AssertUnwindSafe(|| while outer.enter() {})).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&at));
        assert!(outer.is_finished());
        assert_eq!(*marks.borrow(), (1..=at).rev().collect::<Vec<_>>());
        assert!(!in_coroutine() && !std::thread::panicking());
    }
    assert_eq!(counters().live, 0);
}

#[test]
fn a_panic_that_is_caught_halfway_leaves_the_rest_running() {
    fn level(depth: u32, catcher: u32, reached: &Rc<Cell<u32>>) -> Coroutine {
        let reached = reached.clone();
        Coroutine::create(move || {
            let me = current();
            if depth == DEPTH {
                resume_unwind(Box::new("deep down"));
            }
            let mut inner = level(depth + 1, catcher, &reached);
            if depth == catcher {
                let caught = catch_unwind(AssertUnwindSafe(|| inner.enter())).unwrap_err();
                assert_eq!(caught.downcast_ref(), Some(&"deep down"));
                assert!(inner.is_finished());
            } else {
                inner.enter();
            }
            assert_eq!(current(), me);
            reached.set(reached.get() + 1);
        })
        .unwrap()
    }
    for catcher in 1..DEPTH {
        let reached = Rc::new(Cell::new(0));
        assert!(!level(1, catcher, &reached).enter());
        assert_eq!(reached.get(), catcher);
    }
}

#[test]
fn dropping_a_suspended_nest_unwinds_all_of_it() {
    fn level(depth: u32, deepest: u32, marks: &Marks) -> Coroutine {
        let marks = marks.clone();
        Coroutine::create(move || {
            let _mark = Mark(depth, marks.clone());
            let mut inner = (depth < deepest).then(|| level(depth + 1, deepest, &marks));
            if let Some(inner) = &mut inner {
                assert!(inner.enter());
            }
            yield_now();
            unreachable!("a dropped coroutine went on");
        })
        .unwrap()
    }
    for deepest in 1..=DEPTH {
        let marks = Marks::default();
        let mut outer = level(1, deepest, &marks);
        assert!(outer.enter());
        assert!(marks.borrow().is_empty());
        drop(outer);
        // The inner one is a local created after the mark, so it is dropped first.
        assert_eq!(*marks.borrow(), (1..=deepest).rev().collect::<Vec<_>>());
    }
    assert_eq!(counters().live, 0);
}

/// A panic unwinds a coroutine that owns a suspended one, which is unwound while the thread panics.
#[test]
fn dropped_by_a_panic_it_is_unwound_too() {
    let marks = Marks::default();
    let inside = marks.clone();
    let mut victim = Coroutine::create(move || {
        let _mark = Mark(1, inside);
        yield_now();
    })
    .unwrap();
    assert!(victim.enter());
    let inside = marks.clone();
    let mut owner = Coroutine::create(move || {
        let _mark = Mark(2, inside);
        let _victim = victim;
        yield_now();
        resume_unwind(Box::new(7));
    })
    .unwrap();
    assert!(owner.enter());
    let panic = catch_unwind(AssertUnwindSafe(|| owner.enter())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&7));
    assert_eq!(*marks.borrow(), [1, 2]);
    assert!(!std::thread::panicking());
}

#[test]
fn a_destructor_may_run_coroutines_while_it_is_unwound() {
    struct Runs(Rc<Cell<u32>>);
    impl Drop for Runs {
        fn drop(&mut self) {
            let count = self.0.clone();
            let inner = Coroutine::create(move || count.set(count.get() + 1));
            assert!(!inner.unwrap().enter());
        }
    }
    let count = Rc::new(Cell::new(0));
    let inside = count.clone();
    let mut coroutine = Coroutine::create(move || {
        let _runs = Runs(inside);
        yield_now();
    })
    .unwrap();
    assert!(coroutine.enter());
    drop(coroutine);
    assert_eq!(count.get(), 1);
}

/// Dropping a coroutine raises its own panic, and not the one that unwinds it.
#[test]
fn a_panic_while_it_is_unwound_comes_out_of_the_drop() {
    let mut coroutine = Coroutine::create(|| {
        assert!(catch_unwind(yield_now).is_err());
        resume_unwind(Box::new("from the end"));
    })
    .unwrap();
    assert!(coroutine.enter());
    let panic = catch_unwind(AssertUnwindSafe(|| drop(coroutine))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"from the end"));
    assert!(!in_coroutine());
}

#[test]
fn a_running_one_is_not_entered() {
    let shared: Rc<RefCell<Option<Coroutine>>> = Rc::default();
    let inside = shared.clone();
    let itself = Coroutine::create(move || {
        // SAFETY: none. It stands for a program that gets a second reference by a bug of its own.
        let itself = unsafe { &mut *inside.as_ptr() }.as_mut().unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| itself.enter())).unwrap_err();
        assert_eq!(
            panic.downcast_ref(),
            Some(&"a running coroutine was entered")
        );
    })
    .unwrap();
    *shared.borrow_mut() = Some(itself);
    // SAFETY: none. It stands for a program that gets a second reference by a bug of its own.
    let itself = unsafe { &mut *shared.as_ptr() }.as_mut().unwrap();
    assert!(!itself.enter());
    shared.take();
}
