//! The primitives of this library, each in a loop.

use coroutine::{Coroutine, yield_inline, yield_now};

/// `count` round trips of enter and yield.
pub fn yields(count: usize) {
    let mut coroutine = Coroutine::create(|| {
        loop {
            yield_now();
        }
    })
    .expect("no stack");
    for _ in 0..count {
        coroutine.enter();
    }
}

/// As [`yields`], with both sides inlined into the loops.
pub fn yields_inline(count: usize) {
    let mut coroutine = Coroutine::create(|| {
        loop {
            yield_inline();
        }
    })
    .expect("no stack");
    for _ in 0..count {
        coroutine.enter_inline();
    }
}

/// Creates, enters and ends `count` coroutines, one after the other.
pub fn lifecycles(count: usize) {
    for _ in 0..count {
        coroutine::spawn(|| ()).expect("no stack");
    }
}

/// As [`lifecycles`], with an owner for each.
pub fn lifecycles_owned(count: usize) {
    for _ in 0..count {
        Coroutine::create(|| ()).expect("no stack").enter_inline();
    }
}

/// Creates `count` coroutines that yield once and end.
pub fn costs(count: usize) {
    for _ in 0..count {
        let mut coroutine = Coroutine::create(yield_now).expect("no stack");
        coroutine.enter();
        coroutine.enter();
    }
}

/// `depth` coroutines, each created and entered by the previous one.
pub fn nest(depth: usize) {
    if depth > 0 {
        Coroutine::create(move || nest(depth - 1))
            .expect("no stack")
            .enter();
    }
}

/// `count` suspended coroutines on new stacks.
pub fn cold(count: usize) -> Vec<Coroutine> {
    (0..count)
        .map(|_| {
            let mut coroutine = Coroutine::create(yield_now).expect("no stack");
            coroutine.enter();
            coroutine
        })
        .collect()
}
