//! The thread's state without assembly.

use std::cell::UnsafeCell;

/// Maximum size and alignment of a thread's state.
#[repr(C, align(16))]
struct Slot(UnsafeCell<[usize; 32]>);

thread_local! {
    static OWN: Slot = const { Slot(UnsafeCell::new([0; 32])) };
}

/// The address of the calling thread's state. Not inlined, as the compiler would keep the address
/// across a switch, after which the coroutine may run on another thread.
#[inline(never)]
pub(crate) fn slot_of_this() -> *const u8 {
    OWN.with(|slot| slot.0.get().cast_const().cast())
}

/// Defines `slot`, the address of a thread-local variable that is initially zero.
macro_rules! thread_slot {
    ($symbol:literal, $size:literal) => {
        #[inline(always)]
        fn slot() -> *const u8 {
            crate::arch::slot_of_this()
        }
    };
}
pub(crate) use thread_slot;
