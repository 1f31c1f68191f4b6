//! Mappings of several stacks.
//!
//! ```text
//!   base ─▶ guard │ stack 0 │ guard │ stack 1 │ ... │ guard │ stack n-1
//! ```
//!
//! A guard is a mark in the page tables (MADV_GUARD_INSTALL, Linux 6.13). So a slab is a single
//! mapping, and the kernel merges adjacent slabs: the limit of mappings (`vm.max_map_count`) is not
//! reached. An older kernel has one mapping for each guard and each stack.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::error::StackError;
use crate::sanitizer;

/// Bytes of a guard, so large that no function skips it without touching it: the ABI of aarch64
/// permits a function to skip up to 64 KiB.
const GUARD_SIZE: usize = if cfg!(target_arch = "x86_64") {
    16 * 1024
} else {
    64 * 1024
};

/// Number of stacks in a slab.
pub(crate) const STACKS: usize = 64;

const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Whether the kernel does not support MADV_GUARD_INSTALL.
static NO_LIGHT_GUARDS: AtomicBool = AtomicBool::new(false);

/// All slabs, to look up a guard. Entries are never removed.
static SLABS: AtomicPtr<Known> = AtomicPtr::new(ptr::null_mut());

struct Known {
    base: usize,
    /// False after the slab has been unmapped.
    alive: AtomicBool,
    size: usize,
    stacks: usize,
    next: *mut Known,
}

/// A mapping of stacks of the same size.
#[derive(Clone, Copy)]
pub(crate) struct Slab {
    base: *mut u8,
    size: usize,
}

impl Slab {
    /// Maps `stacks` stacks of `size` bytes, a multiple of the page size.
    pub(crate) fn map(size: usize, stacks: usize) -> Result<Slab, StackError> {
        let length = stacks * (GUARD_SIZE + size);
        // SAFETY: a new mapping at an address that the kernel chooses does not affect other memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                // From 6.7 on the kernel uses no huge pages for MAP_STACK.
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(last_error());
        }
        let slab = Slab {
            base: base.cast(),
            size,
        };
        for stack in 0..stacks {
            let lower_end = slab.top(stack).wrapping_sub(size);
            // SAFETY: the guard lies in the new mapping, which is unused.
            if let Err(error) = unsafe { guard(lower_end.wrapping_sub(GUARD_SIZE)) } {
                // SAFETY: the mapping is new and unused.
                unsafe { libc::munmap(base, length) };
                return Err(error);
            }
            sanitizer::register_stack(lower_end, slab.top(stack));
        }
        // For kernels before 6.7. A kernel without huge pages fails, which is no problem.
        // SAFETY: the advice is for the new mapping, and changes no content.
        unsafe { libc::madvise(base, length, libc::MADV_NOHUGEPAGE) };
        slab.publish(stacks);
        Ok(slab)
    }

    pub(crate) fn base(self) -> *mut u8 {
        self.base
    }

    /// The first address above a stack.
    pub(crate) fn top(self, stack: usize) -> *mut u8 {
        self.base
            .wrapping_add((stack + 1) * (GUARD_SIZE + self.size))
    }

    fn publish(self, stacks: usize) {
        let known = Box::into_raw(Box::new(Known {
            base: self.base as usize,
            alive: AtomicBool::new(true),
            size: self.size,
            stacks,
            next: ptr::null_mut(),
        }));
        let mut first = SLABS.load(Ordering::Relaxed);
        loop {
            // SAFETY: only this thread has the entry until it is published.
            unsafe { (*known).next = first };
            match SLABS.compare_exchange_weak(first, known, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => first = other,
            }
        }
    }
}

/// Makes the guard at `start` inaccessible.
///
/// # Safety
/// The guard must lie in an unused part of a slab.
unsafe fn guard(start: *mut u8) -> Result<(), StackError> {
    if !NO_LIGHT_GUARDS.load(Ordering::Relaxed) {
        // SAFETY: the caller promises that these pages of a slab are unused.
        if unsafe { libc::madvise(start.cast(), GUARD_SIZE, MADV_GUARD_INSTALL) } == 0
            && is_guarded(start)
        {
            return Ok(());
        }
        NO_LIGHT_GUARDS.store(true, Ordering::Relaxed);
    }
    // SAFETY: the caller promises that these pages of a slab are unused.
    if unsafe { libc::mprotect(start.cast(), GUARD_SIZE, libc::PROT_NONE) } == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// Whether `start`, where a guard mark was set, is inaccessible: an emulator may accept advice that
/// it does not know. Checked once.
fn is_guarded(start: *mut u8) -> bool {
    static IS_GUARDED: OnceLock<bool> = OnceLock::new();
    *IS_GUARDED.get_or_init(|| {
        // A kernel with guard marks knows this advice too, and refuses it for a guard.
        // SAFETY: at most a zero page is mapped.
        unsafe { libc::madvise(start.cast(), page_size(), libc::MADV_POPULATE_READ) != 0 }
    })
}

/// Returns the pages of a stack to the kernel. They are zero afterwards.
///
/// # Safety
/// The stack of `size` bytes below `top` must be mapped by [`Slab::map`] and unused.
pub(crate) unsafe fn discard(top: *mut u8, size: usize) {
    // SAFETY: the caller promises that these pages of a slab are unused. If it fails the pages
    // stay, which is no error.
    unsafe { libc::madvise(top.wrapping_sub(size).cast(), size, libc::MADV_DONTNEED) };
}

/// Unmaps a slab of a single stack.
///
/// # Safety
/// The slab must have been mapped by [`Slab::map`] from `base` to `top`, and be unused.
pub(crate) unsafe fn unmap(base: *mut u8, top: *mut u8) {
    let mut next = SLABS.load(Ordering::Acquire);
    // SAFETY: entries are never freed.
    while let Some(known) = unsafe { next.as_ref() } {
        if known.base == base as usize && known.alive.swap(false, Ordering::Relaxed) {
            break;
        }
        next = known.next;
    }
    // SAFETY: the caller promises that this is a whole slab, and unused.
    unsafe { libc::munmap(base.cast(), top as usize - base as usize) };
}

/// The lower end and the size of the stack that contains `address`.
#[cfg(watched)]
pub(crate) fn bounds(address: usize) -> (*const u8, usize) {
    let known = find(address);
    known.map_or((ptr::null(), 0), |(known, offset)| {
        let stride = GUARD_SIZE + known.size;
        (
            ptr::without_provenance(address - offset % stride + GUARD_SIZE),
            known.size,
        )
    })
}

/// Whether `address` is in the guard of a stack. Async-signal-safe.
pub(super) fn is_guard(address: usize) -> bool {
    find(address).is_some_and(|(known, offset)| offset % (GUARD_SIZE + known.size) < GUARD_SIZE)
}

/// The slab that contains `address`, and the offset in it.
fn find<'a>(address: usize) -> Option<(&'a Known, usize)> {
    let mut next = SLABS.load(Ordering::Acquire);
    // SAFETY: entries are never freed.
    while let Some(known) = unsafe { next.as_ref() } {
        let offset = address.wrapping_sub(known.base);
        let length = known.stacks * (GUARD_SIZE + known.size);
        if known.alive.load(Ordering::Relaxed) && offset < length {
            return Some((known, offset));
        }
        next = known.next;
    }
    None
}

/// The page size of the machine.
pub(crate) fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: the call takes no pointers.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        size.try_into().unwrap_or(4096)
    })
}

fn last_error() -> StackError {
    StackError::Memory(
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::ENOMEM),
    )
}
