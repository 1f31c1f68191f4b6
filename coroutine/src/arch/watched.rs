//! A back-end that announces each switch to AddressSanitizer or ThreadSanitizer, and uses another
//! back-end to switch.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use super::backend;
use crate::stack;

pub(crate) use super::backend::usable;

/// A coroutine's first function. `cancelled` if it only has to drop its closure.
pub(crate) type Entry = unsafe extern "C-unwind" fn(link: *const Link, cancelled: bool) -> !;

/// A function called on the stack that was switched to, before that continues. It may unwind into
/// that stack.
pub(crate) type Hook = unsafe extern "C-unwind" fn(link: *const Link);

/// The link of the back-end, and the sanitizer's state of both sides. At offset 0 of its container.
#[repr(C)]
pub(crate) struct Link {
    link: backend::Link,
    entry: Cell<Option<Entry>>,
    runs_inside: Cell<bool>,
    ended: Cell<bool>,
    hook: Cell<Option<Hook>>,
    inside: Side,
    outside: Side,
}

/// The sanitizer's state of a stack.
struct Side {
    low: Cell<*const c_void>,
    size: Cell<usize>,
    /// AddressSanitizer's fake stack, or ThreadSanitizer's fiber.
    handle: Cell<*mut c_void>,
}

impl Side {
    const fn new() -> Side {
        Side {
            low: Cell::new(ptr::null()),
            size: Cell::new(0),
            handle: Cell::new(ptr::null_mut()),
        }
    }
}

#[cfg(feature = "asan")]
unsafe extern "C" {
    fn __sanitizer_start_switch_fiber(save: *mut *mut c_void, low: *const c_void, size: usize);
    fn __sanitizer_finish_switch_fiber(
        saved: *mut c_void,
        low: *mut *const c_void,
        size: *mut usize,
    );
}

#[cfg(feature = "tsan")]
unsafe extern "C" {
    fn __tsan_get_current_fiber() -> *mut c_void;
    fn __tsan_create_fiber(flags: u32) -> *mut c_void;
    fn __tsan_destroy_fiber(fiber: *mut c_void);
    fn __tsan_switch_to_fiber(fiber: *mut c_void, flags: u32);
}

impl Link {
    pub(crate) const fn new() -> Link {
        Link {
            link: backend::Link::new(),
            entry: Cell::new(None),
            runs_inside: Cell::new(false),
            ended: Cell::new(false),
            hook: Cell::new(None),
            inside: Side::new(),
            outside: Side::new(),
        }
    }

    /// Prepares the memory below `top` so that the first switch calls `entry(link, value)`.
    ///
    /// # Safety
    /// `top` must be aligned to 16 bytes, and the 4 KiB below it be writable and unused. The link
    /// must not move until the coroutine has ended.
    pub(crate) unsafe fn prepare(&self, top: *mut u8, entry: Entry) {
        self.entry.set(Some(entry));
        self.runs_inside.set(false);
        self.ended.set(false);
        let (low, size) = stack::bounds(top as usize - 1);
        self.inside.low.set(low.cast());
        self.inside.size.set(size);
        self.inside.handle.set(ptr::null_mut());
        #[cfg(feature = "tsan")]
        // SAFETY: the fiber is destroyed at the coroutine's end.
        self.inside.handle.set(unsafe { __tsan_create_fiber(0) });
        // SAFETY: the caller promises that the memory below `top` and the link can be used so.
        unsafe { self.link.prepare(top, start) };
    }

    fn sides(&self) -> (&Side, &Side) {
        if self.runs_inside.get() {
            (&self.inside, &self.outside)
        } else {
            (&self.outside, &self.inside)
        }
    }

    /// Announces that this side is left, for the last time if `ends`. Inlined, as ThreadSanitizer
    /// counts calls and returns on the running side.
    ///
    /// # Safety
    /// The caller must next switch to the other side.
    #[inline(always)]
    unsafe fn leave(&self, ends: bool) {
        let (this, other) = self.sides();
        let runs_inside = self.runs_inside.replace(!self.runs_inside.get());
        // SAFETY: the handle of a side is saved when it is left, and used when it is switched to.
        // The caller next switches to the other side.
        unsafe {
            #[cfg(feature = "asan")]
            {
                let _ = runs_inside;
                let save = if ends {
                    ptr::null_mut()
                } else {
                    this.handle.as_ptr()
                };
                __sanitizer_start_switch_fiber(save, other.low.get(), other.size.get());
            }
            #[cfg(feature = "tsan")]
            {
                let _ = ends;
                if !runs_inside {
                    this.handle.set(__tsan_get_current_fiber());
                }
                __tsan_switch_to_fiber(other.handle.get(), 0);
            }
        }
    }

    /// Announces that this side was switched to.
    ///
    /// # Safety
    /// The switch must have just happened, after [`leave`](Link::leave) on the other side.
    unsafe fn arrive(&self) {
        #[cfg(feature = "asan")]
        {
            let (this, other) = self.sides();
            // SAFETY: the handle was saved when this side was left, or is null the first time. The
            // sanitizer writes the bounds of the other side.
            unsafe {
                __sanitizer_finish_switch_fiber(
                    this.handle.get(),
                    other.low.as_ptr(),
                    other.size.as_ptr(),
                );
            }
        }
    }
}

/// The coroutine's first function for the back-end.
///
/// # Safety
/// The link must be the start of a prepared [`Link`] that was just switched to.
unsafe extern "C-unwind" fn start(link: *const backend::Link, cancelled: bool) -> ! {
    // SAFETY: the back-end's link is the beginning of this one, which `prepare` has prepared.
    unsafe {
        let link = link.cast::<Link>();
        (*link).arrive();
        match (*link).entry.take() {
            Some(entry) => entry(link, cancelled),
            None => unreachable!("a coroutine was entered that was not prepared"),
        }
    }
}

/// Saves the state of this side in the link and continues on the other side, where the switch
/// returns `value`. Returns when something switches back.
///
/// # Safety
/// The other stack must be alive, and its state saved in this link.
#[inline(never)]
pub(crate) unsafe fn switch(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller promises that the other side is alive and that its state is in this link.
    unsafe { exchange(link, value, None) }
}

/// As [`switch`], but first calls `hook` on the other stack, after this stack has been left.
///
/// # Safety
/// As for [`switch`], and the other stack must have started.
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

/// As [`switch`]: this back-end does not inline it.
///
/// # Safety
/// As for [`switch`].
#[inline(always)]
pub(crate) unsafe fn switch_inline(link: *const Link, value: bool) -> bool {
    // SAFETY: the caller promises that the other side is alive and that its state is in this link.
    unsafe { switch(link, value) }
}

/// Switches for the last time, and leaves a hook for the other side.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
unsafe fn end(link: *const Link, value: bool, hook: Option<Hook>) -> ! {
    // SAFETY: the caller promises that the other side is alive, that its state is in this link, and
    // that nothing switches back. The link is alive until then.
    unsafe {
        (*link).ended.set(true);
        (*link).hook.set(hook);
        (*link).leave(true);
        backend::switch_for_good(link.cast(), value)
    }
}

/// Switches, and after the return calls the hook of the other side.
///
/// # Safety
/// As for [`switch`].
unsafe fn exchange(link: *const Link, value: bool, hook: Option<Hook>) -> bool {
    // SAFETY: the caller promises that the other side is alive and that its state is in this link,
    // which lives as long as the coroutine: at least until the hook is called.
    unsafe {
        (*link).hook.set(hook);
        (*link).leave(false);
        let value = backend::switch(link.cast(), value);
        (*link).arrive();
        #[cfg(feature = "tsan")]
        if (*link).ended.get() {
            __tsan_destroy_fiber((*link).inside.handle.get());
        }
        // Not a hook of the back-end, which would run before `arrive`.
        if let Some(hook) = (*link).hook.take() {
            hook(link);
        }
        value
    }
}
