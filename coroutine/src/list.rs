//! Intrusive queues, first in, first out.

use std::cell::Cell;
use std::fmt;
use std::ptr;

/// An element's place in a list.
pub(crate) struct Links<T> {
    pub(crate) next: Cell<*const T>,
    previous: Cell<*const T>,
}

impl<T> Links<T> {
    pub(crate) const fn new() -> Links<T> {
        Links {
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
        }
    }
}

/// A type whose values can be in a list.
pub(crate) trait Linked: Sized {
    fn links(&self) -> &Links<Self>;
}

/// A queue. An element is in at most one list.
#[repr(C)]
pub(crate) struct List<T> {
    first: Cell<*const T>,
    last: Cell<*const T>,
}

impl<T> fmt::Debug for List<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("List").finish_non_exhaustive()
    }
}

impl<T> List<T> {
    pub(crate) const fn new() -> List<T> {
        List {
            first: Cell::new(ptr::null()),
            last: Cell::new(ptr::null()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.get().is_null()
    }
}

impl<T: Linked> List<T> {
    pub(crate) fn first<'a>(&self) -> Option<&'a T> {
        // SAFETY: an element that is in the list is alive (`push_back`).
        unsafe { self.first.get().as_ref() }
    }

    /// # Safety
    /// `element` must be in no list. It must stay alive until it has been removed from this one,
    /// and until the references that [`first`](List::first) and [`pop_front`](List::pop_front)
    /// return are no longer used.
    pub(crate) unsafe fn push_back(&self, element: &T) {
        let last = self.last.replace(element);
        element.links().previous.set(last);
        element.links().next.set(ptr::null());
        // SAFETY: an element that is in the list is alive: this function's callers promise it.
        match unsafe { last.as_ref() } {
            Some(last) => last.links().next.set(element),
            None => self.first.set(element),
        }
    }

    pub(crate) fn pop_front<'a>(&self) -> Option<&'a T> {
        let element = self.first()?;
        // SAFETY: it is in the list, as the first.
        unsafe { self.remove(element) };
        Some(element)
    }

    /// Removes `element`.
    ///
    /// # Safety
    /// `element` must be in this list.
    pub(crate) unsafe fn remove(&self, element: &T) {
        let links = element.links();
        let (previous, next) = (
            links.previous.replace(ptr::null()),
            links.next.replace(ptr::null()),
        );
        // SAFETY: the neighbours of an element are in the list too, and so alive (`push_back`).
        unsafe {
            match previous.as_ref() {
                Some(previous) => previous.links().next.set(next),
                None => self.first.set(next),
            }
            match next.as_ref() {
                Some(next) => next.links().previous.set(previous),
                None => self.last.set(previous),
            }
        }
    }
}
