//! Rows of plain data in shared memory.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, Release};

use vm_memory::MmapRegion;

/// A row: atomics and nothing else. It is used from the last store of its writer until
/// [`Record::clear`].
///
/// # Safety
///
/// Every pattern of bits is a value of the type, all its bytes may be written by another process at
/// any time, and its alignment is at most 64.
pub unsafe trait Record: 'static {
    /// Marks the row as free.
    fn clear(&self);
    /// Whether the row is used.
    fn is_used(&self) -> bool;
}

/// A table with a fixed number of rows. Row 0 is never used: it is what [`Table::take`] returns if
/// there is no free row.
pub struct Table<R> {
    rows: NonNull<R>,
    count: u32,
    header: NonNull<Header>,
    free: RefCell<Vec<u32>>,
    /// Keeps the rows mapped.
    _memory: Rc<MmapRegion>,
}

/// What is in the shared memory before the rows.
#[repr(C)]
struct Header {
    /// The last row that was ever used.
    end: AtomicU32,
    /// Not 0 if a row was asked for and none was free: something is not recorded.
    overflown: AtomicU32,
}

/// A used row, free again when this is dropped.
pub struct Row<R: Record> {
    table: Rc<Table<R>>,
    /// 0 if another `Row` stands for it.
    index: Cell<u32>,
}

impl<R: Record> Table<R> {
    /// Bytes before the rows.
    const HEADER: usize = 64;

    /// How many bytes of memory `count` rows take.
    pub const fn size(count: u32) -> usize {
        Self::HEADER + (count as usize + 1) * size_of::<R>()
    }

    /// The table of `count` rows at `offset` of the memory, with its content. Panics if it is not within
    /// the memory, or not aligned to 64 bytes.
    pub fn at(memory: &Rc<MmapRegion>, offset: usize, count: u32) -> Table<R> {
        assert!(offset + Self::size(count) <= memory.size() && offset % 64 == 0);
        let start = memory.as_ptr().wrapping_add(offset);
        let not_null = "a mapping does not begin at address 0";
        Table {
            rows: NonNull::new(start.wrapping_add(Self::HEADER).cast()).expect(not_null),
            count,
            header: NonNull::new(start.cast()).expect(not_null),
            free: RefCell::default(),
            _memory: memory.clone(),
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: within the mapping and aligned, by the assertion in `at`; mapped as long as `self`
        // lives, and made of atomics alone.
        unsafe { self.header.as_ref() }
    }

    /// The last row that was ever used, except row 0.
    pub(super) fn end(&self) -> u32 {
        self.header().end.load(Relaxed).min(self.count)
    }

    /// Sets the last row that was ever used.
    pub(super) fn set_end(&self, end: u32) {
        self.header().end.store(end, Release);
    }

    /// A row, used or not. None beyond the last.
    pub fn get(&self, index: u32) -> Option<&R> {
        // SAFETY: row 0 to `count` are within the mapping and aligned, by the assertion in `at`; mapped
        // as long as `self` lives; any bits are a value, and others' writes no race, by the contract
        // of `Record`.
        (index <= self.count).then(|| unsafe { self.rows.add(index as usize).as_ref() })
    }

    /// Takes a free row, whose content is that of its last use.
    #[inline]
    pub fn take(self: &Rc<Self>) -> Row<R> {
        let free = self.free.borrow_mut().pop();
        Row {
            table: self.clone(),
            index: Cell::new(free.unwrap_or_else(|| self.fresh())),
        }
    }

    fn fresh(&self) -> u32 {
        let index = self.end() + 1;
        if index > self.count {
            self.header().overflown.store(1, Release);
            return 0;
        }
        self.set_end(index);
        index
    }

    /// Takes the table over from another process: returns the used rows, and all others are free.
    /// None if something found no free row.
    pub fn adopt(self: &Rc<Self>) -> Option<Vec<Row<R>>> {
        if self.header().overflown.load(Relaxed) != 0 {
            return None;
        }
        let end = self.end();
        self.set_end(end);
        let (used, free): (Vec<u32>, Vec<u32>) =
            (1..=end).partition(|index| self.get(*index).is_some_and(R::is_used));
        self.free.replace(free);
        let row = |index| Row {
            table: self.clone(),
            index: Cell::new(index),
        };
        Some(used.into_iter().map(row).collect())
    }
}

impl<R: Record> Row<R> {
    /// The row's number; 0 for none.
    pub fn index(&self) -> u32 {
        self.index.get()
    }

    /// Makes another one of it, and this one that of row 0.
    pub fn hand_over(&self) -> Row<R> {
        Row {
            table: self.table.clone(),
            index: Cell::new(self.index.take()),
        }
    }
}

impl<R: Record> std::ops::Deref for Row<R> {
    type Target = R;

    fn deref(&self) -> &R {
        self.table
            .get(self.index())
            .expect("it was taken from the table")
    }
}

impl<R: Record> Drop for Row<R> {
    fn drop(&mut self) {
        let index = self.index();
        if index != 0 {
            self.clear();
            self.table.free.borrow_mut().push(index);
        }
    }
}

impl<R: Record> std::fmt::Debug for Row<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({})", self.index())
    }
}

impl<R> std::fmt::Debug for Table<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.count)
            .finish_non_exhaustive()
    }
}
