//! Byte strings in shared memory: names, file handles, attributes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

/// The size of a block is a multiple of this.
const GRANULE: usize = 32;
/// The length of a string, before its bytes.
const LENGTH: usize = 4;
/// Blocks of 1, 2, 4, ... granules.
const CLASSES: usize = 14;

/// Where a string lies: the number of its first granule, and 0 for none.
pub type Reference = u32;

/// A part of shared memory that is allocated in blocks. Only the process knows which blocks are used; the
/// next one learns it from the references to them ([`Heap::adopt`]).
pub struct Heap {
    memory: Rc<MmapRegion>,
    start: usize,
    granules: u32,
    /// The first granule that was never used.
    fresh: Cell<u32>,
    free: RefCell<[Vec<u32>; CLASSES]>,
}

/// A string. Its block is free again when this is dropped.
pub struct Text {
    heap: Rc<Heap>,
    at: Reference,
    class: usize,
}

/// The class of blocks that hold `length` bytes and their length.
fn class_of(length: usize) -> Option<usize> {
    let granules = (LENGTH + length).div_ceil(GRANULE).next_power_of_two();
    let class = granules.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl Heap {
    /// The heap of `size` bytes at `offset` of the memory, in which no block is used. Panics if it is not
    /// within the memory.
    pub fn at(memory: &Rc<MmapRegion>, offset: usize, size: usize) -> Heap {
        assert!(offset + size <= memory.size());
        Heap {
            memory: memory.clone(),
            start: offset,
            granules: u32::try_from(size / GRANULE).unwrap_or(u32::MAX),
            // No reference is 0.
            fresh: Cell::new(1),
            free: RefCell::default(),
        }
    }

    fn slice(&self, at: Reference, from: usize, length: usize) -> Option<VolatileSlice<'_>> {
        let block = (at as usize).checked_mul(GRANULE)?.checked_add(from)?;
        let end = self.granules as usize * GRANULE;
        let inside = block.checked_add(length).is_some_and(|last| last <= end);
        let whole = self.memory.as_volatile_slice();
        inside.then(|| whole.subslice(self.start + block, length).ok())?
    }

    /// Stores a string. If there is no room for it, or it is too long for any block, its reference is
    /// 0.
    pub fn keep(self: &Rc<Self>, bytes: &[u8]) -> Text {
        let text = self.reserve(bytes.len());
        text.write(0, bytes);
        text
    }

    /// Room for a string of `length` bytes.
    pub fn reserve(self: &Rc<Self>, length: usize) -> Text {
        let (at, class) = match class_of(length) {
            Some(class) => (self.block(class), class),
            None => (0, 0),
        };
        let text = Text {
            heap: self.clone(),
            at,
            class,
        };
        if let Some(slice) = self.slice(at, 0, LENGTH).filter(|_| at > 0) {
            let _ = slice.write_obj(length as u32, 0);
        }
        text
    }

    fn block(&self, class: usize) -> Reference {
        if let Some(at) = self.free.borrow_mut()[class].pop() {
            return at;
        }
        let at = self.fresh.get();
        match at
            .checked_add(1 << class)
            .filter(|end| *end <= self.granules)
        {
            Some(end) => {
                self.fresh.set(end);
                at
            }
            None => 0,
        }
    }

    /// Takes over the strings at these references from another process, in the same order; everything
    /// else is free. None if one is not a string, or two overlap.
    pub fn adopt(self: &Rc<Self>, references: &[Reference]) -> Option<Vec<Text>> {
        let mut texts = Vec::with_capacity(references.len());
        for &at in references {
            let block = || {
                let length: u32 = self.slice(at, 0, LENGTH)?.read_obj(0).ok()?;
                let class = class_of(length as usize)?;
                let block = self.slice(at, 0, GRANULE << class).filter(|_| at > 0);
                block.map(|_| class)
            };
            let Some(class) = block() else {
                texts.into_iter().for_each(Text::disown);
                return None;
            };
            texts.push(Text {
                heap: self.clone(),
                at,
                class,
            });
        }
        let mut blocks: Vec<(u32, u32)> = texts
            .iter()
            .map(|text| (text.at, text.at + (1 << text.class)))
            .collect();
        blocks.sort_unstable();
        let mut next = 1;
        let mut free = self.free.borrow_mut();
        for (start, end) in blocks {
            if start < next {
                // Nothing is used yet, so nothing is to be freed.
                texts.into_iter().for_each(Text::disown);
                return None;
            }
            while next < start {
                let class = ((start - next).ilog2() as usize).min(CLASSES - 1);
                free[class].push(next);
                next += 1 << class;
            }
            next = end;
        }
        self.fresh.set(next);
        drop(free);
        Some(texts)
    }
}

impl Text {
    /// Frees nothing.
    fn disown(mut self) {
        self.at = 0;
    }

    /// Its reference.
    pub fn reference(&self) -> Reference {
        self.at
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        if let Some(slice) = self.heap.slice(self.at, LENGTH, bytes.len()) {
            slice.copy_to(&mut bytes);
        }
        bytes
    }

    fn len(&self) -> usize {
        let length = self.heap.slice(self.at, 0, LENGTH).filter(|_| self.at > 0);
        let length = length.and_then(|slice| slice.read_obj::<u32>(0).ok());
        let most = (GRANULE << self.class) - LENGTH;
        length.map_or(0, |length| (length as usize).min(most))
    }

    /// Writes bytes at `from`, none beyond the string's end.
    pub fn write(&self, from: usize, bytes: &[u8]) {
        let room = self.len().saturating_sub(from);
        let bytes = &bytes[..bytes.len().min(room)];
        if let Some(slice) = self.heap.slice(self.at, LENGTH + from, bytes.len()) {
            slice.copy_from(bytes);
        }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if self.at != 0 {
            self.heap.free.borrow_mut()[self.class].push(self.at);
        }
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({})", self.at)
    }
}

impl std::fmt::Debug for Heap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heap")
            .field("granules", &self.granules)
            .finish_non_exhaustive()
    }
}
