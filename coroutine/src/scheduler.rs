//! Which coroutines of the thread are to be continued by the loop: those that were woken, and those
//! whose time has come.

use std::time::{Duration, Instant};

use crate::core::{Core, List};
use crate::lifecycle::{move_to, resume, this, wait_in};
use crate::thread::Thread;
use crate::timer::Deadline;

/// Puts a coroutine on the list of those that are ready.
///
/// # Safety
/// It must wait, on this thread, and be in no queue any more.
pub(crate) unsafe fn make_ready(core: &Core) {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    // SAFETY: the caller says that the coroutine waits and is in no queue. The list is there as long
    // as the thread, which alone continues what is in it.
    unsafe { move_to(&thread.ready, core) };
}

/// Continues every coroutine that has been woken, also those that are woken
/// meanwhile, and returns how many. For the loop.
///
/// # Panics
/// With what a coroutine panics with; those behind it stay ready.
pub fn run_ready() -> usize {
    let mut count = 0;
    // SAFETY: it is asked for anew after each switch.
    while let Some(core) = unsafe { Thread::this() }.ready.pop_front() {
        count += 1;
        // SAFETY: what is on the list waits, for nothing else, and was taken out just now.
        unsafe { resume(core) };
    }
    count
}

/// When the first coroutine's time comes; `None` if none waits for the time. For the loop: it must
/// not sleep longer.
pub fn next_deadline() -> Option<Instant> {
    // SAFETY: this function does not switch.
    unsafe { Thread::this() }.timers().first()
}

/// Makes those ready whose time has come, and returns how many. For the loop, before
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
        // SAFETY: a coroutine that is in the table has not gone on: it takes itself out then, by
        // its `Timer`. So it waits, and is alive.
        let core = unsafe { &*core };
        // It may have been woken already and not have run yet.
        if core.waits_in(&thread.ready) {
            continue;
        }
        // SAFETY: the coroutine waits in that queue, which `wait_in` borrows until it goes on, and
        // is taken out before it is put on the other list.
        unsafe {
            (*core.queue.get()).remove(core);
            make_ready(core);
        }
        core.wish.set(EXPIRED);
        count += 1;
    }
    count
}

/// `Core::wish` of one that waits for the time too, and of one whose time has come.
const WAITS: u8 = 0;
const EXPIRED: u8 = 1;

/// Suspends the running coroutine in `queue` until it is taken out there, or for `duration`.
/// Returns whether it was taken out in time.
pub(crate) fn wait_in_for(queue: &List, duration: Duration) -> bool {
    // SAFETY: it is used in this frame alone.
    let core = unsafe { this() };
    // A time that cannot be reckoned with never comes.
    let Some(when) = Instant::now().checked_add(duration) else {
        wait_in(queue);
        return true;
    };
    core.wish.set(WAITS);
    // SAFETY: it is used for this alone, before the switch.
    let deadline = unsafe { Thread::this() }.timers().add(when, core);
    let _timer = Timer(deadline);
    wait_in(queue);
    core.wish.get() != EXPIRED
}

/// Takes a deadline out of the table: it has come, is not needed any more, or the coroutine is
/// unwound.
struct Timer(Deadline);

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: this function does not switch.
        unsafe { Thread::this() }.timers().remove(&self.0);
    }
}
