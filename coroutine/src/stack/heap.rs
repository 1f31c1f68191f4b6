//! Where stacks are the system's: memory for what a coroutine begins with.

use std::alloc::{self, Layout};

use super::error::StackError;

/// Blocks made at once.
pub(crate) const STACKS: usize = 1;

/// For a core, a closure and its mailbox.
const BLOCK: Layout = match Layout::from_size_align(32 * 1024, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("the block has no layout"),
};

/// A block of memory.
#[derive(Clone, Copy)]
pub(crate) struct Slab(*mut u8);

impl Slab {
    /// Makes a block. The size of the stack is the system's.
    pub(crate) fn map(_size: usize, _stacks: usize) -> Result<Slab, StackError> {
        // SAFETY: the layout is not of size zero.
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

/// Does nothing: the block is small.
///
/// # Safety
/// As for the other kind of stacks: the block must be in no use.
pub(crate) unsafe fn discard(_: *mut u8, _: usize) {}

/// Frees a block.
///
/// # Safety
/// The block must come from [`Slab::map`] and be in no use.
pub(crate) unsafe fn unmap(base: *mut u8, _: *mut u8) {
    // SAFETY: the caller says that the block comes from `map`, which has this layout, and is in no
    // use.
    unsafe { alloc::dealloc(base, BLOCK) };
}

pub(crate) fn page_size() -> usize {
    4096
}
