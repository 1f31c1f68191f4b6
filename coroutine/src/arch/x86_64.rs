//! x86_64, System V ABI.
//!
//! A suspended stack, from its saved stack pointer upwards:
//!
//! ```text
//!   sp ─▶ r15 r14 r13 r12 rbx rbp   the registers that a function must preserve
//!         resume address            where the switch goes on
//! ```
//!
//! MXCSR and the x87 control word are the thread's: a coroutine that changes them has to put them
//! back before it yields. Saving them would more than double the cost of a switch.

use std::arch::naked_asm;

/// Saves the state of this stack, its stack pointer in `*save`, and goes on on the stack whose
/// stack pointer is `to`. Returns when something switches back.
///
/// # Safety
/// `to` must come from [`initialise`] or from an earlier switch that has saved it, and be used
/// once. The memory of its stack must be alive.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn switch(save: *mut *mut u8, to: *mut u8) {
    // The end is a jump, not a return: the processor predicts returns by the calls that it has
    // seen, and these belong to the other stack.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
    )
}

/// The first frame of a stack: calls the function in r13 with the argument in r12.
#[unsafe(naked)]
unsafe extern "sysv64" fn first_frame() {
    naked_asm!(
        // Nobody called this frame: a walk over the stack ends here.
        ".cfi_startproc",
        ".cfi_undefined rip",
        "xor ebp, ebp",
        "mov rdi, r12",
        "call r13",
        "ud2",
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
    let frame: [usize; 7] = [
        0,                                 // r15
        0,                                 // r14
        entry as *const () as usize,       // r13
        argument as usize,                 // r12
        0,                                 // rbx
        0,                                 // rbp
        first_frame as *const () as usize, // where the switch goes on
    ];
    // With these seven words off the stack is at `top`, aligned as a call wants it.
    // SAFETY: the caller grants the memory below `top`, whose alignment is more than a word's.
    unsafe {
        let sp = top.sub(size_of_val(&frame));
        sp.cast::<[usize; 7]>().write(frame);
        sp
    }
}
