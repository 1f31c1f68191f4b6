//! The tests of QEMU's `check-coroutine`, by their names there. Those for locks are in `locks.rs`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coroutine::{Coroutine, Id, current, entered, in_coroutine, yield_now};

/// Nothing of a coroutine is left when it has ended: no access dangles.
#[test]
fn no_dangling_access() {
    // Entering a coroutine that ends must not change this function's frame, nor the memory that it
    // points to.
    let first = Rc::new(Cell::new(0x1234_u32));
    let second = Rc::new(Cell::new(0x5678_u32));
    let make = |number: &Rc<Cell<u32>>| {
        let number = number.clone();
        Coroutine::create(move || number.set(!number.get())).unwrap()
    };
    let (mut one, mut two) = (make(&first), make(&second));
    let local = std::hint::black_box([0xa5_u8; 256]);
    assert!(!one.enter());
    assert!(!two.enter());
    assert_eq!((first.get(), second.get()), (!0x1234, !0x5678));
    assert_eq!(std::hint::black_box(local), [0xa5; 256]);
    drop((one, two));
    // Each closure was dropped once, with its coroutine.
    assert_eq!(
        (Rc::strong_count(&first), Rc::strong_count(&second)),
        (1, 1)
    );
    // Another coroutine reuses the stack, and sees nothing of the previous one.
    let mut three = make(&first);
    assert!(!three.enter());
    assert_eq!((first.get(), second.get()), (0x1234, !0x5678));
}

/// A coroutine runs to its end, and another one on the same stack too.
#[test]
fn lifecycle() {
    let mut before = None;
    for _ in 0..2 {
        let done = Rc::new(Cell::new(false));
        let inside = done.clone();
        let mut coroutine = Coroutine::create(move || inside.set(true)).unwrap();
        assert!(!done.get(), "it runs only when it is entered");
        assert!(!coroutine.enter());
        assert!(done.get());
        assert_ne!(before, Some(coroutine.id()), "an id is not used again");
        before = Some(coroutine.id());
    }
}

/// A coroutine that yields five times is entered six times.
#[test]
fn yield_() {
    let yields = Rc::new(Cell::new(0));
    let inside = yields.clone();
    let mut coroutine = Coroutine::create(move || {
        for _ in 0..5 {
            inside.set(inside.get() + 1);
            yield_now();
        }
    })
    .unwrap();
    let mut came_back = 0;
    while coroutine.enter() {
        came_back += 1;
        assert_eq!(yields.get(), came_back);
    }
    assert_eq!((came_back, yields.get()), (5, 5));
}

/// Coroutines enter coroutines, 128 deep.
#[test]
fn nesting() {
    const DEPTH: u32 = 128;
    #[derive(Default)]
    struct Count {
        entered: Cell<u32>,
        returned: Cell<u32>,
    }
    fn nest(count: Rc<Count>) {
        count.entered.set(count.entered.get() + 1);
        if count.entered.get() < DEPTH {
            let inner = count.clone();
            assert!(!Coroutine::create(move || nest(inner)).unwrap().enter());
        }
        count.returned.set(count.returned.get() + 1);
    }
    let count = Rc::new(Count::default());
    let inner = count.clone();
    assert!(!Coroutine::create(move || nest(inner)).unwrap().enter());
    assert_eq!((count.entered.get(), count.returned.get()), (DEPTH, DEPTH));
}

/// The running coroutine has an identifier.
#[test]
fn self_() {
    let seen: Rc<Cell<Option<Id>>> = Rc::default();
    let inside = seen.clone();
    let mut coroutine = Coroutine::create(move || inside.set(current())).unwrap();
    coroutine.enter();
    assert_eq!(seen.get(), Some(coroutine.id()));
    assert_eq!(current(), None);
}

/// `in_coroutine` is true inside, also after a yield, and false outside.
#[test]
fn in_coroutine_() {
    assert!(!in_coroutine());
    let mut coroutine = Coroutine::create(|| {
        assert!(in_coroutine());
        yield_now();
        assert!(in_coroutine());
    })
    .unwrap();
    assert!(coroutine.enter());
    assert!(!in_coroutine());
    assert!(!coroutine.enter());
    assert!(!in_coroutine());
}

/// A coroutine counts as entered while it runs or waits for one that it has entered, but not
/// before, after, or while it is suspended.
#[test]
fn entered_() {
    let outer_id: Rc<Cell<Option<Id>>> = Rc::default();
    let inside = outer_id.clone();
    let mut outer = Coroutine::create(move || {
        let outer = inside.get().unwrap();
        assert!(entered(outer));
        let mut inner = Coroutine::create(move || {
            assert!(entered(outer) && entered(current().unwrap()));
            yield_now();
            assert!(entered(outer));
        })
        .unwrap();
        assert!(!entered(inner.id()));
        assert!(inner.enter());
        assert!(!entered(inner.id()), "a suspended one is not entered");
        yield_now();
        assert!(!inner.enter());
        assert!(!entered(inner.id()));
    })
    .unwrap();
    outer_id.set(Some(outer.id()));
    assert!(!entered(outer.id()));
    assert!(outer.enter());
    assert!(!entered(outer.id()));
    assert!(!outer.enter());
    assert!(!entered(outer.id()));
}

/// Two coroutines take turns: (1,1) (2,1) (1,2) (2,2) (1,3).
#[test]
fn order() {
    let steps = Rc::new(RefCell::new(Vec::new()));
    let make = |name: u32| {
        let steps = steps.clone();
        Coroutine::create(move || {
            for step in 1.. {
                steps.borrow_mut().push((name, step));
                yield_now();
            }
        })
        .unwrap()
    };
    let (mut one, mut two) = (make(1), make(2));
    for _ in 0..2 {
        assert!(one.enter());
        assert!(two.enter());
    }
    assert!(one.enter());
    assert_eq!(*steps.borrow(), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)]);
}
