//! What tools that watch memory are told about stacks.

/// Tells valgrind that the memory from `low` to `high` is a stack, so that it does not take a
/// switch for a huge frame. A few instructions without effect when valgrind is not there.
#[cfg(all(own_stacks, feature = "valgrind", target_arch = "x86_64"))]
pub(crate) fn register_stack(low: *mut u8, high: *mut u8) {
    const STACK_REGISTER: usize = 0x1501;
    let request = [STACK_REGISTER, low as usize, high as usize - 1, 0, 0, 0];
    // SAFETY: the rotations add up to nothing. Valgrind knows them as a request, whose arguments
    // it reads, and puts the answer into rdx.
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
