//! The report of a stack overflow.
//!
//! A fault in a guard arrives as SIGSEGV (SIGBUS on some systems). The handler needs a signal stack
//! for each thread; threads of the standard library have one. Other faults go to the previous
//! handler.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::slab::is_guard;

const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
const SIGNAL_STACK_SIZE: usize = 64 * 1024;

/// The previous handlers, in the order of [`SIGNALS`].
static PREVIOUS: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

thread_local! {
    /// The signal stack that this module has mapped for the thread.
    static SIGNAL_STACK: Cell<*mut libc::c_void> = const { Cell::new(ptr::null_mut()) };
}

/// Makes overflows on this thread reported.
pub(crate) fn watch_thread() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(install);
    // SAFETY: the kernel writes or reads a valid description. The memory that it describes stays
    // mapped until `unwatch_thread` has disabled the signal stack.
    unsafe {
        let mut current = MaybeUninit::<libc::stack_t>::uninit();
        if libc::sigaltstack(ptr::null(), current.as_mut_ptr()) != 0
            || current.assume_init().ss_flags & libc::SS_DISABLE == 0
        {
            return;
        }
        let memory = libc::mmap(
            ptr::null_mut(),
            SIGNAL_STACK_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return;
        }
        let stack = libc::stack_t {
            ss_sp: memory,
            ss_flags: 0,
            ss_size: SIGNAL_STACK_SIZE,
        };
        if libc::sigaltstack(&raw const stack, ptr::null_mut()) == 0 {
            SIGNAL_STACK.set(memory);
        }
    }
}

/// Frees what [`watch_thread`] has mapped for this thread.
pub(crate) fn unwatch_thread() {
    let memory = SIGNAL_STACK.replace(ptr::null_mut());
    if memory.is_null() {
        return;
    }
    let stack = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: `watch_thread` has mapped the memory, and it is no longer the thread's signal stack
    // when it is unmapped.
    unsafe {
        if libc::sigaltstack(&raw const stack, ptr::null_mut()) == 0 {
            libc::munmap(memory, SIGNAL_STACK_SIZE);
        }
    }
}

fn install() {
    for (signal, place) in SIGNALS.into_iter().zip(&PREVIOUS) {
        // SAFETY: both descriptions are initialised, by zeros or by the kernel. The handler is
        // async-signal-safe. The previous action is never freed.
        unsafe {
            let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
            if libc::sigaction(signal, ptr::null(), previous.as_mut_ptr()) != 0 {
                continue;
            }
            place.store(
                Box::into_raw(Box::new(previous.assume_init())),
                Ordering::Release,
            );
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

/// Reports a fault in a guard and lets it kill the process. Passes other faults to the previous
/// handler.
///
/// # Safety
/// Only the kernel may call it, for one of [`SIGNALS`] with SA_SIGINFO.
unsafe extern "C" fn handle(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    const MESSAGE: &[u8] = b"coroutine stack overflow: a coroutine has used up its stack; \
        give it a larger one (coroutine::set_stack_size)\n";
    // SAFETY: the kernel has filled in `info` for a fault. All calls are async-signal-safe. The
    // previous handler is called with the kernel's arguments, as its flags demand.
    unsafe {
        if is_guard((*info).si_addr() as usize) {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            die_of(signal);
            return;
        }
        let index = usize::from(signal == libc::SIGBUS);
        let Some(previous) = PREVIOUS[index].load(Ordering::Acquire).as_ref() else {
            die_of(signal);
            return;
        };
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => die_of(signal),
            handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: unsafe extern "C" fn(
                    libc::c_int,
                    *mut libc::siginfo_t,
                    *mut libc::c_void,
                ) = std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: unsafe extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Restores the default action. The instruction faults again when the handler returns, which kills
/// the process with the right signal and a core dump of the right place.
fn die_of(signal: libc::c_int) {
    // SAFETY: a zeroed description is the default action, and the kernel copies it.
    unsafe {
        let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        libc::sigaction(signal, &raw const default, ptr::null_mut());
    }
}
