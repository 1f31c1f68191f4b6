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
//! What happens to a coroutine is in `lifecycle`.

use std::any::Any;
use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arch::Link;
use crate::list::{self, Linked, Links};

/// A queue of coroutines. A coroutine is in one queue at most.
pub(crate) type List = list::List<Core>;

/// What is known of a coroutine, on its own stack. Aligned to a cache line, so that all that is
/// looked at when the coroutine is entered lies in one.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The way to the side that is not running. First: the switch is given its address.
    pub(crate) link: Link,
    /// The coroutine that entered this one; null for a thread's own stack.
    pub(crate) caller: Cell<*const Core>,
    /// Neighbours in the queue that the coroutine is in, or in the list of those that are free.
    pub(crate) links: Links<Core>,
    /// The queue that the coroutine waits in, so that it can be taken out.
    pub(crate) queue: Cell<*const List>,
    /// What the hook that is called when the stack has been left is given, untyped.
    #[cfg(target_os = "linux")]
    pub(crate) parcel: Cell<*const ()>,
    /// Told apart from others that have lain here by this number, if anybody has asked.
    generation: Cell<u64>,
    /// What the coroutine has panicked with.
    pub(crate) panic: Cell<Option<Box<dyn Any + Send>>>,
    pub(crate) state: Cell<u8>,
    pub(crate) flags: Cell<u8>,
    /// What the coroutine waits for in its queue, in the words of the queue's owner.
    pub(crate) wish: Cell<u8>,
    /// Whether somebody has asked for the coroutine's name.
    pub(crate) named: Cell<bool>,
    /// Why the coroutine cannot go into the pool when it has ended: locks that it holds, and
    /// [`OWN_STACK`].
    pub(crate) oddities: Cell<u32>,
    /// Lowest address of the stack if it is one of a size of its own.
    own_stack: Cell<*mut u8>,
}

/// In `Core::oddities`: the stack is one of a size of its own, not from the pool.
const OWN_STACK: u32 = 1 << 31;

static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

/// Bits of `Core::state`.
pub(crate) mod state {
    /// Made, not yet entered.
    pub(crate) const FRESH: u8 = 1;
    /// Suspended by code that nothing can be unwound into.
    pub(crate) const INLINE: u8 = 2;
    /// On the processor, or waiting for a coroutine that it has entered.
    pub(crate) const RUNNING: u8 = 4;
    /// Entered by code that nothing can be unwound into.
    pub(crate) const ENTERED_INLINE: u8 = 8;
    /// Continued or unwound while the thread was panicking: that panic is not the coroutine's.
    pub(crate) const IN_PANIC: u8 = 16;
    /// In a queue, or on a worker: entered by who takes it from there.
    pub(crate) const WAITING: u8 = 32;
    /// At its end.
    pub(crate) const FINISHED: u8 = 64;
    /// With `FINISHED`: it cannot go into the pool.
    pub(crate) const ODD: u8 = 128;
    /// Suspended by `yield_now`: none of the others.
    pub(crate) const SUSPENDED: u8 = 0;
    /// With any of these a coroutine must not be entered by its owner.
    pub(crate) const BUSY: u8 = RUNNING | WAITING | FINISHED;
}

/// Bits of `Core::flags`.
pub(crate) mod flags {
    /// Nobody holds a handle: the stack goes back as soon as the coroutine has ended.
    pub(crate) const DETACHED: u8 = 1;
    /// To be unwound instead of going on.
    pub(crate) const CANCELLED: u8 = 2;
    /// May be entered by any thread.
    pub(crate) const MIGRATES: u8 = 4;
}

/// Tells coroutines apart. Not used again for another coroutine.
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
    /// Puts a new core at the top of a stack: `own_stack` is its lower end if it does not come from
    /// the pool, or null.
    ///
    /// # Safety
    /// `top` must be the end of a stack of [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE) bytes or more
    /// that is writable and unused, and the core not be used when that is unmapped.
    pub(crate) unsafe fn place<'a>(top: *mut u8, own_stack: *mut u8) -> &'a Core {
        // A pointer to the core alone leads to the rest of the stack (`below`).
        top.expose_provenance();
        let place = below(top, size_of::<Core>(), align_of::<Core>()).cast::<Core>();
        // Numbers that no other core has that lies here before or after.
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
            wish: Cell::new(0),
            named: Cell::new(false),
            oddities: Cell::new(if own_stack.is_null() { 0 } else { OWN_STACK }),
            own_stack: Cell::new(own_stack),
        };
        // SAFETY: the place is the highest aligned one in the stack, which nobody else uses.
        unsafe {
            place.write(core);
            &*place
        }
    }

    /// The end of the stack, which [`place`](Core::place) was given.
    pub(crate) fn top(&self) -> *mut u8 {
        let place = ptr::from_ref(self) as usize;
        ptr::with_exposed_provenance_mut(place + size_of::<Core>())
    }

    /// The link, by a pointer that leads back to all of the core.
    #[inline(always)]
    pub(crate) fn link(&self) -> *const Link {
        ptr::from_ref(self).cast()
    }

    pub(crate) fn id(&self) -> Id {
        if !self.named.replace(true) {
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

    /// Where the coroutine's mailbox is.
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

    /// Where the coroutine's closure is until it is called, below a mailbox `M`.
    #[inline(always)]
    pub(crate) fn closure<F, M>(&self) -> *mut F {
        let mailbox = self.mailbox::<M>().as_ptr();
        below(mailbox.cast(), size_of::<F>(), align_of::<F>()).cast()
    }

    /// Notes that the coroutine holds one more lock.
    pub(crate) fn take_lock(&self) {
        self.oddities.set(self.oddities.get() + 1);
    }

    /// Notes that the coroutine holds one lock less.
    ///
    /// # Safety
    /// It must have been noted by [`take_lock`](Core::take_lock), and who was given the lock not use
    /// the core any more.
    pub(crate) unsafe fn drop_lock(&self) {
        self.oddities.set(self.oddities.get() - 1);
    }

    pub(crate) fn holds_locks(&self) -> bool {
        self.oddities.get() & !OWN_STACK != 0
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
        // SAFETY: nobody ever has a reference to what is in the cell, and none leaves this function.
        unsafe { (*self.panic.as_ptr()).is_some() }
    }
}

/// The highest place below `address`, which is one of a stack, for something of this size and
/// alignment. May be used for all of the stack.
#[inline(always)]
pub(crate) fn below(address: *mut u8, size: usize, align: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut((address as usize - size) & !(align - 1))
}
