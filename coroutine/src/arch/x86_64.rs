//! x86_64, System V ABI.
//!
//! A suspended stack, from its saved stack pointer upwards:
//!
//! ```text
//!   sp ─▶ r15 r14 r13 r12 rbx rbp   the registers that a function must preserve
//!         resume address            where the stack continues
//! ```
//!
//! The stack of a coroutine that has not started, up to its end:
//!
//! ```text
//!   sp ─▶ 5 unused words, rbp = 0
//!         the coroutine's first function
//!         return address inside `base`, as if `base` had called it
//!         pointer to the link
//! ```
//!
//! While a coroutine runs, its link holds the saved stack pointer of the code that entered it. The
//! unwind information of `base` leads a stack walk there.
//!
//! A switch ends in a jump and not in a return: the processor predicts returns from the calls that
//! it has seen, which belong to the other stack.
//!
//! A switch does not save MXCSR and the x87 control word, which would more than double its cost: a
//! coroutine that changes them must restore them before it yields. With shadow stacks enabled
//! switching is refused (`usable`).

use std::arch::asm;
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
        // words are at its end. The first function starts with the stack pointer at the return
        // address, 8 bytes below an aligned address, as after a call.
        unsafe {
            let sp = top.cast::<usize>().sub(10);
            sp.add(5).write(0); // rbp: frame-pointer walks end here
            sp.add(6).write(entry as usize);
            sp.add(7).write(base as *const () as usize + 1);
            sp.add(8).write(ptr::from_ref(self) as usize);
            self.0.set(sp);
        }
    }
}

/// Whether this thread can switch stacks.
pub(crate) fn usable() -> bool {
    let shadow_stack: usize;
    // SAFETY: the instruction reads the shadow stack pointer. Without a shadow stack it does
    // nothing, and the register stays zero.
    unsafe {
        asm!("xor {0:e}, {0:e}", "rdsspq {0}", out(reg) shadow_stack, options(nomem, nostack));
    }
    shadow_stack == 0
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
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        ".cfi_def_cfa_offset 56",
        "mov rax, [rdi]",
        "mov [rdi], rsp",
        "mov rsp, rax",
        "mov eax, esi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        ".cfi_def_cfa_offset 0",
        ".cfi_register rip, rcx",
        "jmp rcx",
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
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        ".cfi_def_cfa_offset 56",
        ".cfi_offset rbp, -16",
        ".cfi_offset rbx, -24",
        ".cfi_offset r12, -32",
        ".cfi_offset r13, -40",
        ".cfi_offset r14, -48",
        ".cfi_offset r15, -56",
        "mov rax, [rdi]",
        "mov [rdi], rsp",
        // The other stack has the same layout, so the unwind information above stays valid.
        "mov rsp, rax",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "call rdx",
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        ".cfi_def_cfa_offset 0",
        ".cfi_register rip, rcx",
        "jmp rcx",
        ".cfi_endproc",
    }
}

/// As [`switch`], for the last time: nothing is saved.
///
/// # Safety
/// As for [`switch`], and nothing ever switches back.
#[inline(always)]
pub(crate) unsafe fn switch_for_good(link: *const Link, value: bool) -> ! {
    // SAFETY: the caller promises that the other side is alive, that its state is in this link, and
    // that nothing switches back.
    unsafe {
        asm!(
            "mov rsp, [rdi]",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "pop rcx",
            "jmp rcx",
            in("rdi") link,
            in("eax") u32::from(value),
            options(noreturn),
        );
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

/// As [`switch`], inlined into the caller. The other side must not unwind into it.
///
/// # Safety
/// As for [`switch`].
#[inline(always)]
pub(crate) unsafe fn switch_inline(link: *const Link, value: bool) -> bool {
    let result: u32;
    // SAFETY: the caller promises that the other side is alive and that its state is in this link.
    // All registers that the other side may change are declared as clobbered, or saved: rbx and
    // rbp, which cannot be declared. The stack is balanced.
    unsafe {
        asm!(
            "lea rcx, [rip + 2f]",
            "push rcx",
            "push rbp",
            "push rbx",
            "lea rsp, [rsp - 32]",
            "mov rax, [rdi]",
            "mov [rdi], rsp",
            "mov rsp, rax",
            "mov eax, esi",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "pop rcx",
            "jmp rcx",
            "2:",
            inout("rdi") link => _,
            inout("esi") u32::from(value) => _,
            out("eax") result,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
    result as u8 != 0
}

/// As [`Link::prepare`] and [`switch_inline`], in fewer instructions.
///
/// # Safety
/// As for [`Link::prepare`].
#[inline(always)]
pub(crate) unsafe fn start_inline(link: &Link, top: *mut u8, entry: Entry) -> bool {
    let result: u32;
    // SAFETY: the caller promises that the memory below `top` is writable and unused. The three
    // words pushed there are those that `prepare` writes. All registers that the other side may
    // change are declared as clobbered, or saved: rbx and rbp, which cannot be declared. The stack
    // is balanced.
    unsafe {
        asm!(
            "lea rcx, [rip + 2f]",
            "push rcx",
            "push rbp",
            "push rbx",
            "lea rsp, [rsp - 32]",
            "mov [rdi], rsp",
            "mov rsp, rsi",
            "lea rax, [rip + {base} + 1]",
            "push rdi",
            "push rdi",
            "push rax",
            "xor ebp, ebp",
            "xor esi, esi",
            "jmp rdx",
            "2:",
            base = sym base,
            inout("rdi") link => _,
            inout("rsi") top => _,
            inout("rdx") entry => _,
            out("eax") result,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
    result as u8 != 0
}

function! {
    /// The return address of a coroutine's first function. Never executed: its unwind information
    /// says that the next frame is that of the code that entered the coroutine.
    "coroutine_base_0"
    unsafe extern "C" fn base() {
        ".cfi_startproc",
        // Debuggers permit a change of stacks only at a signal frame.
        ".cfi_signal_frame",
        // The stack pointer points to the pointer to the link, which points to the saved frame of
        // the other side: CFA = **rsp + 56. DW_CFA_def_cfa_expression, 6 bytes: DW_OP_breg7 0,
        // DW_OP_deref, DW_OP_deref, DW_OP_plus_uconst 56.
        ".cfi_escape 0x0f, 6, 0x77, 0, 0x06, 0x06, 0x23, 56",
        ".cfi_offset rip, -8",
        ".cfi_offset rbp, -16",
        ".cfi_offset rbx, -24",
        ".cfi_offset r12, -32",
        ".cfi_offset r13, -40",
        ".cfi_offset r14, -48",
        ".cfi_offset r15, -56",
        "nop",
        "ud2",
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
            // SAFETY: the two instructions read the thread pointer and the slot's offset from it.
            unsafe {
                std::arch::asm!(
                    "mov {0}, fs:[0]",
                    concat!("add {0}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                    out(reg) place,
                    options(nostack),
                );
            }
            place
        }
    };
}
pub(crate) use thread_slot;
