//! The place of the thread's state without assembly.

use std::cell::UnsafeCell;

/// Bytes and alignment that a thread's state may have.
#[repr(C, align(16))]
struct Slot(UnsafeCell<[usize; 32]>);

thread_local! {
    static OWN: Slot = const { Slot(UnsafeCell::new([0; 32])) };
}

/// The calling thread's place. Not inlined: the compiler would keep the address over a switch,
/// behind which a coroutine may run on another thread.
#[inline(never)]
pub(crate) fn slot_of_this() -> *const u8 {
    OWN.with(|slot| slot.0.get().cast_const().cast())
}

/// The calling thread's place in a thread-local variable, all zero at first.
macro_rules! thread_slot {
    ($symbol:literal, $size:literal) => {
        #[inline(always)]
        fn slot() -> *const u8 {
            crate::arch::slot_of_this()
        }
    };
}
pub(crate) use thread_slot;
