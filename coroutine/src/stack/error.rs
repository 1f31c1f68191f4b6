//! The error of a missing stack.

/// The reason why there is no stack for another coroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// The kernel has no memory or no mappings left. With its errno.
    #[error("no memory for a coroutine's stack: {}", std::io::Error::from_raw_os_error(*.0))]
    Memory(i32),
    /// The thread has a shadow stack, which does not permit switching stacks.
    #[error(
        "stacks cannot be switched while shadow stacks are enabled: run with \
         GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"
    )]
    ShadowStack,
    /// Less than [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE) bytes, or more than the address space
    /// has.
    #[error("{0} bytes is not a valid size for a coroutine's stack")]
    Size(usize),
    /// The size cannot be changed after the first stack is mapped.
    #[error("the stack size must be set before the first coroutine is created")]
    TooLate,
}
