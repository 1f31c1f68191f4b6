//! The record of a coroutine, at the top of its own stack:
//!
//! ```text
//!   top of the stack ─▶ Core
//!                       mailbox: values that go in and out
//!                       the closure, until it is called
//!                       frames ...
//!                       guard
//! ```
//!
//! The operations on a coroutine are in `lifecycle`.

use std::any::Any;
use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arch::Link;
use crate::list::{self, Linked, Links};

/// A queue of coroutines. A coroutine is in one queue at most.
pub(crate) type List = list::List<Core>;

/// A coroutine, on its own stack. Aligned to a cache line, so that all fields that entering it
/// accesses lie in one line.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The suspended side of the switch. The first field, as the switch takes its address.
    pub(crate) link: Link,
    /// The coroutine that entered this one; null for a thread's own stack.
    pub(crate) caller: Cell<*const Core>,
    /// Neighbours in the queue that the coroutine is in, or in the list of free ones.
    pub(crate) links: Links<Core>,
    /// The queue that the coroutine waits in, to remove it from.
    pub(crate) queue: Cell<*const List>,
    /// The untyped argument of the hook that is called after a switch away from the coroutine.
    #[cfg(target_os = "linux")]
    pub(crate) parcel: Cell<*const ()>,
    /// Part of the coroutine's [`Id`]: differs from that of other coroutines at this address. Set
    /// when the identifier is first asked for.
    generation: Cell<u64>,
    /// The payload of the coroutine's panic.
    pub(crate) panic: Cell<Option<Box<dyn Any + Send>>>,
    pub(crate) state: Cell<u8>,
    pub(crate) flags: Cell<u8>,
    /// What the coroutine waits for in its queue. The owner of the queue defines the values.
    pub(crate) wait_mode: Cell<u8>,
    /// Whether the coroutine has an identifier.
    pub(crate) has_id: Cell<bool>,
    /// Not zero if the coroutine cannot go into the pool at its end: the number of locks that it
    /// holds, and [`OWN_STACK`].
    pub(crate) unpoolable: Cell<u32>,
    /// Lowest address of the stack if it was mapped for this coroutine alone, or null.
    own_stack: Cell<*mut u8>,
}

/// In `Core::unpoolable`: the stack was mapped for this coroutine alone.
const OWN_STACK: u32 = 1 << 31;

static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

/// Bits of `Core::state`.
pub(crate) mod state {
    /// Created, not yet entered.
    pub(crate) const FRESH: u8 = 1;
    /// Suspended by code that must not be unwound into.
    pub(crate) const INLINE: u8 = 2;
    /// Running, or waiting for a coroutine that it has entered.
    pub(crate) const RUNNING: u8 = 4;
    /// Entered by code that must not be unwound into.
    pub(crate) const ENTERED_INLINE: u8 = 8;
    /// Resumed or unwound while the thread was panicking: that panic is not the coroutine's.
    pub(crate) const IN_PANIC: u8 = 16;
    /// In a queue or on a worker: resumed by the code that takes it from there.
    pub(crate) const WAITING: u8 = 32;
    /// Ended.
    pub(crate) const FINISHED: u8 = 64;
    /// With `FINISHED`: it cannot go into the pool.
    pub(crate) const UNPOOLABLE: u8 = 128;
    /// Suspended by `yield_now`: no bit is set.
    pub(crate) const SUSPENDED: u8 = 0;
    /// With any of these a coroutine must not be entered by its owner.
    pub(crate) const BUSY: u8 = RUNNING | WAITING | FINISHED;
}

/// Bits of `Core::flags`.
pub(crate) mod flags {
    /// There is no handle: the stack is returned as soon as the coroutine has ended.
    pub(crate) const DETACHED: u8 = 1;
    /// To be unwound instead of resumed.
    pub(crate) const CANCELLED: u8 = 2;
    /// May be entered by any thread.
    pub(crate) const MIGRATES: u8 = 4;
}

/// Identifies a coroutine. Never reused for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    core: usize,
    generation: u64,
}

impl Linked for Core {
    fn links(&self) -> &Links<Core> {
        &self.links
    }
}

impl Core {
    /// Writes a new core to the top of a stack. `own_stack` is the stack's lower end, or null if it
    /// comes from the pool.
    ///
    /// # Safety
    /// `top` must be the end of a stack of [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE) bytes or more
    /// that is writable and unused, and the core not be used when that is unmapped.
    pub(crate) unsafe fn place<'a>(top: *mut u8, own_stack: *mut u8) -> &'a Core {
        // `below` derives pointers to the rest of the stack from a pointer to the core.
        top.expose_provenance();
        let place = below(top, size_of::<Core>(), align_of::<Core>()).cast::<Core>();
        // Distinct from all numbers of cores at this address before and after.
        let generation = LAST_GENERATION.fetch_add(1 << 32, Ordering::Relaxed);
        let core = Core {
            link: Link::new(),
            caller: Cell::new(ptr::null()),
            links: Links::new(),
            queue: Cell::new(ptr::null()),
            #[cfg(target_os = "linux")]
            parcel: Cell::new(ptr::null()),
            generation: Cell::new(generation),
            panic: Cell::new(None),
            state: Cell::new(state::FINISHED),
            flags: Cell::new(0),
            wait_mode: Cell::new(0),
            has_id: Cell::new(false),
            unpoolable: Cell::new(if own_stack.is_null() { 0 } else { OWN_STACK }),
            own_stack: Cell::new(own_stack),
        };
        // SAFETY: the place is the highest aligned one in the stack, which nobody else uses.
        unsafe {
            place.write(core);
            &*place
        }
    }

    /// The upper end of the stack, the argument of [`place`](Core::place).
    pub(crate) fn top(&self) -> *mut u8 {
        let place = ptr::from_ref(self) as usize;
        ptr::with_exposed_provenance_mut(place + size_of::<Core>())
    }

    /// The link, with the provenance of the whole core.
    #[inline(always)]
    pub(crate) fn link(&self) -> *const Link {
        ptr::from_ref(self).cast()
    }

    pub(crate) fn id(&self) -> Id {
        if !self.has_id.replace(true) {
            self.generation.set(self.generation.get() + 1);
        }
        Id {
            core: ptr::from_ref(self) as usize,
            generation: self.generation.get(),
        }
    }

    pub(crate) fn own_stack(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.own_stack.get())
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state.get() & state::FINISHED != 0
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.state.get() & state::WAITING != 0
    }

    /// The place of the coroutine's mailbox.
    #[inline(always)]
    pub(crate) fn mailbox<M>(&self) -> NonNull<M> {
        let place = below(
            ptr::from_ref(self).cast_mut().cast(),
            size_of::<M>(),
            align_of::<M>(),
        );
        // SAFETY: the core lies at the top of a stack, far above address zero.
        unsafe { NonNull::new_unchecked(place.cast()) }
    }

    /// The place of the coroutine's closure until it is called, below a mailbox `M`.
    #[inline(always)]
    pub(crate) fn closure<F, M>(&self) -> *mut F {
        let mailbox = self.mailbox::<M>().as_ptr();
        below(mailbox.cast(), size_of::<F>(), align_of::<F>()).cast()
    }

    /// Counts one more lock that the coroutine holds.
    pub(crate) fn take_lock(&self) {
        self.unpoolable.set(self.unpoolable.get() + 1);
    }

    /// Counts one lock less.
    ///
    /// # Safety
    /// [`take_lock`](Core::take_lock) must have been called for this lock, whose holder must not use
    /// the core any more.
    pub(crate) unsafe fn drop_lock(&self) {
        self.unpoolable.set(self.unpoolable.get() - 1);
    }

    pub(crate) fn holds_locks(&self) -> bool {
        self.unpoolable.get() & !OWN_STACK != 0
    }

    pub(crate) fn set_flag(&self, flag: u8) {
        self.flags.set(self.flags.get() | flag);
    }

    pub(crate) fn waits_in(&self, queue: *const List) -> bool {
        self.queue.get() == queue
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.flags.get() & flags::DETACHED != 0
    }

    #[inline(always)]
    pub(crate) fn has_panicked(&self) -> bool {
        // SAFETY: nobody ever has a reference to what is in the cell, and none leaves this
        // function.
        unsafe { (*self.panic.as_ptr()).is_some() }
    }
}

/// The highest place below `address`, in a stack, for a value of this size and alignment. The
/// pointer may access the whole stack.
#[inline(always)]
pub(crate) fn below(address: *mut u8, size: usize, align: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut((address as usize - size) & !(align - 1))
}
