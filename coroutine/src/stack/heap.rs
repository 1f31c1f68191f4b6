//! Memory for the core, mailbox and closure of a coroutine, where the system provides its stack.

use std::alloc::{self, Layout};

use super::error::StackError;

/// Blocks allocated at once.
pub(crate) const STACKS: usize = 1;

/// For a core, a closure and its mailbox.
const BLOCK: Layout = match Layout::from_size_align(32 * 1024, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("the block has no layout"),
};

/// A block of memory that stands for a stack.
#[derive(Clone, Copy)]
pub(crate) struct Slab(*mut u8);

impl Slab {
    /// Allocates a block. The system chooses the size of the stack.
    pub(crate) fn map(_size: usize, _stacks: usize) -> Result<Slab, StackError> {
        // SAFETY: the size of the layout is not zero.
        let block = unsafe { alloc::alloc(BLOCK) };
        if block.is_null() {
            Err(StackError::Memory(libc::ENOMEM))
        } else {
            Ok(Slab(block))
        }
    }

    pub(crate) fn base(self) -> *mut u8 {
        self.0
    }

    /// The first address above the block.
    pub(crate) fn top(self, _: usize) -> *mut u8 {
        self.0.wrapping_add(BLOCK.size())
    }
}

/// Does nothing, as the block is small.
///
/// # Safety
/// The block must be unused.
pub(crate) unsafe fn discard(_: *mut u8, _: usize) {}

/// Frees a block.
///
/// # Safety
/// The block must come from [`Slab::map`] and be unused.
pub(crate) unsafe fn unmap(base: *mut u8, _: *mut u8) {
    // SAFETY: the caller promises that the block comes from `map`, which uses this layout, and is
    // unused.
    unsafe { alloc::dealloc(base, BLOCK) };
}

pub(crate) fn page_size() -> usize {
    4096
}
