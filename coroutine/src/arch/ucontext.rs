//! swapcontext(3): portable, and a hundred times slower than assembly, as each switch makes a
//! system call to exchange the signal mask.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::ptr;

/// Both sides of a coroutine, and which of them runs. At offset 0 of its container.
#[repr(C)]
pub(crate) struct Link {
    inside: UnsafeCell<MaybeUninit<libc::ucontext_t>>,
    outside: UnsafeCell<MaybeUninit<libc::ucontext_t>>,
    runs_inside: Cell<bool>,
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

impl Link {
    pub(crate) const fn new() -> Link {
        Link {
            inside: UnsafeCell::new(MaybeUninit::uninit()),
            outside: UnsafeCell::new(MaybeUninit::uninit()),
            runs_inside: Cell::new(false),
            entry: Cell::new(None),
            value: Cell::new(false),
            hook: Cell::new(None),
        }
    }

    /// Prepares the memory below `top` so that the first switch calls `entry(link, value)`.
    ///
    /// # Safety
    /// `top` must be aligned to 16 bytes, and the 4 KiB below it be writable and unused. The link
    /// must not move until the coroutine has ended.
    pub(crate) unsafe fn prepare(&self, top: *mut u8, entry: Entry) {
        const ENOUGH: usize = 4096;
        self.runs_inside.set(false);
        self.entry.set(Some(entry));
        let link = ptr::from_ref(self) as usize as u64;
        // SAFETY: the context is written by getcontext and stays where it is. Of the stack
        // makecontext only uses the upper end, and writes its arguments there.
        unsafe {
            let context = self.inside.get().cast::<libc::ucontext_t>();
            libc::getcontext(context);
            (*context).uc_stack.ss_sp = top.wrapping_sub(ENOUGH).cast();
            (*context).uc_stack.ss_size = ENOUGH;
            (*context).uc_link = ptr::null_mut();
            let start: extern "C" fn() = std::mem::transmute(start as *const ());
            let (upper, lower) = ((link >> 32) as u32, link as u32);
            libc::makecontext(context, start, 2, upper, lower);
        }
    }
}

/// The first function of a context, whose arguments are 32-bit integers.
///
/// # Safety
/// The arguments must be the two halves of the address of a link whose coroutine is entered for the
/// first time.
unsafe extern "C" fn start(upper: u32, lower: u32) {
    let link = ((u64::from(upper) << 32) | u64::from(lower)) as usize as *const Link;
    // SAFETY: `prepare` has passed the link, which outlives the coroutine, and set the entry.
    unsafe {
        if let Some(entry) = (*link).entry.take() {
            entry(link, (*link).value.get());
        }
    }
}

/// Whether this thread can switch stacks.
pub(crate) fn usable() -> bool {
    true
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

/// As [`switch`], for the last time: nothing is saved.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good(link: *const Link, value: bool) -> ! {
    // SAFETY: the caller promises that the other side is alive, that its state is in this link, and
    // that nothing switches back.
    unsafe { exchange(link, value, None) };
    unreachable!("a finished coroutine was entered")
}

/// As [`switch_then`], for the last time.
///
/// # Safety
/// As for [`switch_then`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good_then(link: *const Link, value: bool, hook: Hook) -> ! {
    // SAFETY: the caller promises that the other side is alive, has started, that its state is in
    // this link, and that nothing switches back.
    unsafe { exchange(link, value, Some(hook)) };
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
    // SAFETY: the link lives as long as the coroutine. Of the two contexts one is that of the side
    // that runs, which is written, and the other was written when that side was left.
    unsafe {
        let link = &*link;
        link.value.set(value);
        link.hook.set(hook);
        let runs_inside = link.runs_inside.replace(!link.runs_inside.get());
        let (inside, outside) = (link.inside.get().cast(), link.outside.get().cast());
        if runs_inside {
            libc::swapcontext(inside, outside);
        } else {
            libc::swapcontext(outside, inside);
        }
        // Read before the hook, which may free the link.
        let value = link.value.get();
        if let Some(hook) = link.hook.take() {
            hook(link);
        }
        value
    }
}
