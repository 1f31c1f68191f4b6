//! Prefetches what the driver has written, and what will be written for it.
//!
//! The cache lines of the ring and of the buffers are in another processor's cache: a miss costs as
//! much as a short system call. Prefetching the lines of many requests costs little more than one miss.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;

/// Bytes of a cache line, or of half a line.
pub(crate) const LINE: usize = 64;

/// A hint that `place` will be read.
#[inline]
pub(crate) fn for_reading(place: *const u8) {
    // SAFETY: prefetcht0 fails at no address, and changes nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("prefetcht0 [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: prfm fails at no address, and changes nothing.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}

/// A hint that `place` will be written.
#[inline]
pub(crate) fn for_writing(place: *const u8) {
    // SAFETY: prefetchw fails at no address, and changes nothing; a processor without it does nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: prfm fails at no address, and changes nothing.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}
