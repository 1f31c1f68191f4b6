//! Stack walks from a coroutine into the code that entered it.
//!
//! The assembly back-ends have unwind information for that. With the others a walk ends at the
//! coroutine.
#![cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ),
    not(any(miri, feature = "ucontext", feature = "threads"))
))]

#[allow(dead_code, reason = "not every test needs all of it")]
mod common;

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::hint::black_box;
use std::process::Command;
use std::rc::Rc;

use coroutine::{Coroutine, yield_inline, yield_now};

use common::{alone, is_alone};

type Seen = Rc<RefCell<Vec<String>>>;

#[inline(never)]
fn who_enters_the_outer(coroutine: &mut Coroutine) {
    coroutine.enter();
    black_box(());
}

#[inline(never)]
fn who_enters_the_inner(coroutine: &mut Coroutine) {
    coroutine.enter_inline();
    black_box(());
}

#[inline(never)]
fn the_innermost(seen: &Seen) {
    seen.borrow_mut()
        .push(Backtrace::force_capture().to_string());
    the_breakpoint();
}

/// Has the same name for a debugger in every build.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn the_breakpoint() {
    black_box(());
}

/// Two coroutines, the inner entered by the outer.
fn nest(seen: &Seen) -> Coroutine {
    let seen = seen.clone();
    Coroutine::create(move || {
        let mut inner = Coroutine::create(move || {
            the_innermost(&seen);
            yield_now();
            the_innermost(&seen);
            yield_inline();
            the_innermost(&seen);
        })
        .unwrap();
        for _ in 0..3 {
            who_enters_the_inner(&mut inner);
            yield_now();
        }
    })
    .unwrap()
}

#[test]
fn a_backtrace_goes_on_in_the_caller() {
    let seen = Seen::default();
    let mut outer = nest(&seen);
    for _ in 0..3 {
        who_enters_the_outer(&mut outer);
    }
    assert_eq!(seen.borrow().len(), 3);
    for backtrace in seen.borrow().iter() {
        let mut rest = &backtrace[..];
        for function in [
            "the_innermost",
            "who_enters_the_inner",
            "who_enters_the_outer",
            "a_backtrace_goes_on",
        ] {
            let place = rest.find(function);
            let place = place.unwrap_or_else(|| panic!("no {function} behind it:\n{backtrace}"));
            rest = &rest[place..];
        }
    }
}

#[test]
fn a_panic_shows_who_entered() {
    const TEST: &str = "a_panic_shows_who_entered";
    if is_alone() {
        let mut coroutine = Coroutine::create(|| panic!("for its backtrace")).unwrap();
        who_enters_the_outer(&mut coroutine);
    }
    let output = alone(TEST).env("RUST_BACKTRACE", "full").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("for its backtrace"), "{said}");
    assert!(said.contains("who_enters_the_outer"), "{said}");
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "a debugger of that machine is needed"
)]
fn a_debugger_goes_on_in_the_caller() {
    if is_alone() {
        let mut outer = nest(&Seen::default());
        who_enters_the_outer(&mut outer);
        return;
    }
    // Without debug information it is the linker's name.
    let commands = [
        "set confirm off",
        "set debuginfod enabled off",
        "break backtrace::the_breakpoint",
        "break the_breakpoint",
        "run",
        "backtrace",
    ];
    let debugger = Command::new("gdb")
        .args(["-nx", "-batch"])
        .args(commands.iter().flat_map(|command| ["-ex", command]))
        .arg("--args")
        .arg(std::env::current_exe().unwrap())
        .args(["a_debugger_goes_on_in_the_caller", "--exact"])
        .env("ALONE", "1")
        .output();
    let output = match debugger {
        Ok(output) => output,
        Err(error) => panic!("gdb: {error}: apt-get install gdb"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let backtrace = said
        .split("#0 ")
        .nth(1)
        .unwrap_or_else(|| panic!("no backtrace:\n{said}"));
    let mut rest = backtrace;
    for function in [
        "the_innermost",
        "who_enters_the_inner",
        "who_enters_the_outer",
    ] {
        let place = rest.find(function);
        rest = &rest[place.unwrap_or_else(|| panic!("no {function} behind it:\n{said}"))..];
    }
}
