//! Coroutines that wait for the time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::core::{self, Core};
use crate::list::List;
use crate::lock::{WaitQueue, make_ready};
use crate::thread::Thread;

/// What is to happen when, told apart by a number if at the same time.
#[derive(Default)]
pub(crate) struct Timers {
    table: RefCell<BTreeMap<(Instant, u64), *const Timer>>,
    last_number: Cell<u64>,
}

impl Timers {
    /// Those of the calling thread.
    fn this<'a>() -> &'a Timers {
        let place = &Thread::this().timers;
        if place.get().is_null() {
            place.set(Box::into_raw(Box::default()));
        }
        // SAFETY: what is there comes from the line above, and is freed at the thread's end.
        unsafe { &*place.get() }
    }
}

impl Thread {
    /// At the thread's end, when nothing enters those that wait any more.
    pub(crate) fn drop_timers(&self) {
        let timers = self.timers.replace(std::ptr::null()).cast_mut();
        if !timers.is_null() {
            // SAFETY: what is there comes from `Timers::this`, and is not used again.
            drop(unsafe { Box::from_raw(timers) });
        }
    }
}

/// On the stack of a coroutine that waits until something happens or a time comes.
struct Timer {
    key: (Instant, u64),
    /// The queue in which the coroutine waits for the other thing.
    queue: *const List,
    core: *const Core,
    expired: Cell<bool>,
    set: Cell<bool>,
}

/// When the first coroutine's time comes; `None` if none waits for the time. For the loop: it must
/// not sleep longer.
pub fn next_deadline() -> Option<Instant> {
    Timers::this()
        .table
        .borrow()
        .first_key_value()
        .map(|(&(when, _), _)| when)
}

/// Makes those ready whose time has come, and returns how many. For the loop, before
/// [`run_ready`](crate::run_ready).
pub fn run_timers() -> usize {
    if Timers::this().table.borrow().is_empty() {
        return 0;
    }
    let now = Instant::now();
    let mut count = 0;
    while let Some(timer) = take_expired(now) {
        // SAFETY: a timer takes itself out of the table before it goes away, and the queue and
        // the coroutine are there as long as the timer.
        unsafe {
            let timer = &*timer;
            timer.set.set(false);
            // It may have been woken already and not have run yet.
            if (*timer.core).waits_in(timer.queue) {
                timer.expired.set(true);
                (*timer.queue).remove(&*timer.core);
                make_ready(&*timer.core);
                count += 1;
            }
        }
    }
    count
}

fn take_expired(now: Instant) -> Option<*const Timer> {
    let mut timers = Timers::this().table.borrow_mut();
    let first = timers.first_entry()?;
    (first.key().0 <= now).then(|| first.remove())
}

/// Suspends the running coroutine, which is not in a queue yet, in `queue` until it is taken out
/// there, or for `duration`. Returns whether it was taken out in time.
pub(crate) fn wait_in(queue: &List, duration: Duration) -> bool {
    let core = core::this();
    // A time that cannot be reckoned with never comes.
    let Some(when) = Instant::now().checked_add(duration) else {
        core::wait_in(queue, core);
        return true;
    };
    let timers = Timers::this();
    let number = timers.last_number.get() + 1;
    timers.last_number.set(number);
    let timer = Timer {
        key: (when, number),
        queue,
        core,
        expired: Cell::new(false),
        set: Cell::new(true),
    };
    timers
        .table
        .borrow_mut()
        .insert(timer.key, &raw const timer);
    core::wait_in(queue, core);
    !timer.expired.get()
}

impl Drop for Timer {
    /// It is not needed any more, or the coroutine is unwound.
    fn drop(&mut self) {
        if self.set.get() {
            Timers::this().table.borrow_mut().remove(&self.key);
        }
    }
}

/// A sleep that others can end.
///
/// ```
/// use coroutine::{Sleep, run_ready, spawn};
/// use std::{rc::Rc, time::Duration};
///
/// let sleep = Rc::new(Sleep::new());
/// let sleeps = sleep.clone();
/// spawn(move || assert!(!sleeps.sleep(Duration::from_secs(3600)), "nobody waits that long"))?;
/// assert_eq!(sleep.wake(), 1);
/// assert_eq!(run_ready(), 1);
/// # Ok::<(), coroutine::StackError>(())
/// ```
#[derive(Default)]
pub struct Sleep {
    queue: WaitQueue,
}

impl Sleep {
    /// Nobody sleeps.
    pub const fn new() -> Sleep {
        Sleep {
            queue: WaitQueue::new(),
        }
    }

    /// Suspends the running coroutine for `duration`, or until it is [woken](Sleep::wake). Returns
    /// whether it has slept to the end. The loop sees to the time: [`next_deadline`] and
    /// [`run_timers`].
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn sleep(&self, duration: Duration) -> bool {
        !self.queue.wait_timeout(duration)
    }

    /// Wakes all that sleep here, and returns how many.
    pub fn wake(&self) -> usize {
        self.queue.wake_all()
    }
}

/// Suspends the running coroutine for `duration`. The loop sees to the time: [`next_deadline`] and
/// [`run_timers`].
///
/// # Panics
/// Outside of a coroutine.
pub fn sleep(duration: Duration) {
    Sleep::new().sleep(duration);
}
