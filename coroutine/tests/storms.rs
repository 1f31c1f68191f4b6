//! Random steps, compared with a model.

use std::cell::Cell;
use std::rc::Rc;

use coroutine::{Coroutine, counters, yield_now};

/// Marsaglia's xorshift, with the same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// The model of a coroutine that yields `yields` times.
struct Model {
    yields: usize,
    entered: usize,
}

const STEPS: usize = if cfg!(miri) { 500 } else { 1_000_000 };

#[test]
fn a_million_steps() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let dropped = Rc::new(Cell::new(0));
    let mut made = 0;
    let mut all: Vec<(Coroutine, Rc<Cell<usize>>, Model)> = Vec::new();
    struct Counts(Rc<Cell<usize>>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    for _ in 0..STEPS {
        match random.below(8) {
            // Create one, but not too many at once.
            0 | 1 if all.len() < 1000 => {
                let yields = random.below(6);
                let progress = Rc::new(Cell::new(0));
                let (inside, counts) = (progress.clone(), Counts(dropped.clone()));
                let depth = random.below(4);
                let coroutine = Coroutine::create(move || {
                    let _counts = counts;
                    for i in 0..yields {
                        inside.set(i + 1);
                        at_depth(depth);
                    }
                    inside.set(yields + 1);
                })
                .unwrap();
                made += 1;
                all.push((coroutine, progress, Model { yields, entered: 0 }));
            }
            // Drop one, in any state.
            2 if !all.is_empty() => {
                let index = random.below(all.len());
                let before = dropped.get();
                let (coroutine, _, model) = all.swap_remove(index);
                let ended = model.entered > model.yields;
                drop(coroutine);
                assert_eq!(dropped.get() - before, usize::from(!ended));
            }
            // Enter one.
            _ if !all.is_empty() => {
                let index = random.below(all.len());
                let (coroutine, progress, model) = &mut all[index];
                if model.entered > model.yields {
                    assert!(coroutine.is_finished());
                    continue;
                }
                model.entered += 1;
                let alive = coroutine.enter();
                assert_eq!(progress.get(), model.entered);
                assert_eq!(alive, model.entered <= model.yields);
            }
            _ => {}
        }
    }
    drop(all);
    assert_eq!(dropped.get(), made);
    assert_eq!(counters().live, 0);
}

/// Yields with several frames on the stack, which must be unchanged afterwards.
#[inline(never)]
fn at_depth(depth: usize) {
    let frame = std::hint::black_box([depth; 16]);
    if depth == 0 {
        yield_now();
    } else {
        at_depth(depth - 1);
    }
    assert_eq!(frame, [depth; 16]);
}

#[test]
#[cfg_attr(any(miri, feature = "threads"), ignore = "a hundred thousand threads")]
#[cfg_attr(windows, ignore = "more fibers than wine has memory for")]
fn a_hundred_thousand_alive_at_once() {
    // Under an emulator guards are mappings, whose number is limited. ThreadSanitizer counts each
    // coroutine as a thread, and supports eight thousand.
    let emulated = std::env::var_os("TEST_RUNNER").is_some();
    let count: usize = match (cfg!(feature = "tsan"), emulated) {
        (true, _) => 4_000,
        (_, true) => 20_000,
        _ => 100_000,
    };
    let sum = Rc::new(Cell::new(0));
    let mut all: Vec<_> = (0..count)
        .map(|i| {
            let sum = sum.clone();
            let mut coroutine = Coroutine::create(move || {
                yield_now();
                sum.set(sum.get() + i);
            })
            .unwrap();
            assert!(coroutine.enter());
            coroutine
        })
        .collect();
    assert_eq!(counters().live, count as isize);
    assert!(counters().peak >= count as isize);
    for coroutine in &mut all {
        assert!(!coroutine.enter());
    }
    assert_eq!(sum.get(), count * (count - 1) / 2);
    drop(all);
    assert_eq!(counters().live, 0);
}
