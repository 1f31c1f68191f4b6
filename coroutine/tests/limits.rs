//! The limits of the system, each in its own process.
//!
//! Sanitizers have their own limits and signal handlers.
#![cfg(all(
    target_os = "linux",
    not(any(miri, feature = "threads", feature = "asan", feature = "tsan"))
))]

#[allow(dead_code, reason = "not every test needs all of it")]
mod common;

use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use coroutine::{Coroutine, spawn, yield_now};

use common::{is_alone, is_emulated};

fn alone(test: &str) -> Output {
    common::alone(test).output().unwrap()
}

#[inline(never)]
fn recurse(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    if depth == 0 {
        frame[0]
    } else {
        recurse(depth - 1) + black_box(frame[1])
    }
}

/// The handler leaves the overflow of a thread's own stack to the standard library.
#[test]
fn a_thread_that_overflows_is_still_reported_by_std() {
    if is_alone() {
        spawn(|| {}).unwrap();
        std::thread::Builder::new()
            .name("deep".into())
            .spawn(|| {
                spawn(|| {}).unwrap();
                recurse(100_000_000)
            })
            .unwrap()
            .join()
            .unwrap();
        unreachable!("the stack has no end");
    }
    let output = alone("a_thread_that_overflows_is_still_reported_by_std");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("has overflowed its stack"), "{said}");
    assert!(!said.contains("coroutine stack overflow"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
}

/// An overflow on a thread that the standard library has not started, and so without a signal
/// stack.
#[test]
fn an_overflow_on_a_foreign_thread_says_so() {
    extern "C" fn start(_: *mut libc::c_void) -> *mut libc::c_void {
        let _ = spawn(|| {
            recurse(100_000_000);
        });
        std::process::exit(0);
    }
    if is_alone() {
        // SAFETY: the function has the right signature and takes no argument.
        unsafe {
            let mut thread = std::mem::zeroed();
            let null = std::ptr::null_mut();
            assert_eq!(
                libc::pthread_create(&mut thread, std::ptr::null(), start, null),
                0
            );
            libc::pthread_join(thread, std::ptr::null_mut());
        }
        unreachable!("the stack has no end");
    }
    let output = alone("an_overflow_on_a_foreign_thread_says_so");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("coroutine stack overflow"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}

/// More coroutines than the kernel allows mappings: each has a guard, but no mapping of its own.
#[test]
fn more_are_alive_than_there_may_be_maps() {
    // Under an emulator each guard is a mapping.
    if is_emulated() {
        return;
    }
    if !is_alone() {
        let output = alone("more_are_alive_than_there_may_be_maps");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        return;
    }
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // SAFETY: advice for nothing: it says only whether the kernel knows it.
    let light_guards = unsafe { libc::madvise(std::ptr::null_mut(), 0, 102) } == 0;
    // A very high limit would take too much memory for a test.
    if !light_guards || limit > 100_000 {
        eprintln!("not run: light guards: {light_guards}, vm.max_map_count = {limit}");
        return;
    }
    let count = limit + limit / 10;
    let mut all: Vec<_> = (0..count)
        .map(|_| {
            let mut coroutine = Coroutine::create(yield_now).unwrap();
            assert!(coroutine.enter());
            coroutine
        })
        .collect();
    for coroutine in &mut all {
        assert!(!coroutine.enter());
    }
}

/// On a kernel without guard marks, which a seccomp filter simulates, each guard is a mapping. They
/// work too, and running out of them is an error.
#[cfg(target_arch = "x86_64")]
#[test]
fn without_light_guards_there_are_others() {
    if is_alone() {
        refuse_light_guards();
        let mut all = Vec::new();
        let error = loop {
            match Coroutine::create(yield_now) {
                Ok(coroutine) => all.push(coroutine),
                Err(error) => break error,
            }
            assert!(all.len() < 1_000_000, "the maps have no end");
        };
        assert_eq!(error, coroutine::StackError::Memory(libc::ENOMEM));
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        // Two mappings each.
        assert!(all.len() > limit * 2 / 5, "{} of {limit} maps", all.len());
        // All of them work, and freed mappings can be used.
        for coroutine in &mut all {
            assert!(coroutine.enter());
        }
        drop(all);
        let deep = Coroutine::create(|| {
            recurse(100_000_000);
        });
        eprintln!("the maps ran out");
        deep.unwrap().enter();
        unreachable!("the stack has no end");
    }
    let output = alone("without_light_guards_there_are_others");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the maps ran out"), "{said}");
    assert!(said.contains("coroutine stack overflow"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}

/// Makes madvise(.., MADV_GUARD_INSTALL) fail with EINVAL, as before Linux 6.13.
#[cfg(target_arch = "x86_64")]
fn refuse_light_guards() {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
    const fn statement(code: u32, k: u32) -> sock_filter {
        sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        }
    }
    const fn unless_equal_skip(k: u32, skip: u8) -> sock_filter {
        sock_filter {
            code: (BPF_JMP | BPF_JEQ | BPF_K) as u16,
            jt: 0,
            jf: skip,
            k,
        }
    }
    // Offsets in seccomp_data: the number of the call, and the lower half of its third argument.
    let mut filter = [
        statement(BPF_LD | BPF_W | BPF_ABS, 0),
        unless_equal_skip(libc::SYS_madvise as u32, 3),
        statement(BPF_LD | BPF_W | BPF_ABS, 32),
        unless_equal_skip(102, 1),
        statement(
            BPF_RET | BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32,
        ),
        statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is well-formed and outlives the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}
