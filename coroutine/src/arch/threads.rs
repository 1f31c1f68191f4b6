//! Each coroutine a thread, one of which has the baton: for tools that know nothing of stacks, and
//! as an oracle for the other back-ends. What a coroutine sees of the standard library's thread
//! (its name, thread-local variables) is not that of who entered it.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// The baton of a coroutine. At offset 0 of what contains it.
#[repr(C)]
pub(crate) struct Link {
    baton: RefCell<Option<Arc<Baton>>>,
    thread: Cell<Option<thread::JoinHandle<()>>>,
    entry: Cell<Option<Entry>>,
    /// The place of the state of the thread that has entered the coroutine.
    acts_for: Cell<*const u8>,
    runs_inside: Cell<bool>,
    ended: Cell<bool>,
    /// For who goes on.
    value: Cell<bool>,
    hook: Cell<Option<Hook>>,
}

#[derive(Default)]
struct Baton {
    inside: Mutex<bool>,
    passed: Condvar,
}

/// A coroutine's first function. `cancelled` if it is entered to be dropped.
pub(crate) type Entry = unsafe extern "C-unwind" fn(link: *const Link, cancelled: bool) -> !;

/// Called on a stack that has just been switched to, before it goes on; it may unwind into it.
pub(crate) type Hook = unsafe extern "C-unwind" fn(link: *const Link);

/// A pointer that goes to the thread that is given the baton.
struct Passed<T>(T);

// SAFETY: of the threads that know of the pointer only the one with the baton uses it.
unsafe impl<T> Send for Passed<T> {}

thread_local! {
    /// The place of the state of the thread for which this one acts.
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

    /// Sees to it that the first switch calls `entry(link, value)`.
    ///
    /// # Safety
    /// The link must be where it is until the coroutine has ended.
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

    /// Starts the coroutine's thread, which has the baton from the beginning.
    fn start(&self, entry: Entry) {
        let passed = Passed(ptr::from_ref(self));
        let main = move || {
            let Passed(link) = { passed };
            // SAFETY: the link outlives the coroutine.
            let end = catch_unwind(AssertUnwindSafe(|| unsafe {
                ACTS_FOR.set((*link).acts_for.get());
                entry(link, (*link).value.get())
            }));
            if let Err(payload) = end
                && !payload.is::<Ended>()
            {
                resume_unwind(payload);
            }
        };
        match thread::Builder::new().spawn(main) {
            Ok(thread) => self.thread.set(Some(thread)),
            Err(error) => panic!("no thread for a coroutine: {error}"),
        }
    }
}

/// What a coroutine's thread is unwound with at its end.
struct Ended;

/// Whether coroutines can be switched here.
pub(crate) fn usable() -> bool {
    true
}

/// Passes the baton to the other side, where `value` is what the switch returns. Returns when it
/// comes back.
///
/// # Safety
/// The other side must be alive.
#[inline(never)]
pub(crate) unsafe fn switch(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller says that the other side is alive and that its state is in this link.
    unsafe { exchange(link, value, None) }
}

/// As [`switch`], but on the other side `hook` is called before it goes on.
///
/// # Safety
/// As for [`switch`]; the other side must have begun.
#[inline(never)]
pub(crate) unsafe fn switch_then(link: *const Link, value: bool, hook: Hook) -> bool {
    // SAFETY: the caller says that the other side is alive, has begun, and that its state is in
    // this link.
    unsafe { exchange(link, value, Some(hook)) }
}

/// As [`switch`], for the last time.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good(link: *const Link, value: bool) -> ! {
    // SAFETY: the caller says that the other side is alive, that its state is in this link, and
    // that nothing switches back.
    unsafe { end(link, value, None) }
}

/// As [`switch_then`], for the last time.
///
/// # Safety
/// As for [`switch_then`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good_then(link: *const Link, value: bool, hook: Hook) -> ! {
    // SAFETY: the caller says that the other side is alive, has begun, that its state is in
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
    // The only way to end a thread.
    resume_unwind(Box::new(Ended))
}

/// As [`switch`]: here it is not copied into the caller.
///
/// # Safety
/// As for [`switch`].
#[inline(always)]
pub(crate) unsafe fn switch_inline(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller says that the other side is alive and that its state is in this link.
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
    } else if link.ended.get()
        && let Some(thread) = link.thread.take()
    {
        // With all that the thread does at its end.
        let _ = thread.join();
    }
    let value = link.value.get();
    if let Some(hook) = link.hook.take() {
        // SAFETY: the other side has asked for the hook, and has been left. The link is still alive.
        unsafe { hook(link) };
    }
    value
}

/// Bytes and alignment that a thread's state may have.
#[repr(C, align(16))]
struct Slot(UnsafeCell<[usize; 32]>);

thread_local! {
    static OWN: Slot = const { Slot(UnsafeCell::new([0; 32])) };
}

/// The place of the state of the thread for which this one acts.
#[inline(never)]
pub(crate) fn slot_of_this() -> *const u8 {
    let acts_for = ACTS_FOR.get();
    if acts_for.is_null() {
        OWN.with(|slot| slot.0.get().cast_const().cast())
    } else {
        acts_for
    }
}

/// The place of the state of the thread for which the caller acts.
macro_rules! thread_slot {
    ($symbol:literal, $size:literal) => {
        #[inline(always)]
        fn slot() -> *const u8 {
            crate::arch::slot_of_this()
        }
    };
}
pub(crate) use thread_slot;
