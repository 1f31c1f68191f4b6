//! Why there is no stack.

/// Why there is no stack for another coroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// The kernel has no memory, or no mapping left. With the number of its error.
    #[error("no memory for a coroutine's stack: {}", std::io::Error::from_raw_os_error(*.0))]
    Memory(i32),
    /// The thread has a shadow stack, which would take a switch for an attack.
    #[error(
        "stacks cannot be switched while shadow stacks are on: run with \
         GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"
    )]
    ShadowStack,
    /// Less than [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE) bytes, or more than the address space has.
    #[error("{0} bytes are not a size for a coroutine's stack")]
    Size(usize),
    /// The size cannot be changed when there are stacks already.
    #[error("the stack size has to be set before the first coroutine is made")]
    TooLate,
}
