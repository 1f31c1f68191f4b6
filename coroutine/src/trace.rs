//! Trace points: a function of the program is called at each step of a coroutine.
//!
//! Without the feature `trace` the trace points compile to nothing.

#[cfg(feature = "trace")]
pub(crate) use on::event;
#[cfg(feature = "trace")]
pub use on::{Event, Kind, subscribe, unsubscribe};

#[cfg(feature = "trace")]
mod on {
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use crate::core::{Core, Id};

    /// The kind of a step.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// It is entered, for the first time or again.
        Enter,
        /// It yields, or begins to wait.
        Yield,
        /// It has ended.
        Terminate,
        /// It submits a job to the workers.
        Offload,
        /// Its job is done, and it is resumed next.
        Complete,
    }

    /// A step of a coroutine.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Event {
        /// The kind of the step.
        pub kind: Kind,
        /// The coroutine.
        pub coroutine: Id,
    }

    static SUBSCRIBER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

    /// From now on calls `subscriber` at each step of every coroutine of the process, on the thread
    /// and the stack of that step. It must not use coroutines itself.
    pub fn subscribe(subscriber: fn(Event)) {
        SUBSCRIBER.store(subscriber as *mut (), Ordering::Release);
    }

    /// Removes the subscriber.
    pub fn unsubscribe() {
        SUBSCRIBER.store(ptr::null_mut(), Ordering::Release);
    }

    #[inline]
    pub(crate) fn event(kind: Kind, core: &Core) {
        let subscriber = SUBSCRIBER.load(Ordering::Acquire);
        if !subscriber.is_null() {
            // SAFETY: a pointer that is not null is a function of this type, from `subscribe`.
            let subscriber: fn(Event) = unsafe { std::mem::transmute(subscriber) };
            subscriber(Event {
                kind,
                coroutine: core.id(),
            });
        }
    }
}

#[cfg(not(feature = "trace"))]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "there are no workers")
)]
pub(crate) enum Kind {
    Enter,
    Yield,
    Terminate,
    Offload,
    Complete,
}

#[cfg(not(feature = "trace"))]
#[inline(always)]
pub(crate) fn event(_: Kind, _: &crate::core::Core) {}
