//! Trace points: what coroutines do, told to a function of the program's choice.
//!
//! With the feature `trace` off there is nothing at the places that would tell.

#[cfg(feature = "trace")]
pub(crate) use on::event;
#[cfg(feature = "trace")]
pub use on::{Event, Kind, subscribe, unsubscribe};

#[cfg(feature = "trace")]
mod on {
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use crate::core::{Core, Id};

    /// What a coroutine does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// It is entered, for the first time or again.
        Enter,
        /// It yields, or begins to wait.
        Yield,
        /// It has come to its end.
        Terminate,
        /// It gives a job to the workers.
        Offload,
        /// Its job is done, and it will be entered next.
        Complete,
    }

    /// A step of a coroutine.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Event {
        /// What it does.
        pub kind: Kind,
        /// Which it is.
        pub coroutine: Id,
    }

    static SUBSCRIBER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

    /// Calls `subscriber` at each step of every coroutine of the process from now on, on the
    /// thread and the stack where it happens. It must not use coroutines itself.
    pub fn subscribe(subscriber: fn(Event)) {
        SUBSCRIBER.store(subscriber as *mut (), Ordering::Release);
    }

    /// Calls nobody any more.
    pub fn unsubscribe() {
        SUBSCRIBER.store(ptr::null_mut(), Ordering::Release);
    }

    #[inline]
    pub(crate) fn event(kind: Kind, core: &Core) {
        let subscriber = SUBSCRIBER.load(Ordering::Acquire);
        if !subscriber.is_null() {
            // SAFETY: a pointer that is not null comes from `subscribe`.
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
