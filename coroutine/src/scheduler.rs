//! The coroutines of a thread that the loop resumes: those that were woken, and those whose
//! deadline has passed.

use std::time::{Duration, Instant};

use crate::core::{Core, List};
use crate::lifecycle::{move_to, resume, this, wait_in};
use crate::thread::Thread;
use crate::timer::Deadline;

/// Makes a coroutine ready: the next [`run_ready`] resumes it.
///
/// # Safety
/// The coroutine must belong to this thread, wait, and be in no queue.
pub(crate) unsafe fn make_ready(core: &Core) {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    // SAFETY: the caller promises that the coroutine waits and is in no queue. The list lives as
    // long as the thread, and only this thread resumes its coroutines.
    unsafe { move_to(&thread.ready, core) };
}

/// Resumes every coroutine that has been woken, including those woken meanwhile. Returns their
/// number. For the loop.
///
/// # Panics
/// If a coroutine panics, with its payload. The coroutines after it stay ready.
pub fn run_ready() -> usize {
    let mut count = 0;
    // SAFETY: each iteration gets a new reference, so none is used after a switch.
    while let Some(core) = unsafe { Thread::this() }.ready.pop_front() {
        count += 1;
        // SAFETY: a ready coroutine waits for nothing else, and was just removed from its queue.
        unsafe { resume(core) };
    }
    count
}

/// The earliest deadline of a coroutine, if there is one. The loop must not sleep longer.
pub fn next_deadline() -> Option<Instant> {
    // SAFETY: this function does not switch.
    unsafe { Thread::this() }.timers().first()
}

/// Makes the coroutines ready whose deadline has passed. Returns their number. For the loop, before
/// [`run_ready`].
pub fn run_timers() -> usize {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    if thread.timers().first().is_none() {
        return 0;
    }
    let now = Instant::now();
    let mut count = 0;
    while let Some(core) = thread.timers().take_expired(now) {
        // SAFETY: a coroutine that is in the table still waits, and so is alive: its `Timer`
        // removes it as soon as it is resumed.
        let core = unsafe { &*core };
        // It may have been woken and not yet resumed.
        if core.waits_in(&thread.ready) {
            continue;
        }
        // SAFETY: the coroutine waits in that queue, which `wait_in` borrows until it is resumed.
        // It is removed there before it is made ready.
        unsafe {
            (*core.queue.get()).remove(core);
            make_ready(core);
        }
        core.wait_mode.set(EXPIRED);
        count += 1;
    }
    count
}

/// `Core::wait_mode` before and after the deadline has passed.
const WAITS: u8 = 0;
const EXPIRED: u8 = 1;

/// Suspends the running coroutine in `queue` until it is woken, at most for `duration`. Returns
/// whether it was woken in time.
pub(crate) fn wait_in_for(queue: &List, duration: Duration) -> bool {
    // SAFETY: the reference does not leave this frame, which is on the coroutine's stack.
    let core = unsafe { this() };
    // A deadline that overflows never passes.
    let Some(when) = Instant::now().checked_add(duration) else {
        wait_in(queue);
        return true;
    };
    core.wait_mode.set(WAITS);
    // SAFETY: the reference is used for this expression only, without a switch.
    let deadline = unsafe { Thread::this() }.timers().add(when, core);
    let _timer = Timer(deadline);
    wait_in(queue);
    core.wait_mode.get() != EXPIRED
}

/// Removes a deadline from the table when the wait ends, also by unwinding.
struct Timer(Deadline);

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: this function does not switch.
        unsafe { Thread::this() }.timers().remove(&self.0);
    }
}
