//! The lists of a walk, stored in place.

use std::fmt;
use std::ops::Deref;

use crate::constants::MAX_WALK;
use crate::error::{DecodeError, EncodeError};
use crate::qid::Qid;
use crate::wire::{Cursor, DebugField, FIXED_ROOM, Field};

/// At most [`MAX_WALK`] elements of a walk; on the wire they follow a u16 that counts them.
#[derive(Clone, Copy)]
pub struct List<T> {
    items: [T; MAX_WALK],
    /// How many of the items are valid; at most [`MAX_WALK`].
    len: usize,
}

/// The names of a Twalk.
pub type Names<'a> = List<&'a [u8]>;
/// The qids of an Rwalk.
pub type Qids = List<Qid>;

impl<T: Copy + Default> List<T> {
    /// An empty list.
    #[inline]
    pub fn new() -> List<T> {
        List {
            items: [T::default(); MAX_WALK],
            len: 0,
        }
    }

    /// Appends an element; returns false and does nothing if the list is full.
    #[inline]
    pub fn push(&mut self, item: T) -> bool {
        match self.items.get_mut(self.len) {
            Some(slot) => {
                *slot = item;
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// A list of these elements; None if there are more than [`MAX_WALK`].
    pub fn from_slice(items: &[T]) -> Option<List<T>> {
        let mut list = List::new();
        items.iter().all(|item| list.push(*item)).then_some(list)
    }
}

impl<T> List<T> {
    /// The elements.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Copy + Default> Default for List<T> {
    fn default() -> List<T> {
        List::new()
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &List<T>) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl<T: Eq> Eq for List<T> {}

impl<'a, T: Field<'a> + Copy + Default> Field<'a> for List<T> {
    const MIN: usize = <u16 as Field>::MIN;
    const FIXED: bool = false;

    fn store(&self, _: &mut [u8; FIXED_ROOM], _: usize) -> usize {
        unreachable!("a list is not fixed")
    }

    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let count = u16::decode(cursor)?;
        if usize::from(count) > MAX_WALK {
            return Err(DecodeError::TooManyNames(count));
        }
        let mut list = List::new();
        for _ in 0..count {
            list.push(T::decode(cursor)?);
        }
        Ok(list)
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        // A list is never longer than MAX_WALK.
        (self.len as u16).encode(out)?;
        self.iter().try_for_each(|item| item.encode(out))
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(DebugField)).finish()
    }
}

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

impl fmt::Debug for Qids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_sixteen_elements_and_no_more() {
        let mut names = Names::new();
        for _ in 0..MAX_WALK {
            assert!(names.push(b"name"));
        }
        assert!(!names.push(b"one more"));
        assert_eq!(names.as_slice(), [b"name".as_slice(); MAX_WALK]);
        assert_eq!(Names::from_slice(&names), Some(names));
        assert_eq!(Names::from_slice(&[b"name".as_slice(); 17]), None);
    }

    #[test]
    fn lists_are_equal_if_what_counts_of_them_is() {
        let mut failed = Cursor(b"\x02\0\x01\0ab");
        assert_eq!(Names::decode(&mut failed), Err(DecodeError::Short));
        let one = Names::from_slice(&[b"a"]).expect("fits");
        assert_eq!(Names::decode(&mut Cursor(b"\x01\0\x01\0a")), Ok(one));
        assert_ne!(one, Names::new());
    }
}
