//! The memory of stacks: mapping, reuse, trimming, overflow and lack of memory.
#![cfg(all(target_os = "linux", not(miri), not(feature = "threads")))]

#[allow(dead_code, reason = "not every test needs all of it")]
mod common;

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;

use coroutine::{
    Coroutine, MIN_STACK_SIZE, StackError, counters, reserve, set_stack_size, spawn, trim,
    yield_now,
};

use common::{alone, is_alone, is_emulated};

/// Runs a test in its own process, where it must pass.
fn pass_alone(test: &str) -> bool {
    if !is_alone() {
        let output = alone(test).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    is_alone()
}

#[inline(never)]
fn recurse(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    if depth == 0 {
        frame[0]
    } else {
        recurse(depth - 1) + frame[1]
    }
}

#[test]
fn an_overflow_says_so_and_dies() {
    if is_alone() {
        let _ = spawn(|| {
            recurse(1_000_000);
        });
        unreachable!("the stack has no end");
    }
    let output = alone("an_overflow_says_so_and_dies").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("coroutine stack overflow"), "{said}");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}

#[test]
#[cfg_attr(
    any(feature = "asan", feature = "tsan"),
    ignore = "the sanitizer does that"
)]
fn another_fault_is_left_to_who_handled_it() {
    if is_alone() {
        let _ = spawn(|| {
            // SAFETY: none; this is to fault.
            unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) };
        });
        unreachable!("address 16 can be written");
    }
    let output = alone("another_fault_is_left_to_who_handled_it")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("coroutine stack overflow"), "{said}");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_stack_of_its_own_size() {
    for size in [MIN_STACK_SIZE, 1024 * 1024, 8 * 1024 * 1024] {
        let mut coroutine = Coroutine::create_with_stack(size, move || {
            // Each frame takes a little more than 512 bytes.
            recurse(size / 2048);
            yield_now();
        })
        .unwrap();
        assert!(coroutine.enter());
        assert!(!coroutine.enter());
    }
    // Its stack is unmapped when it is dropped while suspended, and when it has no owner.
    let mut coroutine = Coroutine::create_with_stack(MIN_STACK_SIZE, yield_now).unwrap();
    coroutine.enter();
    drop(coroutine);
    assert_eq!(
        Coroutine::create_with_stack(1024, || ()).err(),
        Some(StackError::Size(1024))
    );
    assert!(Coroutine::create_with_stack(usize::MAX, || ()).is_err());
}

#[test]
fn the_size_is_set_before_the_first() {
    if pass_alone("the_size_is_set_before_the_first") {
        set_stack_size(1024 * 1024).unwrap();
        // More than the default size holds.
        spawn(|| {
            recurse(400);
        })
        .unwrap();
        assert_eq!(set_stack_size(128 * 1024), Err(StackError::TooLate));
        assert_eq!(set_stack_size(1024 * 1024), Ok(()));
    }
}

#[test]
#[cfg_attr(
    any(feature = "asan", feature = "tsan"),
    ignore = "the sanitizer does that"
)]
fn without_memory_there_is_an_error() {
    if is_emulated() || !pass_alone("without_memory_there_is_an_error") {
        return;
    }
    let limit = libc::rlimit {
        rlim_cur: 2 << 30,
        rlim_max: 2 << 30,
    };
    // SAFETY: the call reads the limit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(result, 0);
    let mut all = Vec::new();
    let error = loop {
        match Coroutine::create(yield_now) {
            Ok(coroutine) => all.push(coroutine),
            Err(error) => break error,
        }
        assert!(all.len() < 1_000_000, "the limit is not one");
    };
    assert_eq!(error, StackError::Memory(libc::ENOMEM));
    assert!(
        error
            .to_string()
            .contains("no memory for a coroutine's stack")
    );
    // `spawn` returns the closure.
    let owned = String::from("owned by the closure");
    let said = Rc::new(Cell::new(None));
    let says = said.clone();
    let failed = spawn(move || says.set(Some(owned))).unwrap_err();
    assert_eq!(failed.error, StackError::Memory(libc::ENOMEM));
    assert_eq!(failed.to_string(), error.to_string());
    (failed.closure)();
    assert_eq!(said.take().as_deref(), Some("owned by the closure"));
    // The existing ones still run, and their stacks can be reused.
    for coroutine in &mut all {
        assert!(coroutine.enter());
    }
    let count = all.len();
    drop(all);
    let again: Vec<_> = (0..count)
        .map(|_| Coroutine::create(|| ()).unwrap())
        .collect();
    assert_eq!(again.len(), count);
}

/// The resident memory of the process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn maps() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

#[test]
#[cfg_attr(
    any(feature = "asan", feature = "tsan"),
    ignore = "the sanitizer does that"
)]
fn idle_stacks_give_their_pages_back() {
    if is_emulated() || !pass_alone("idle_stacks_give_their_pages_back") {
        return;
    }
    const COUNT: usize = 10_000;
    let before = resident();
    let mut all: Vec<_> = (0..COUNT)
        .map(|_| Coroutine::create(yield_now).unwrap())
        .collect();
    all.iter_mut()
        .for_each(|coroutine| assert!(coroutine.enter()));
    let used = resident() - before;
    assert!(used >= COUNT * 4096, "{used}");
    drop(all);
    // The load has risen since the last call: the first one does nothing.
    assert_eq!(trim(), 0);
    let mut given = 0;
    for _ in 0..20 {
        given += trim();
    }
    assert!(given > COUNT * 9 / 10, "{given}");
    let left = resident().saturating_sub(before);
    assert!(left < used / 10, "{left} of {used} bytes are still there");
    // They can be used again.
    let mut again: Vec<_> = (0..COUNT)
        .map(|_| Coroutine::create(yield_now).unwrap())
        .collect();
    again
        .iter_mut()
        .for_each(|coroutine| assert!(coroutine.enter()));
}

#[test]
#[cfg_attr(feature = "tsan", ignore = "the sanitizer maps its own beside each")]
fn slabs_need_few_maps() {
    if is_emulated() || !pass_alone("slabs_need_few_maps") {
        return;
    }
    reserve(64).unwrap();
    let before = maps();
    reserve(20_000).unwrap();
    assert!(counters().stacks >= 20_000);
    // SAFETY: the call has no effect on a null range; it says whether the kernel knows the advice.
    let light = unsafe { libc::madvise(std::ptr::null_mut(), 0, 102) } == 0;
    if light {
        assert!(
            maps() - before < 20,
            "{} maps for 20,000 stacks",
            maps() - before
        );
    }
}

#[test]
fn ended_threads_leave_their_stacks_to_others() {
    if !pass_alone("ended_threads_leave_their_stacks_to_others") {
        return;
    }
    let work = || {
        let all: Vec<_> = (0..1000)
            .map(|_| Coroutine::create(|| ()).unwrap())
            .collect();
        drop(all);
    };
    std::thread::spawn(work).join().unwrap();
    let stacks = counters().stacks;
    for _ in 0..20 {
        std::thread::spawn(work).join().unwrap();
    }
    assert_eq!(counters().stacks, stacks);
}

#[test]
fn counters_count() {
    if !pass_alone("counters_count") {
        return;
    }
    let mut all: Vec<_> = (0..300)
        .map(|_| Coroutine::create(yield_now).unwrap())
        .collect();
    assert_eq!((counters().live, counters().peak), (300, 300));
    all.truncate(100);
    assert_eq!((counters().live, counters().peak), (100, 300));
    drop(all);
    assert_eq!((counters().live, counters().peak), (0, 300));
    assert!(counters().pooled > 0);
    let _one = Coroutine::create(yield_now).unwrap();
    assert_eq!((counters().live, counters().peak), (1, 300));
}
