//! Which requests are in flight, in memory that outlives this process: the next one finds there what
//! this one has taken and not answered, and takes it again.
//!
//! The layout is that of the vhost-user specification for split rings ("Inflight I/O tracking"), so
//! that a front-end can keep the table, with an array of this crate's own behind it. Numbers are in
//! the host's byte order:
//!
//! ```text
//! header   features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16
//! entries  desc_num × { inflight u8, padding [u8; 5], next u16, counter u64 }
//! origins  desc_num × { taken << 8 | faults << 1 | begun: u64 }
//! ```
//!
//! Entry and origin of a request have the index of its first descriptor. Version 0 marks a table
//! without content. The process may die between any two stores, so their order counts. Whoever reads
//! the table later sees all stores up to the death, in the order of the instructions: only the compiler
//! must keep it.
//!
//! - take: `counter` and the origin, then `inflight`.
//! - push: `next`, then `last_batch_head`. The requests pushed since the last publication are a list.
//! - publish: the index in the used ring, then `inflight` of that list, then `used_idx`.
//!
//! So `used_idx` differs from the used ring exactly if the last list was answered and may still be
//! marked. The content is not trusted: a front-end or a process that was taken over may have written
//! it.

use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, compiler_fence};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vm_memory::MmapRegion;

use crate::error::RingError;

const VERSION: u16 = 1;

#[repr(C)]
struct Header {
    features: AtomicU64,
    version: AtomicU16,
    desc_num: AtomicU16,
    last_batch_head: AtomicU16,
    used_idx: AtomicU16,
}

#[repr(C)]
struct Entry {
    inflight: AtomicU8,
    _padding: [AtomicU8; 5],
    next: AtomicU16,
    counter: AtomicU64,
}

/// In one word:
///
/// - when the request was first taken, since the epoch;
/// - in how many crashes it was under way;
/// - whether the present process has taken it: a request that waits to be taken again did not cause
///   the crash of a process.
#[repr(transparent)]
struct Origin(AtomicU64);

const BEGUN: u64 = 1;
const FAULT: u64 = 2;
const MOST_FAULTS: u64 = 127;
const TAKEN_SHIFT: u32 = 8;
/// The time is in seconds, and a fraction in units of 2^10 ns.
const FRACTION_BITS: u32 = 20;
const FRACTION_UNIT: u32 = 10;

/// What is known of a request that another process has taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// When it was first taken, since the epoch.
    pub since: Duration,
    /// In how many crashes that it may have caused it was under way.
    pub faults: u8,
}

/// A request that was taken by another process and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) head: u16,
    pub(crate) resumed: Resumed,
}

/// The table of a ring, which may be smaller than the table.
///
/// Invariant: the three parts lie in `region` one behind the other, aligned, with `size` elements in
/// each array.
pub(crate) struct Inflight {
    /// Keeps the parts mapped.
    _region: Rc<MmapRegion>,
    header: NonNull<Header>,
    entries: NonNull<Entry>,
    origins: NonNull<Origin>,
    size: u16,
    /// The counter of the request taken last.
    counter: u64,
    /// The time that requests taken now are given, as in their origins.
    now: u64,
}

fn invalid(why: &'static str) -> RingError {
    RingError::Inflight(why)
}

impl Inflight {
    /// Bytes of the table of a ring of this size.
    pub(crate) const fn bytes(size: u16) -> usize {
        size_of::<Header>() + size as usize * (size_of::<Entry>() + size_of::<Origin>())
    }

    /// The table that begins at byte `at` of `region`, which is mapped readable and writable. Errors: it
    /// does not fit or is not aligned.
    pub(crate) fn new(region: Rc<MmapRegion>, at: usize, size: u16) -> Result<Inflight, RingError> {
        let end = at.checked_add(Inflight::bytes(size));
        if end.is_none_or(|end| end > region.size()) {
            return Err(invalid("it is too short"));
        }
        let header = region.as_ptr().wrapping_add(at).cast::<Header>();
        if !header.is_aligned() {
            return Err(invalid("it is not aligned"));
        }
        let entries = header.wrapping_add(1).cast::<Entry>();
        let origins = entries.wrapping_add(size.into()).cast::<Origin>();
        // A mapping does not begin at 0, nor wrap around.
        let null = || invalid("it is not mapped");
        Ok(Inflight {
            header: NonNull::new(header).ok_or_else(null)?,
            entries: NonNull::new(entries).ok_or_else(null)?,
            origins: NonNull::new(origins).ok_or_else(null)?,
            _region: region,
            size,
            counter: 0,
            now: 0,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: mapped and aligned by the invariant as long as `self` is borrowed. It consists of
        // atomics, which may have any value and may be written by another process meanwhile.
        unsafe { self.header.as_ref() }
    }

    fn entries(&self) -> &[Entry] {
        // SAFETY: as for `header`; the invariant has the number of elements.
        unsafe { NonNull::slice_from_raw_parts(self.entries, self.size.into()).as_ref() }
    }

    fn origins(&self) -> &[Origin] {
        // SAFETY: as for `entries`.
        unsafe { NonNull::slice_from_raw_parts(self.origins, self.size.into()).as_ref() }
    }

    /// How many requests it has room for.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Marks the table as one without content.
    pub(crate) fn clear(&self) {
        self.header().version.store(0, Release);
    }

    /// Whether the table belongs to a ring that has not stopped.
    pub(crate) fn has_content(&self) -> bool {
        self.header().version.load(Acquire) != 0
    }

    /// Makes the table ready for a ring whose used index is `used`. None if the table had no content.
    /// Otherwise the requests in flight, in the order in which they were taken. Errors: the content is
    /// invalid.
    pub(crate) fn open(&mut self, used: u16) -> Result<Option<Vec<Lost>>, RingError> {
        match self.header().version.load(Acquire) {
            0 => {
                self.initialise(used);
                Ok(None)
            }
            VERSION => self.recover(used).map(Some),
            _ => Err(invalid("its version is unknown")),
        }
    }

    /// Notes that nothing is in flight: all that was taken was answered. The next request is that
    /// of the used index then.
    pub(crate) fn empty(&mut self) {
        self.initialise(0);
    }

    fn initialise(&mut self, used: u16) {
        for entry in self.entries() {
            entry.inflight.store(0, Relaxed);
        }
        let header = self.header();
        header.features.store(0, Relaxed);
        header.desc_num.store(self.size, Relaxed);
        header.last_batch_head.store(0, Relaxed);
        header.used_idx.store(used, Relaxed);
        header.version.store(VERSION, Release);
        self.counter = 0;
    }

    fn recover(&mut self, used: u16) -> Result<Vec<Lost>, RingError> {
        let header = self.header();
        if header.desc_num.load(Relaxed) != self.size {
            return Err(invalid("it belongs to a ring of another size"));
        }
        // A ring with nothing in flight may have been moved elsewhere.
        if self.entries().iter().any(Entry::is_in_flight) {
            let answered = used.wrapping_sub(header.used_idx.load(Relaxed));
            for head in self.last_batch(answered)? {
                self.entries()[usize::from(head)].inflight.store(0, Relaxed);
            }
        }
        header.used_idx.store(used, Release);

        let mut lost = Vec::new();
        for (head, (entry, origin)) in (0..).zip(self.entries().iter().zip(self.origins())) {
            if entry.is_in_flight() {
                let word = origin.0.load(Relaxed) & !BEGUN;
                origin.0.store(word, Relaxed);
                let resumed = Resumed {
                    since: taken(word),
                    faults: faults(word) as u8,
                };
                lost.push((entry.counter.load(Relaxed), Lost { head, resumed }));
            }
        }
        lost.sort_by_key(|(counter, _)| *counter);
        self.counter = lost.last().map_or(0, |(counter, _)| *counter);
        Ok(lost.into_iter().map(|(_, lost)| lost).collect())
    }

    /// The `count` heads that were pushed last.
    fn last_batch(&self, count: u16) -> Result<Vec<u16>, RingError> {
        if count > self.size {
            return Err(invalid("more was answered than the ring holds"));
        }
        let mut seen = vec![false; self.size.into()];
        let mut heads = Vec::with_capacity(count.into());
        let mut head = self.header().last_batch_head.load(Relaxed);
        for _ in 0..count {
            let entry = self.entries().get(usize::from(head));
            let entry = entry.ok_or_else(|| invalid("its last batch leaves it"))?;
            if std::mem::replace(&mut seen[usize::from(head)], true) {
                return Err(invalid("its last batch is a loop"));
            }
            heads.push(head);
            head = entry.next.load(Relaxed);
        }
        Ok(heads)
    }

    /// The process before has died by its own fault: counts that for the requests that it had begun.
    pub(crate) fn blame(&self) {
        for (entry, origin) in self.entries().iter().zip(self.origins()) {
            let word = origin.0.load(Relaxed);
            if entry.is_in_flight() && word & BEGUN != 0 {
                let more = match faults(word) {
                    MOST_FAULTS => 0,
                    _ => FAULT,
                };
                origin.0.store((word & !BEGUN) + more, Relaxed);
            }
        }
    }

    /// Notes the time for the requests that are taken next.
    pub(crate) fn look_at_clock(&mut self) {
        // Served by the vdso. It always works for this clock.
        if let Ok(time) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) {
            let time = Duration::from(time);
            let fraction = u64::from(time.subsec_nanos() >> FRACTION_UNIT);
            self.now = (time.as_secs() << FRACTION_BITS | fraction) << TAKEN_SHIFT;
        }
    }

    /// Whether the request with this head is in flight. `head` is in the ring.
    #[inline]
    pub(crate) fn holds(&self, head: u16) -> bool {
        self.entries()[usize::from(head)].is_in_flight()
    }

    /// Notes that a request is taken. `head` is in the ring.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) {
        self.counter = self.counter.wrapping_add(1);
        let (entry, origin) = self.place(head);
        entry.counter.store(self.counter, Relaxed);
        origin.0.store(self.now | BEGUN, Relaxed);
        entry.inflight.store(1, Release);
    }

    /// Notes that a request is taken again. `head` is in the ring.
    pub(crate) fn retake(&self, head: u16) {
        self.place(head).1.0.fetch_or(BEGUN, Relaxed);
    }

    #[inline]
    fn place(&self, head: u16) -> (&Entry, &Origin) {
        let index = usize::from(head);
        (&self.entries()[index], &self.origins()[index])
    }

    /// Notes that a request has been answered, which the driver does not see yet. `head` is in the ring.
    #[inline]
    pub(crate) fn push(&self, head: u16) {
        let header = self.header();
        let last = header.last_batch_head.load(Relaxed);
        self.entries()[usize::from(head)].next.store(last, Relaxed);
        header.last_batch_head.store(head, Release);
    }

    /// Notes that the used index is now `used`, and so the last `count` answers are visible.
    #[inline]
    pub(crate) fn publish(&self, count: u16, used: u16) {
        // The store of the index must come first.
        compiler_fence(Release);
        let header = self.header();
        let mut head = header.last_batch_head.load(Relaxed);
        for _ in 0..count {
            // A front-end may have spoilt the list, and harms its own guest.
            let Some(entry) = self.entries().get(usize::from(head)) else {
                break;
            };
            entry.inflight.store(0, Relaxed);
            head = entry.next.load(Relaxed);
        }
        header.used_idx.store(used, Release);
    }
}

fn taken(word: u64) -> Duration {
    let time = word >> TAKEN_SHIFT;
    let fraction = (time & ((1 << FRACTION_BITS) - 1)) as u32;
    Duration::from_secs(time >> FRACTION_BITS) + Duration::from_nanos(1 << FRACTION_UNIT) * fraction
}

fn faults(word: u64) -> u64 {
    word >> 1 & MOST_FAULTS
}

impl Entry {
    #[inline]
    fn is_in_flight(&self) -> bool {
        self.inflight.load(Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vm_memory::{Bytes, VolatileMemory};

    use super::*;

    const SIZE: u16 = 8;

    fn region() -> Rc<MmapRegion> {
        Rc::new(MmapRegion::new(Inflight::bytes(SIZE)).unwrap())
    }

    fn table(region: &Rc<MmapRegion>) -> Inflight {
        Inflight::new(region.clone(), 0, SIZE).unwrap()
    }

    /// What the next process finds when this one dies now.
    fn heads(region: &Rc<MmapRegion>, used: u16) -> Result<Vec<u16>, String> {
        let copy = self::region();
        let mut bytes = vec![0; region.size()];
        let all = |region: &MmapRegion| region.as_volatile_slice().len();
        assert_eq!(all(region), all(&copy));
        region
            .as_volatile_slice()
            .read_slice(&mut bytes, 0)
            .unwrap();
        copy.as_volatile_slice().write_slice(&bytes, 0).unwrap();
        match table(&copy).open(used) {
            Ok(lost) => Ok(lost.unwrap().iter().map(|lost| lost.head).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_layout_is_the_specification_s() {
        let region = region();
        let mut table = table(&region);
        assert_eq!(table.open(0x0302).unwrap(), None);
        table.now = 0x1122_3344_5566_7700;
        table.counter = 0x0102_0304_0506_0707;
        table.take(1);
        table.push(1);
        let mut bytes = vec![0; region.size()];
        region
            .as_volatile_slice()
            .read_slice(&mut bytes, 0)
            .unwrap();
        let expected = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 1, 0, 2, 3];
        assert_eq!(bytes[..16], expected);
        let entry = [1, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(bytes[32..48], entry);
        let origin = [1, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(bytes[16 + 16 * 8 + 8..][..8], origin);
    }

    #[test]
    fn a_death_at_any_store_loses_and_repeats_nothing() {
        let region = region();
        let mut table = table(&region);
        assert_eq!(table.open(65_534).unwrap(), None);
        assert_eq!(heads(&region, 65_534), Ok(vec![]));
        for head in [5, 0, 7, 3] {
            table.take(head);
        }
        assert_eq!(heads(&region, 65_534), Ok(vec![5, 0, 7, 3]));
        // Answered, but the driver does not see it.
        table.push(7);
        table.push(5);
        table.push(0);
        assert_eq!(heads(&region, 65_534), Ok(vec![5, 0, 7, 3]));
        // The driver sees it, the table does not say so yet, ...
        assert_eq!(heads(&region, 1), Ok(vec![3]));
        // ... or says it of some, ...
        for head in [0, 5, 7] {
            table.entries()[head].inflight.store(0, Relaxed);
            assert_eq!(heads(&region, 1), Ok(vec![3]));
        }
        // ... or of all.
        table.publish(3, 1);
        assert_eq!(heads(&region, 1), Ok(vec![3]));
        // In the middle of a push.
        table.take(5);
        let last = table.header().last_batch_head.load(Relaxed);
        table.entries()[5].next.store(last, Relaxed);
        assert_eq!(heads(&region, 1), Ok(vec![3, 5]));
        // In the middle of a take: the driver has made it available still.
        table.entries()[0].counter.store(0, Relaxed);
        table.origins()[0].0.store(0, Relaxed);
        assert_eq!(heads(&region, 1), Ok(vec![3, 5]));
    }

    #[test]
    fn only_what_was_begun_is_blamed() {
        let region = region();
        let mut first = table(&region);
        assert_eq!(first.open(0).unwrap(), None);
        first.now = (1 << FRACTION_BITS | 1 << 19) << TAKEN_SHIFT;
        first.take(2);
        first.take(1);
        let faults = |table: &mut Inflight| -> Vec<(u16, u8)> {
            let lost = table.open(0).unwrap().unwrap();
            assert!(
                lost.iter()
                    .all(|lost| lost.resumed.since == Duration::new(1, 1 << 29))
            );
            lost.iter()
                .map(|lost| (lost.head, lost.resumed.faults))
                .collect()
        };
        // Killed.
        let mut second = table(&region);
        assert_eq!(faults(&mut second), [(2, 0), (1, 0)]);
        second.retake(2);
        second.retake(1);
        // Crashed.
        let mut third = table(&region);
        third.blame();
        assert_eq!(faults(&mut third), [(2, 1), (1, 1)]);
        third.retake(2);
        // Crashed with one of them; the other had not been taken again.
        let mut fourth = table(&region);
        fourth.blame();
        assert_eq!(faults(&mut fourth), [(2, 2), (1, 1)]);
        // Crashed before anything was taken, over and over.
        for _ in 0..1000 {
            fourth.blame();
        }
        assert_eq!(faults(&mut fourth), [(2, 2), (1, 1)]);
        for _ in 0..1000 {
            fourth.retake(2);
            fourth.blame();
        }
        assert_eq!(faults(&mut fourth), [(2, 127), (1, 1)]);
        // A new request begins anew.
        fourth.push(2);
        fourth.publish(1, 1);
        fourth.take(2);
        assert_eq!(super::faults(fourth.origins()[2].0.load(Relaxed)), 0);
        // Later than what was taken by an earlier process.
        assert_eq!(heads(&region, 1), Ok(vec![1, 2]));
    }

    #[test]
    fn an_invalid_table_is_refused() {
        type Spoil = fn(&Inflight);
        let spoils: [(&str, Spoil); 6] = [
            ("its version is unknown", |table| {
                table.header().version.store(2, Relaxed);
            }),
            ("it belongs to a ring of another size", |table| {
                table.header().desc_num.store(SIZE * 2, Relaxed);
            }),
            ("more was answered than the ring holds", |table| {
                table.header().used_idx.store(1, Relaxed);
            }),
            ("its last batch leaves it", |table| {
                table.header().last_batch_head.store(SIZE, Relaxed);
            }),
            ("its last batch leaves it", |table| {
                table.entries()[2].next.store(65_535, Relaxed);
            }),
            ("its last batch is a loop", |table| {
                table.entries()[1].next.store(2, Relaxed);
            }),
        ];
        for (why, spoil) in spoils {
            let region = region();
            let mut table = table(&region);
            assert_eq!(table.open(65_532).unwrap(), None);
            for head in 0..4 {
                table.take(head);
            }
            for head in 0..3 {
                table.push(head);
            }
            assert_eq!(heads(&region, 65_535), Ok(vec![3]));
            spoil(&table);
            let error = heads(&region, 65_535).unwrap_err();
            assert!(error.ends_with(why), "{error}");
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        let short = Rc::new(MmapRegion::new(Inflight::bytes(SIZE) - 1).unwrap());
        assert!(Inflight::new(short, 0, SIZE).is_err());
        for at in [1, 8, usize::MAX] {
            assert!(Inflight::new(region(), at, SIZE).is_err());
        }
        let large = Rc::new(MmapRegion::new(Inflight::bytes(SIZE) + 8).unwrap());
        assert!(Inflight::new(large.clone(), 4, SIZE).is_err());
        assert!(Inflight::new(large, 8, SIZE).is_ok());
    }

    proptest! {
        #[test]
        fn any_table_is_read_or_refused(
            bytes in vec(any::<u8>(), Inflight::bytes(SIZE)),
            header in any::<bool>(),
            nexts in vec(0..SIZE + 1, usize::from(SIZE)),
            last in 0..SIZE + 1,
            answered in 0..SIZE + 2,
            used in any::<u16>(),
        ) {
            let region = region();
            region.as_volatile_slice().write_slice(&bytes, 0).unwrap();
            let mut table = table(&region);
            if header {
                table.header().version.store(VERSION, Relaxed);
                table.header().desc_num.store(SIZE, Relaxed);
                table.header().last_batch_head.store(last, Relaxed);
                table.header().used_idx.store(used.wrapping_sub(answered), Relaxed);
                for (entry, next) in table.entries().iter().zip(nexts) {
                    entry.next.store(next, Relaxed);
                    entry.inflight.fetch_and(1, Relaxed);
                }
            }
            table.blame();
            if let Ok(Some(lost)) = table.open(used) {
                let mut heads: Vec<u16> = lost.iter().map(|lost| lost.head).collect();
                heads.sort_unstable();
                heads.dedup();
                assert_eq!(heads.len(), lost.len());
                assert!(heads.iter().all(|&head| head < SIZE));
            }
            for head in 0..SIZE {
                table.take(head);
                table.push(head);
            }
            table.publish(SIZE, used.wrapping_add(SIZE));
        }
    }
}
