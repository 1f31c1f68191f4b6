//! Windows fibers, whose stacks the system provides.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

type Fiber = *mut c_void;

/// Both sides of a coroutine, and which of them runs. At offset 0 of its container.
#[repr(C)]
pub(crate) struct Link {
    inside: Cell<Fiber>,
    outside: Cell<Fiber>,
    runs_inside: Cell<bool>,
    ended: Cell<bool>,
    entry: Cell<Option<Entry>>,
    /// The result of the switch on the side that continues.
    value: Cell<bool>,
    hook: Cell<Option<Hook>>,
}

/// A coroutine's first function. `cancelled` if it only has to drop its closure.
pub(crate) type Entry = unsafe extern "C-unwind" fn(link: *const Link, cancelled: bool) -> !;

/// A function called on the stack that was switched to, before that continues. It may unwind into
/// that stack.
pub(crate) type Hook = unsafe extern "C-unwind" fn(link: *const Link);

#[link(name = "kernel32")]
unsafe extern "system" {
    fn IsThreadAFiber() -> i32;
    fn ConvertThreadToFiber(parameter: *mut c_void) -> Fiber;
    fn CreateFiber(
        size: usize,
        start: unsafe extern "system" fn(*mut c_void),
        parameter: *mut c_void,
    ) -> Fiber;
    fn SwitchToFiber(fiber: Fiber);
    fn DeleteFiber(fiber: Fiber);
}

impl Link {
    pub(crate) const fn new() -> Link {
        Link {
            inside: Cell::new(ptr::null_mut()),
            outside: Cell::new(ptr::null_mut()),
            runs_inside: Cell::new(false),
            ended: Cell::new(false),
            entry: Cell::new(None),
            value: Cell::new(false),
            hook: Cell::new(None),
        }
    }

    /// Makes the first switch call `entry(link, value)`.
    ///
    /// # Safety
    /// The link must not move until the coroutine has ended.
    pub(crate) unsafe fn prepare(&self, _: *mut u8, entry: Entry) {
        self.entry.set(Some(entry));
        self.runs_inside.set(false);
        self.ended.set(false);
    }
}

/// The first function of a fiber.
///
/// # Safety
/// `link` must be that of a coroutine that is entered for the first time.
unsafe extern "system" fn start(link: *mut c_void) {
    let link = link.cast_const().cast::<Link>();
    // SAFETY: the fiber was made with the link, which outlives the coroutine.
    unsafe {
        if let Some(entry) = (*link).entry.take() {
            entry(link, (*link).value.get());
        }
    }
}

/// Whether this thread can switch fibers. Converts it into a fiber if necessary.
pub(crate) fn usable() -> bool {
    // SAFETY: the thread is not a fiber when it is turned into one.
    unsafe { IsThreadAFiber() != 0 || !ConvertThreadToFiber(ptr::null_mut()).is_null() }
}

/// The running fiber, from the thread information block.
fn this() -> Fiber {
    let fiber: Fiber;
    // SAFETY: reads the thread's information block; the caller has seen to it that the thread is a
    // fiber (`usable`).
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, gs:[0x20]", out(reg) fiber, options(nostack));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("ldr {}, [x18, #0x20]", out(reg) fiber, options(nostack));
    }
    fiber
}

/// Continues on the other side, where the switch returns `value`. Returns when something switches
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
    unsafe {
        (*link).ended.set(true);
        exchange(link, value, None);
    }
    unreachable!("a finished coroutine was entered")
}

/// As [`switch_then`], for the last time.
///
/// # Safety
/// As for [`switch_then`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good_then(link: *const Link, value: bool, hook: Hook) -> ! {
    // SAFETY: the caller promises that the other side is alive, has started, that its state is in
    // this link, and that nothing switches back.
    unsafe {
        (*link).ended.set(true);
        exchange(link, value, Some(hook));
    }
    unreachable!("a finished coroutine was entered")
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

/// Switches, and after the return calls the hook of the other side.
///
/// # Safety
/// As for [`switch`].
unsafe fn exchange(link: *const Link, value: bool, hook: Option<Hook>) -> bool {
    // SAFETY: the link lives as long as the coroutine, and until the hook is called. The fiber
    // switched to exists and does not run; one that has ended is deleted by another.
    unsafe {
        let link = &*link;
        link.value.set(value);
        link.hook.set(hook);
        let runs_inside = link.runs_inside.replace(!link.runs_inside.get());
        if runs_inside {
            SwitchToFiber(link.outside.get());
        } else {
            // Another thread may have created the coroutine.
            assert!(usable(), "the thread cannot be turned into a fiber");
            link.outside.set(this());
            if link.inside.get().is_null() {
                let fiber = CreateFiber(0, start, ptr::from_ref(link).cast_mut().cast());
                assert!(!fiber.is_null(), "no fiber for a coroutine");
                link.inside.set(fiber);
            }
            SwitchToFiber(link.inside.get());
            if link.ended.get() {
                DeleteFiber(link.inside.replace(ptr::null_mut()));
            }
        }
        let value = link.value.get();
        if let Some(hook) = link.hook.take() {
            hook(link);
        }
        value
    }
}
