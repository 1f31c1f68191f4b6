//! aarch64, AAPCS64.
//!
//! A suspended stack, from its saved stack pointer upwards:
//!
//! ```text
//!   sp ─▶ x29 x30            frame pointer, resume address
//!         x19 ... x28        the registers that a function must preserve
//!         d8 ... d15
//! ```

use std::arch::naked_asm;

/// Saves the state of this stack, its stack pointer in `*save`, and goes on on the stack whose
/// stack pointer is `to`. Returns when something switches back.
///
/// # Safety
/// `to` must come from [`initialise`] or from an earlier switch that has saved it, and be used
/// once. The memory of its stack must be alive.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "stp x29, x30, [sp, #-160]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x19, x20, [sp, #16]",
        "ldp x21, x22, [sp, #32]",
        "ldp x23, x24, [sp, #48]",
        "ldp x25, x26, [sp, #64]",
        "ldp x27, x28, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "ldp x29, x30, [sp], #160",
        // x16 and x17 may be jumped through to any landing pad of a function's entry.
        "mov x16, x30",
        "br x16",
    )
}

/// The first frame of a stack: calls the function in x20 with the argument in x19.
#[unsafe(naked)]
unsafe extern "C" fn first_frame() {
    naked_asm!(
        "hint #34", // bti c: the place that `br x16` may reach where branches are checked
        // Nobody called this frame: a walk over the stack ends here.
        ".cfi_startproc",
        ".cfi_undefined x30",
        "mov x29, xzr",
        "mov x0, x19",
        "blr x20",
        "brk #1",
        ".cfi_endproc",
    )
}

/// Prepares the memory below `top` so that the first switch to it calls `entry(argument)`, which
/// must not return. Returns the stack pointer to switch to.
///
/// # Safety
/// `top` must be aligned to 16 bytes and the memory below it be writable.
pub(crate) unsafe fn initialise(
    top: *mut u8,
    entry: unsafe extern "C" fn(*mut u8) -> !,
    argument: *mut u8,
) -> *mut u8 {
    let mut frame = [0_usize; 20];
    frame[1] = first_frame as *const () as usize; // x30
    frame[2] = argument as usize; // x19
    frame[3] = entry as *const () as usize; // x20
    // SAFETY: the caller grants the memory below `top`; 160 bytes keep the alignment of 16.
    unsafe {
        let sp = top.sub(size_of_val(&frame));
        sp.cast::<[usize; 20]>().write(frame);
        sp
    }
}
