//! riscv64, ABI lp64d.
//!
//! A suspended stack, from its saved stack pointer upwards:
//!
//! ```text
//!   sp ─▶ ra                 resume address
//!         s0 ... s11         the registers that a function must preserve
//!         fs0 ... fs11
//!         (padding)          the stack pointer is a multiple of 16
//! ```
//!
//! The stack of a coroutine that has not started, up to its end, is the same with `start` as resume
//! address, the coroutine's first function in s1 and, above, two words of which the first points to
//! the link. `start` jumps to the first function with ra inside `base`, as if `base` had called it.
//!
//! While a coroutine runs, its link holds the saved stack pointer of the code that entered it. The
//! unwind information of `base` leads a stack walk there.
//!
//! A switch ends in a jump by t1, which the processor does not treat as a return, unlike one by ra:
//! it predicts returns from the calls that it has seen, which belong to the other stack. A switch
//! does not save fcsr: a coroutine that changes the rounding mode must restore it before it yields.

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
const FRAME: usize = 26;

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
            sp.write(start as *const () as usize);
            sp.add(1).write(0); // s0: frame-pointer walks end here
            sp.add(2).write(entry as usize); // s1
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
        "addi sp, sp, -208
         sd ra, 0(sp)
         sd s0, 8(sp)
         sd s1, 16(sp)
         sd s2, 24(sp)
         sd s3, 32(sp)
         sd s4, 40(sp)
         sd s5, 48(sp)
         sd s6, 56(sp)
         sd s7, 64(sp)
         sd s8, 72(sp)
         sd s9, 80(sp)
         sd s10, 88(sp)
         sd s11, 96(sp)
         fsd fs0, 104(sp)
         fsd fs1, 112(sp)
         fsd fs2, 120(sp)
         fsd fs3, 128(sp)
         fsd fs4, 136(sp)
         fsd fs5, 144(sp)
         fsd fs6, 152(sp)
         fsd fs7, 160(sp)
         fsd fs8, 168(sp)
         fsd fs9, 176(sp)
         fsd fs10, 184(sp)
         fsd fs11, 192(sp)"
    };
}

macro_rules! restore {
    () => {
        "ld ra, 0(sp)
         ld s0, 8(sp)
         ld s1, 16(sp)
         ld s2, 24(sp)
         ld s3, 32(sp)
         ld s4, 40(sp)
         ld s5, 48(sp)
         ld s6, 56(sp)
         ld s7, 64(sp)
         ld s8, 72(sp)
         ld s9, 80(sp)
         ld s10, 88(sp)
         ld s11, 96(sp)
         fld fs0, 104(sp)
         fld fs1, 112(sp)
         fld fs2, 120(sp)
         fld fs3, 128(sp)
         fld fs4, 136(sp)
         fld fs5, 144(sp)
         fld fs6, 152(sp)
         fld fs7, 160(sp)
         fld fs8, 168(sp)
         fld fs9, 176(sp)
         fld fs10, 184(sp)
         fld fs11, 192(sp)
         addi sp, sp, 208"
    };
}

/// Unwind information for the words above at the bottom of a frame, with the CFA at its top.
macro_rules! saved_registers {
    () => {
        ".cfi_offset ra, -208
         .cfi_offset s0, -200
         .cfi_offset s1, -192
         .cfi_offset s2, -184
         .cfi_offset s3, -176
         .cfi_offset s4, -168
         .cfi_offset s5, -160
         .cfi_offset s6, -152
         .cfi_offset s7, -144
         .cfi_offset s8, -136
         .cfi_offset s9, -128
         .cfi_offset s10, -120
         .cfi_offset s11, -112
         .cfi_offset fs0, -104
         .cfi_offset fs1, -96
         .cfi_offset fs2, -88
         .cfi_offset fs3, -80
         .cfi_offset fs4, -72
         .cfi_offset fs5, -64
         .cfi_offset fs6, -56
         .cfi_offset fs7, -48
         .cfi_offset fs8, -40
         .cfi_offset fs9, -32
         .cfi_offset fs10, -24
         .cfi_offset fs11, -16"
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
        ".cfi_def_cfa_offset 208",
        saved_registers!(),
        "ld t0, 0(a0)",
        "sd sp, 0(a0)",
        "mv sp, t0",
        // `start` needs the link, in t2, and the value, in a1.
        "mv t2, a0",
        restore!(),
        "mv a0, a1",
        "mv t1, ra",
        "jr t1",
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
        ".cfi_def_cfa_offset 208",
        saved_registers!(),
        "ld t0, 0(a0)",
        "sd sp, 0(a0)",
        // The other stack has the same layout, so the unwind information above stays valid.
        "mv sp, t0",
        "addi sp, sp, -16",
        ".cfi_adjust_cfa_offset 16",
        "sd a1, 0(sp)",
        "jalr a2",
        "ld a1, 0(sp)",
        "addi sp, sp, 16",
        ".cfi_adjust_cfa_offset -16",
        restore!(),
        "mv a0, a1",
        "mv t1, ra",
        "jr t1",
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
        ".cfi_undefined ra",
        "ld t0, 0(a0)",
        "mv sp, t0",
        restore!(),
        "mv a0, a1",
        "mv t1, ra",
        "jr t1",
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
    /// Calls a coroutine's first function, which is in s1.
    "coroutine_start_0"
    unsafe extern "C" fn start() {
        "mv a0, t2",
        "lla ra, coroutine_base_0",
        "addi ra, ra, 4",
        "jr s1",
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
        // the other side: CFA = **sp + 208. DW_CFA_def_cfa_expression, 7 bytes: DW_OP_breg2 0,
        // DW_OP_deref, DW_OP_deref, DW_OP_plus_uconst 208.
        ".cfi_escape 0x0f, 7, 0x72, 0, 0x06, 0x06, 0x23, 0xd0, 0x01",
        saved_registers!(),
        // Four bytes, also if the assembler may compress instructions.
        ".option push",
        ".option norvc",
        "nop",
        ".option pop",
        "unimp",
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
                    concat!("la.tls.ie {0}, ", $symbol),
                    "add {0}, {0}, tp",
                    out(reg) place,
                    options(nostack),
                );
            }
            place
        }
    };
}
pub(crate) use thread_slot;
