//! Memory for stacks.
//!
//! A stack is committed by the kernel page by page as it is used. Below it lies a guard page:
//! running over the end is a fault, not a silent overwriting of something else. Stacks that are
//! free wait in a pool of their thread, the one used last on top, as its pages are warm.

use std::cell::RefCell;
use std::ptr::{self, NonNull};

/// Bytes of a stack, of which only those in use are committed.
const STACK_SIZE: usize = 64 * 1024;
/// Bytes of the guard below it. Larger than a page, so that a large frame cannot step over it.
const GUARD_SIZE: usize = 64 * 1024;
/// How many free stacks a thread keeps.
const POOL_SIZE: usize = 256;

/// There is no memory, or no mapping left, for another stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a coroutine's stack (errno {0})")]
pub struct StackError(i32);

/// A mapping of [`GUARD_SIZE`] and [`STACK_SIZE`] bytes.
pub(crate) struct Stack {
    base: NonNull<u8>,
}

thread_local! {
    static POOL: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
}

impl Stack {
    /// A stack from the thread's pool, or a new one.
    pub(crate) fn take() -> Result<Stack, StackError> {
        match POOL.with_borrow_mut(Vec::pop) {
            Some(stack) => Ok(stack),
            None => Stack::map(),
        }
    }

    /// Puts the stack into the thread's pool, if there is room.
    pub(crate) fn give_back(self) {
        // At the end of the thread the pool may be gone already.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOL_SIZE {
                pool.push(self);
            }
        });
    }

    fn map() -> Result<Stack, StackError> {
        let error = || {
            StackError(
                std::io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::ENOMEM),
            )
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                GUARD_SIZE + STACK_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(error());
        }
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(StackError(0));
        };
        let stack = Stack { base };
        // SAFETY: the range is the upper part of the mapping just made.
        let result = unsafe {
            let start = stack.base.as_ptr().add(GUARD_SIZE);
            libc::mprotect(start.cast(), STACK_SIZE, libc::PROT_READ | libc::PROT_WRITE)
        };
        if result == 0 { Ok(stack) } else { Err(error()) }
    }

    /// The first address above the stack, aligned to a page.
    pub(crate) fn top(&self) -> *mut u8 {
        // SAFETY: one past the end of the mapping.
        unsafe { self.base.as_ptr().add(GUARD_SIZE + STACK_SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and nothing runs on it any more.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), GUARD_SIZE + STACK_SIZE) };
        debug_assert_eq!(result, 0);
    }
}
