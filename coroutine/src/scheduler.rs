//! Which coroutines of the thread are to be continued by the loop: those that were woken, and those
//! whose time has come.

use std::time::{Duration, Instant};

use crate::core::{Core, List};
use crate::lifecycle::{self, move_to, resume, this};
use crate::thread::Thread;
use crate::timer::Deadline;

/// Puts a coroutine that waits, and is in no queue any more, on the list of those that are ready.
pub(crate) fn make_ready(core: &Core) {
    move_to(&Thread::this().ready, core);
}

/// Continues every coroutine that has been woken, also those that are woken
/// meanwhile, and returns how many. For the loop.
///
/// # Panics
/// With what a coroutine panics with; those behind it stay ready.
pub fn run_ready() -> usize {
    let mut count = 0;
    while let Some(core) = Thread::this().ready.pop_front() {
        count += 1;
        resume(core);
    }
    count
}

/// When the first coroutine's time comes; `None` if none waits for the time. For the loop: it must
/// not sleep longer.
pub fn next_deadline() -> Option<Instant> {
    Thread::this().timers().first()
}

/// Makes those ready whose time has come, and returns how many. For the loop, before
/// [`run_ready`].
pub fn run_timers() -> usize {
    let thread = Thread::this();
    if thread.timers().first().is_none() {
        return 0;
    }
    let now = Instant::now();
    let mut count = 0;
    while let Some(core) = thread.timers().take_expired(now) {
        // SAFETY: a coroutine takes itself out of the table before it goes on.
        let core = unsafe { &*core };
        // It may have been woken already and not have run yet.
        if core.waits_in(&thread.ready) {
            continue;
        }
        // SAFETY: a queue that a coroutine waits in is borrowed by it.
        if let Some(queue) = unsafe { core.queue.get().as_ref() } {
            queue.remove(core);
            core.wish.set(EXPIRED);
            make_ready(core);
            count += 1;
        }
    }
    count
}

/// `Core::wish` of one that waits for the time too, and of one whose time has come.
const WAITS: u8 = 0;
const EXPIRED: u8 = 1;

/// Suspends the running coroutine in `queue` until it is taken out there, or for `duration`.
/// Returns whether it was taken out in time.
pub(crate) fn wait_in_for(queue: &List, duration: Duration) -> bool {
    let core = this();
    // A time that cannot be reckoned with never comes.
    let Some(when) = Instant::now().checked_add(duration) else {
        lifecycle::wait_in(queue, core);
        return true;
    };
    core.wish.set(WAITS);
    let _timer = Timer(Thread::this().timers().add(when, core));
    lifecycle::wait_in(queue, core);
    core.wish.get() != EXPIRED
}

/// Takes a deadline out of the table: it has come, is not needed any more, or the coroutine is
/// unwound.
struct Timer(Deadline);

impl Drop for Timer {
    fn drop(&mut self) {
        Thread::this().timers().remove(&self.0);
    }
}
