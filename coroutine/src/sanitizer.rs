//! Registration of stacks with valgrind.

/// Registers the memory from `low` to `high` with valgrind as a stack, so that it does not mistake
/// a switch for a huge frame. Without valgrind the instructions have no effect.
#[cfg(all(own_stacks, feature = "valgrind", target_arch = "x86_64"))]
pub(crate) fn register_stack(low: *mut u8, high: *mut u8) {
    const STACK_REGISTER: usize = 0x1501;
    let request = [STACK_REGISTER, low as usize, high as usize - 1, 0, 0, 0];
    // SAFETY: the rotations cancel each other. Valgrind recognises them as a request, reads its
    // arguments and writes the result to rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            inout("rdx") 0_usize => _,
            in("rax") request.as_ptr(),
            options(nostack),
        );
    }
}

#[cfg(all(own_stacks, not(all(feature = "valgrind", target_arch = "x86_64"))))]
pub(crate) fn register_stack(_: *mut u8, _: *mut u8) {}
