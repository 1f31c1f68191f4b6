//! Runs each coroutine on its own thread, one at a time: the one that has the baton. For tools that
//! do not support stack switching, and as a reference for the other back-ends. A coroutine sees its
//! own thread's name and thread-local variables, and not those of the thread that entered it.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// The baton of a coroutine. At offset 0 of its container.
#[repr(C)]
pub(crate) struct Link {
    baton: RefCell<Option<Arc<Baton>>>,
    thread: Cell<Option<thread::JoinHandle<()>>>,
    entry: Cell<Option<Entry>>,
    /// The state of the thread that has entered the coroutine.
    acts_for: Cell<*const u8>,
    runs_inside: Cell<bool>,
    ended: Cell<bool>,
    /// The result of the switch on the side that continues.
    value: Cell<bool>,
    hook: Cell<Option<Hook>>,
}

#[derive(Default)]
struct Baton {
    inside: Mutex<bool>,
    passed: Condvar,
}

/// A coroutine's first function. `cancelled` if it only has to drop its closure.
pub(crate) type Entry = unsafe extern "C-unwind" fn(link: *const Link, cancelled: bool) -> !;

/// A function called on the stack that was switched to, before that continues. It may unwind into
/// that stack.
pub(crate) type Hook = unsafe extern "C-unwind" fn(link: *const Link);

/// A pointer passed to the thread that gets the baton.
struct Passed<T>(T);

// SAFETY: of the threads that know of the pointer only the one with the baton uses it.
unsafe impl<T> Send for Passed<T> {}

thread_local! {
    /// The state of the thread for which this one acts.
    static ACTS_FOR: Cell<*const u8> = const { Cell::new(ptr::null()) };
}

impl Baton {
    fn pass(&self, inside: bool) {
        *self.inside.lock().unwrap_or_else(PoisonError::into_inner) = inside;
        self.passed.notify_all();
    }

    fn wait(&self, inside: bool) {
        let mut place = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        while *place != inside {
            place = self
                .passed
                .wait(place)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Link {
    pub(crate) const fn new() -> Link {
        Link {
            baton: RefCell::new(None),
            thread: Cell::new(None),
            entry: Cell::new(None),
            acts_for: Cell::new(ptr::null()),
            runs_inside: Cell::new(false),
            ended: Cell::new(false),
            value: Cell::new(false),
            hook: Cell::new(None),
        }
    }

    /// Makes the first switch call `entry(link, value)`.
    ///
    /// # Safety
    /// The link must not move until the coroutine has ended.
    pub(crate) unsafe fn prepare(&self, _: *mut u8, entry: Entry) {
        self.baton.replace(Some(Arc::default()));
        self.entry.set(Some(entry));
        self.runs_inside.set(false);
        self.ended.set(false);
    }

    fn baton(&self) -> Arc<Baton> {
        match &*self.baton.borrow() {
            Some(baton) => baton.clone(),
            None => unreachable!("a coroutine was entered that was not prepared"),
        }
    }

    /// Starts the coroutine's thread, which has the baton from the start.
    fn start(&self, entry: Entry) {
        let passed = Passed(ptr::from_ref(self));
        let main = move || {
            let Passed(link) = { passed };
            // SAFETY: the link outlives the coroutine.
            let end = catch_unwind(AssertUnwindSafe(|| unsafe {
                ACTS_FOR.set((*link).acts_for.get());
                entry(link, (*link).value.get())
            }));
            if let Err(payload) = end {
                if !payload.is::<Ended>() {
                    resume_unwind(payload);
                }
            }
        };
        match thread::Builder::new().spawn(main) {
            Ok(thread) => self.thread.set(Some(thread)),
            Err(error) => panic!("no thread for a coroutine: {error}"),
        }
    }
}

/// The panic payload that ends a coroutine's thread.
struct Ended;

/// Whether coroutines can be switched on this thread.
pub(crate) fn usable() -> bool {
    true
}

/// Passes the baton to the other side, where the switch returns `value`. Returns when it comes
/// back.
///
/// # Safety
/// The other side must be alive.
#[inline(never)]
pub(crate) unsafe fn switch(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller promises that the other side is alive and that its state is in this link.
    unsafe { exchange(link, value, None) }
}

/// As [`switch`], but first calls `hook` on the other side.
///
/// # Safety
/// As for [`switch`], and the other side must have started.
#[inline(never)]
pub(crate) unsafe fn switch_then(link: *const Link, value: bool, hook: Hook) -> bool {
    // SAFETY: the caller promises that the other side is alive, has started, and that its state is
    // in this link.
    unsafe { exchange(link, value, Some(hook)) }
}

/// As [`switch`], for the last time.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good(link: *const Link, value: bool) -> ! {
    // SAFETY: the caller promises that the other side is alive, that its state is in this link, and
    // that nothing switches back.
    unsafe { end(link, value, None) }
}

/// As [`switch_then`], for the last time.
///
/// # Safety
/// As for [`switch_then`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good_then(link: *const Link, value: bool, hook: Hook) -> ! {
    // SAFETY: the caller promises that the other side is alive, has started, that its state is in
    // this link, and that nothing switches back.
    unsafe { end(link, value, Some(hook)) }
}

/// Passes the baton for the last time, and ends this thread.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
unsafe fn end(link: *const Link, value: bool, hook: Option<Hook>) -> ! {
    // SAFETY: the link is alive as long as the coroutine, which is until the baton is passed. After
    // that this thread does not look at it.
    let baton = unsafe {
        (*link).value.set(value);
        (*link).hook.set(hook);
        (*link).runs_inside.set(false);
        (*link).ended.set(true);
        (*link).baton()
    };
    baton.pass(false);
    // A thread of the standard library can only be ended by unwinding it.
    resume_unwind(Box::new(Ended))
}

/// As [`switch`]: this back-end does not inline it.
///
/// # Safety
/// As for [`switch`].
#[inline(always)]
pub(crate) unsafe fn switch_inline(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller promises that the other side is alive and that its state is in this link.
    unsafe { switch(link, value) }
}

/// Passes the baton; returns when it comes back.
///
/// # Safety
/// As for [`switch`].
unsafe fn exchange(link: *const Link, value: bool, hook: Option<Hook>) -> bool {
    // SAFETY: the link lives as long as the coroutine, which is at least until the hook is called:
    // nothing of it is used after that.
    let link = unsafe { &*link };
    link.value.set(value);
    link.hook.set(hook);
    let runs_inside = link.runs_inside.replace(!link.runs_inside.get());
    let baton = link.baton();
    if !runs_inside {
        link.acts_for.set(slot_of_this().cast());
    }
    match link.entry.take() {
        Some(entry) => {
            *baton.inside.lock().unwrap_or_else(PoisonError::into_inner) = true;
            link.start(entry);
        }
        None => baton.pass(!runs_inside),
    }
    baton.wait(runs_inside);
    if runs_inside {
        ACTS_FOR.set(link.acts_for.get());
    } else if link.ended.get() {
        if let Some(thread) = link.thread.take() {
            // Waits for the thread's destructors too.
            let _ = thread.join();
        }
    }
    let value = link.value.get();
    if let Some(hook) = link.hook.take() {
        // SAFETY: the other side has asked for the hook, and has been left. The link is still
        // alive.
        unsafe { hook(link) };
    }
    value
}

/// Maximum size and alignment of a thread's state.
#[repr(C, align(16))]
struct Slot(UnsafeCell<[usize; 32]>);

thread_local! {
    static OWN: Slot = const { Slot(UnsafeCell::new([0; 32])) };
}

/// The address of the state of the thread for which this one acts.
#[inline(never)]
pub(crate) fn slot_of_this() -> *const u8 {
    let acts_for = ACTS_FOR.get();
    if acts_for.is_null() {
        OWN.with(|slot| slot.0.get().cast_const().cast())
    } else {
        acts_for
    }
}

/// Defines `slot`, the address of the state of the thread for which the caller acts.
macro_rules! thread_slot {
    ($symbol:literal, $size:literal) => {
        #[inline(always)]
        fn slot() -> *const u8 {
            crate::arch::slot_of_this()
        }
    };
}
pub(crate) use thread_slot;
