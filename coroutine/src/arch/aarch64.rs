//! aarch64, AAPCS64.
//!
//! A suspended stack, from its saved stack pointer upwards:
//!
//! ```text
//!   sp ─▶ x29 x30            frame pointer, resume address
//!         x19 ... x28        the registers that a function must preserve
//!         d8 ... d15
//! ```
//!
//! The stack of a coroutine that has not started, up to its end, is the same with `start` as resume
//! address, the coroutine's first function in x19 and, above, two words of which the first points
//! to the link. `start` jumps to the first function with x30 inside `base`, as if `base` had called
//! it.
//!
//! While a coroutine runs, its link holds the saved stack pointer of the code that entered it. The
//! unwind information of `base` leads a stack walk there.
//!
//! A switch ends in a jump and not in a return: the processor predicts returns from the calls that
//! it has seen, which belong to the other stack. A switch does not save FPCR: a coroutine that
//! changes it must restore it before it yields. With branch target identification, which the
//! distributed standard library does not use, the jump would have to be a return.

use std::cell::Cell;
use std::ptr;

/// The saved stack pointer of the suspended side of a coroutine. At offset 0 of its container.
#[repr(C)]
pub(crate) struct Link(Cell<*mut usize>);

/// A coroutine's first function. `cancelled` if it only has to drop its closure.
pub(crate) type Entry = unsafe extern "C-unwind" fn(link: *const Link, cancelled: bool) -> !;

/// A function called on the stack that was switched to, before that continues. It may unwind into
/// that stack.
pub(crate) type Hook = unsafe extern "C-unwind" fn(link: *const Link);

/// Words that a switch saves.
const FRAME: usize = 20;

impl Link {
    pub(crate) const fn new() -> Link {
        Link(Cell::new(ptr::null_mut()))
    }

    /// Prepares the memory below `top` so that the first switch calls `entry(link, value)`.
    ///
    /// # Safety
    /// `top` must be aligned to 16 bytes, and the 4 KiB below it be writable and unused. The link
    /// must not move until the coroutine has ended.
    #[inline(always)]
    pub(crate) unsafe fn prepare(&self, top: *mut u8, entry: Entry) {
        // SAFETY: the caller promises that the memory below `top` is writable and unused, and these
        // words are at its end. Their number is even, which keeps the alignment of 16 bytes.
        unsafe {
            let sp = top.cast::<usize>().sub(FRAME + 2);
            sp.write(0); // x29: frame-pointer walks end here
            sp.add(1).write(start as *const () as usize);
            sp.add(2).write(entry as usize); // x19
            sp.add(FRAME).write(ptr::from_ref(self) as usize);
            self.0.set(sp);
        }
    }
}

/// Whether this thread can switch stacks.
pub(crate) fn usable() -> bool {
    true
}

macro_rules! save {
    () => {
        "stp x29, x30, [sp, #-160]!
         stp x19, x20, [sp, #16]
         stp x21, x22, [sp, #32]
         stp x23, x24, [sp, #48]
         stp x25, x26, [sp, #64]
         stp x27, x28, [sp, #80]
         stp d8, d9, [sp, #96]
         stp d10, d11, [sp, #112]
         stp d12, d13, [sp, #128]
         stp d14, d15, [sp, #144]"
    };
}

macro_rules! restore {
    () => {
        "ldp x19, x20, [sp, #16]
         ldp x21, x22, [sp, #32]
         ldp x23, x24, [sp, #48]
         ldp x25, x26, [sp, #64]
         ldp x27, x28, [sp, #80]
         ldp d8, d9, [sp, #96]
         ldp d10, d11, [sp, #112]
         ldp d12, d13, [sp, #128]
         ldp d14, d15, [sp, #144]
         ldp x29, x30, [sp], #160"
    };
}

/// Unwind information for the words above at the bottom of a frame, with the CFA at its top.
macro_rules! saved_registers {
    () => {
        ".cfi_offset x29, -160
         .cfi_offset x30, -152
         .cfi_offset x19, -144
         .cfi_offset x20, -136
         .cfi_offset x21, -128
         .cfi_offset x22, -120
         .cfi_offset x23, -112
         .cfi_offset x24, -104
         .cfi_offset x25, -96
         .cfi_offset x26, -88
         .cfi_offset x27, -80
         .cfi_offset x28, -72
         .cfi_offset d8, -64
         .cfi_offset d9, -56
         .cfi_offset d10, -48
         .cfi_offset d11, -40
         .cfi_offset d12, -32
         .cfi_offset d13, -24
         .cfi_offset d14, -16
         .cfi_offset d15, -8"
    };
}

function! {
    /// Saves the state of this stack in the link and continues on the other stack, where the switch
    /// that has saved its state returns `value`. Returns when something switches back.
    ///
    /// # Safety
    /// The other stack must be alive, and its state saved in this link.
    "coroutine_switch_0"
    pub(crate) unsafe extern "C-unwind" fn switch(link: *const Link, value: bool) -> bool {
        ".cfi_startproc",
        save!(),
        ".cfi_def_cfa_offset 160",
        saved_registers!(),
        "ldr x9, [x0]",
        "mov x10, sp",
        "str x10, [x0]",
        "mov sp, x9",
        // `start` needs the link, in x11, and the value, in x1.
        "mov x11, x0",
        restore!(),
        "mov w0, w1",
        // Branch target identification permits a jump by x16 to the start of any function.
        "mov x16, x30",
        "br x16",
        ".cfi_endproc",
    }
}

function! {
    /// As [`switch`], but first calls `hook` on the other stack, after this stack has been left.
    ///
    /// # Safety
    /// As for [`switch`], and the other stack must have started.
    "coroutine_switch_then_0"
    pub(crate) unsafe extern "C-unwind" fn switch_then(
        link: *const Link,
        value: bool,
        hook: Hook,
    ) -> bool {
        ".cfi_startproc",
        save!(),
        ".cfi_def_cfa_offset 160",
        saved_registers!(),
        "ldr x9, [x0]",
        "mov x10, sp",
        "str x10, [x0]",
        // The other stack has the same layout, so the unwind information above stays valid.
        "mov sp, x9",
        "str x1, [sp, #-16]!",
        ".cfi_adjust_cfa_offset 16",
        "blr x2",
        "ldr x1, [sp], #16",
        ".cfi_adjust_cfa_offset -16",
        restore!(),
        "mov w0, w1",
        "mov x16, x30",
        "br x16",
        ".cfi_endproc",
    }
}

function! {
    /// As [`switch`], for the last time: nothing is saved.
    ///
    /// # Safety
    /// As for [`switch`], and nothing ever switches back.
    "coroutine_switch_for_good_0"
    pub(crate) unsafe extern "C" fn switch_for_good(link: *const Link, value: bool) -> ! {
        ".cfi_startproc",
        ".cfi_undefined x30",
        "ldr x9, [x0]",
        "mov sp, x9",
        restore!(),
        "mov w0, w1",
        "mov x16, x30",
        "br x16",
        ".cfi_endproc",
    }
}

/// As [`switch_then`], for the last time.
///
/// # Safety
/// As for [`switch_then`], and nothing ever switches back.
pub(crate) unsafe fn switch_for_good_then(link: *const Link, value: bool, hook: Hook) -> ! {
    // SAFETY: the caller promises that the other side is alive, has started, that its state is in
    // this link, and that nothing switches back.
    unsafe { switch_then(link, value, hook) };
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

function! {
    /// Calls a coroutine's first function, which is in x19.
    "coroutine_start_0"
    unsafe extern "C" fn start() {
        "hint #34", // bti c
        "mov x0, x11",
        "adr x30, coroutine_base_0 + 4",
        "br x19",
    }
}

function! {
    /// The return address of a coroutine's first function. Never executed: its unwind information
    /// says that the next frame is that of the code that entered the coroutine.
    #[allow(dead_code, reason = "`start` names it by its symbol")]
    "coroutine_base_0"
    unsafe extern "C" fn base() {
        ".cfi_startproc",
        // Debuggers permit a change of stacks only at a signal frame.
        ".cfi_signal_frame",
        // The stack pointer points to the pointer to the link, which points to the saved frame of
        // the other side: CFA = **sp + 160. DW_CFA_def_cfa_expression, 7 bytes: DW_OP_breg31 0,
        // DW_OP_deref, DW_OP_deref, DW_OP_plus_uconst 160.
        ".cfi_escape 0x0f, 7, 0x8f, 0, 0x06, 0x06, 0x23, 0xa0, 0x01",
        saved_registers!(),
        "nop",
        "brk #1",
        ".cfi_endproc",
    }
}

/// The address of a thread-local variable of `$size` bytes, initially zero.
///
/// Computed by assembly at each use, as the compiler would keep the address across a switch, after
/// which the coroutine may run on another thread.
macro_rules! thread_slot {
    ($symbol:literal, $size:literal) => {
        std::arch::global_asm!(
            ".pushsection .tbss,\"awT\",@nobits",
            concat!(".globl ", $symbol),
            concat!(".hidden ", $symbol),
            concat!(".type ", $symbol, ",@object"),
            concat!(".size ", $symbol, ",", $size),
            ".p2align 4",
            concat!($symbol, ":"),
            concat!(".zero ", $size),
            ".popsection",
        );

        #[inline(always)]
        fn slot() -> *const u8 {
            let place: *const u8;
            // SAFETY: the instructions read the thread pointer and the slot's offset from it.
            unsafe {
                std::arch::asm!(
                    concat!("adrp {1}, :gottprel:", $symbol),
                    concat!("ldr {1}, [{1}, :gottprel_lo12:", $symbol, "]"),
                    "mrs {0}, tpidr_el0",
                    "add {0}, {0}, {1}",
                    out(reg) place,
                    out(reg) _,
                    options(nostack),
                );
            }
            place
        }
    };
}
pub(crate) use thread_slot;
