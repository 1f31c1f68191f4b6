//! Arithmetic of locked bytes: what remains of a range, and the union of many.

use std::collections::BTreeMap;

use nix::errno::Errno;

/// How bytes are locked, the strongest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Not at all.
    Free,
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

/// Some bytes and how they are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// How.
    pub kind: Kind,
    /// The first byte.
    pub start: i64,
    /// The last byte, `i64::MAX` for the end of the file wherever it is.
    pub end: i64,
}

impl Range {
    /// All bytes, free.
    pub const WHOLE: Range = Range {
        kind: Kind::Free,
        start: 0,
        end: i64::MAX,
    };

    /// From a start and a length as the protocol has them; length 0 reaches to the end. Errors:
    /// EINVAL for a range that starts, EOVERFLOW for one that ends behind the largest offset.
    pub fn new(kind: Kind, start: u64, length: u64) -> Result<Range, Errno> {
        let start = i64::try_from(start).map_err(|_| Errno::EINVAL)?;
        let end = match length {
            0 => i64::MAX,
            _ => i64::try_from(length - 1)
                .ok()
                .and_then(|more| start.checked_add(more))
                .ok_or(Errno::EOVERFLOW)?,
        };
        Ok(Range { kind, start, end })
    }

    /// How many bytes; 0 means up to the end.
    pub fn length(&self) -> u64 {
        if self.end == i64::MAX {
            0
        } else {
            (self.end - self.start + 1) as u64
        }
    }

    /// Whether it is the whole file, however long it gets.
    pub fn is_whole(&self) -> bool {
        (self.start, self.end) == (0, i64::MAX)
    }

    /// Whether they have bytes in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// The parts outside of `hole`.
    pub fn without(self, hole: &Range) -> impl Iterator<Item = Range> + use<> {
        let before = (self.start < hole.start).then(|| Range {
            end: self.end.min(hole.start - 1),
            ..self
        });
        let behind = (self.end > hole.end).then(|| Range {
            start: self.start.max(hole.end + 1),
            ..self
        });
        before.into_iter().chain(behind)
    }
}

/// The union of any number of ranges: each byte is locked as by the strongest of them.
///
/// It keeps how often bytes are locked at each place where that changes. A small range costs
/// little, however many others there are.
#[derive(Debug, Default)]
pub struct Union(BTreeMap<u64, Count>);

/// Ranges to add to a union and to remove from it: where, and by how much, its sums change.
#[derive(Debug, Default)]
pub struct Change(BTreeMap<u64, Count>);

/// How many ranges lock a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    readers: isize,
    writers: isize,
}

impl Change {
    /// Adds a range.
    pub fn add(&mut self, range: &Range) {
        self.count(range, 1);
    }

    /// Removes a range.
    pub fn remove(&mut self, range: &Range) {
        self.count(range, -1);
    }

    fn count(&mut self, range: &Range, by: isize) {
        for (place, by) in [(range.start as u64, by), (range.end as u64 + 1, -by)] {
            let count = match range.kind {
                Kind::Free => continue,
                Kind::Read => Count::new(by, 0),
                Kind::Write => Count::new(0, by),
            };
            let sum = self.0.entry(place).or_default();
            *sum = sum.plus(count);
        }
    }

    /// The change that undoes this one.
    pub fn back(mut self) -> Change {
        for count in self.0.values_mut() {
            *count = Count::new(-count.readers, -count.writers);
        }
        self
    }
}

impl Union {
    /// Applies a change and returns the bytes whose lock changes, in as few pieces as possible.
    /// They come in the order in which to tell the host: first those that get a stronger lock,
    /// which alone can be refused, so that nothing is released before everything is granted. And
    /// from the last to the first: the kernel looks through the ranges before.
    pub fn apply(&mut self, change: &Change) -> Vec<Range> {
        let (Some((&first, _)), Some((&last, _))) =
            (change.0.first_key_value(), change.0.last_key_value())
        else {
            return Vec::new();
        };
        for place in change.0.keys() {
            let count = self.at(*place);
            self.0.entry(*place).or_insert(count);
        }
        let (mut stronger, mut weaker) = (Pieces::default(), Pieces::default());
        let mut sum = Count::default();
        for (place, count) in self.0.range_mut(first..=last) {
            sum = sum.plus(change.0.get(place).copied().unwrap_or_default());
            let before = count.kind();
            *count = count.plus(sum);
            let now = count.kind();
            let between = before.max(now);
            stronger.next(*place, before, between);
            weaker.next(*place, between, now);
        }
        self.join(first, last);
        let pieces = [stronger.done, weaker.done];
        pieces
            .into_iter()
            .flat_map(|done| done.into_iter().rev())
            .collect()
    }

    /// What is locked, in as few pieces as possible.
    pub fn ranges(&self) -> Vec<Range> {
        let mut pieces = Pieces::default();
        for (place, count) in &self.0 {
            pieces.next(*place, Kind::Free, count.kind());
        }
        pieces.done
    }

    /// How often a byte is locked.
    fn at(&self, place: u64) -> Count {
        let known = self.0.range(..=place).next_back();
        known.map(|(_, count)| *count).unwrap_or_default()
    }

    /// Forgets the places where nothing changes.
    fn join(&mut self, first: u64, last: u64) {
        let before = first.checked_sub(1);
        let mut last_count = before.map(|place| self.at(place)).unwrap_or_default();
        let same = self.0.range(first..=last).filter_map(|(place, count)| {
            let before = std::mem::replace(&mut last_count, *count);
            (before == *count).then_some(*place)
        });
        for place in same.collect::<Vec<_>>() {
            self.0.remove(&place);
        }
    }
}

/// Joins bytes to pieces.
#[derive(Default)]
struct Pieces {
    done: Vec<Range>,
    /// Where the last bytes begin that are locked in this way and were locked in that.
    open: Option<(u64, Kind, Kind)>,
    /// Whether all bytes since the last piece are locked alike.
    adjoins: bool,
}

impl Pieces {
    /// Says that from `place` on bytes are locked as `now` and were locked as `before`.
    fn next(&mut self, place: u64, before: Kind, now: Kind) {
        if let Some((start, before, now)) = self.open.replace((place, before, now)) {
            self.push(start, place, before, now);
        }
    }

    fn push(&mut self, start: u64, end: u64, before: Kind, kind: Kind) {
        let (start, end) = (start as i64, (end - 1) as i64);
        let last = self.done.last_mut().filter(|last| last.kind == kind);
        match last.filter(|_| self.adjoins) {
            Some(last) if before != kind => last.end = end,
            Some(_) => {}
            None if before != kind => {
                self.done.push(Range { kind, start, end });
                self.adjoins = true;
            }
            None => self.adjoins = false,
        }
    }
}

impl Count {
    fn new(readers: isize, writers: isize) -> Count {
        Count { readers, writers }
    }

    fn plus(self, other: Count) -> Count {
        Count::new(self.readers + other.readers, self.writers + other.writers)
    }

    fn kind(self) -> Kind {
        match self {
            Count { writers: 1.., .. } => Kind::Write,
            Count { readers: 1.., .. } => Kind::Read,
            _ => Kind::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Free, Read, Write};
    use super::*;

    const MAX: i64 = i64::MAX;

    fn range(kind: Kind, start: i64, end: i64) -> Range {
        Range { kind, start, end }
    }

    /// Some ranges more, and some less.
    fn change(more: &[Range], less: &[Range]) -> Change {
        let mut change = Change::default();
        more.iter().for_each(|range| change.add(range));
        less.iter().for_each(|range| change.remove(range));
        change
    }

    #[test]
    fn lengths_and_ends_agree() {
        assert_eq!(Range::new(Read, 5, 0).unwrap().end, MAX);
        assert_eq!(Range::new(Read, 5, 1).unwrap(), range(Read, 5, 5));
        assert_eq!(Range::new(Read, 5, 10).unwrap().length(), 10);
        assert_eq!(Range::new(Read, 5, 0).unwrap().length(), 0);
        assert_eq!(Range::new(Read, 1 << 63, 1), Err(Errno::EINVAL));
        assert_eq!(Range::new(Read, MAX as u64, 2), Err(Errno::EOVERFLOW));
        assert_eq!(Range::new(Read, 0, 1 << 63).unwrap().end, MAX);
        assert!(Range::new(Read, 0, 0).unwrap().is_whole());
        assert!(!Range::new(Read, 1, 0).unwrap().is_whole());
    }

    #[test]
    fn a_hole_leaves_what_is_before_and_behind_it() {
        let without = |hole| {
            range(Read, 10, 19)
                .without(&hole)
                .map(|left| (left.start, left.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(without(range(Free, 12, 14)), [(10, 11), (15, 19)]);
        assert_eq!(without(range(Free, 0, 14)), [(15, 19)]);
        assert_eq!(without(range(Free, 19, MAX)), [(10, 18)]);
        assert_eq!(without(range(Free, 0, MAX)), []);
        assert_eq!(without(range(Free, 20, MAX)), [(10, 19)]);
    }

    #[test]
    fn a_byte_is_locked_as_the_strongest_range_has_it() {
        let mut union = Union::default();
        let mut apply = |more: &[Range], less: &[Range]| union.apply(&change(more, less));
        let whole = range(Read, 0, MAX);
        assert_eq!(apply(&[whole], &[]), [whole]);
        assert_eq!(apply(&[range(Read, 10, 19)], &[]), []);
        assert_eq!(
            apply(&[range(Write, 15, 29), range(Write, MAX, MAX)], &[]),
            [range(Write, MAX, MAX), range(Write, 15, 29)]
        );
        // Another's bytes in between are asked for as well: it is one question.
        assert_eq!(apply(&[range(Write, 10, 39)], &[]), [range(Write, 10, 39)]);
        assert_eq!(
            apply(&[], &[range(Write, 10, 39)]),
            [range(Read, 30, 39), range(Read, 10, 14)]
        );
        assert_eq!(
            apply(&[], &[whole]),
            [range(Free, 30, MAX - 1), range(Free, 0, 9)]
        );
        assert_eq!(
            apply(&[range(Read, 15, 29)], &[range(Write, 15, 29)]),
            [range(Read, 15, 29)]
        );
        assert_eq!(
            apply(&[], &[range(Read, 10, 19), range(Read, 15, 29)]),
            [range(Free, 10, 29)]
        );
        assert_eq!(
            apply(&[], &[range(Write, MAX, MAX)]),
            [range(Free, MAX, MAX)]
        );
        assert_eq!(union.0, BTreeMap::new());
    }

    #[test]
    fn what_is_freed_at_once_is_one_piece() {
        let ranges: Vec<Range> = (0..4000).map(|n| range(Write, 2 * n, 2 * n)).collect();
        let mut union = Union::default();
        let pieces = union.apply(&change(&ranges, &[]));
        assert!(pieces.iter().rev().eq(&ranges));
        let back = union.apply(&change(&ranges, &[]).back());
        assert_eq!(back, [range(Free, 0, 7998)]);
        assert_eq!(union.0, BTreeMap::new());
    }

    /// What a union says must be what one gets byte by byte.
    #[test]
    fn a_union_is_the_sum_of_its_ranges() {
        const BYTES: i64 = 40;
        let mut state = 7_u64;
        let mut next = move |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        };
        let mut union = Union::default();
        let mut ranges: Vec<Range> = Vec::new();
        // As the host knows it, by the pieces.
        let mut host = [Free; BYTES as usize];
        for _ in 0..2000 {
            let mut change = Change::default();
            for _ in 0..1 + next(3) {
                if next(2) == 0 && !ranges.is_empty() {
                    change.remove(&ranges.swap_remove(next(ranges.len())));
                } else {
                    let kind = if next(2) == 0 { Read } else { Write };
                    let start = next(30) as i64;
                    let range = range(kind, start, start + next(8) as i64);
                    change.add(&range);
                    ranges.push(range);
                }
            }
            let mut gives_up = false;
            for piece in union.apply(&change) {
                let bytes = &mut host[piece.start as usize..=piece.end as usize];
                for end in [bytes.first(), bytes.last()] {
                    assert_ne!(end, Some(&piece.kind));
                }
                // Nothing is asked for once something was given up.
                gives_up |= bytes.iter().any(|kind| *kind > piece.kind);
                assert!(!gives_up || bytes.iter().all(|kind| *kind >= piece.kind));
                bytes.fill(piece.kind);
            }
            for (byte, kind) in (0..).zip(host) {
                let at = |range: &&Range| (range.start..=range.end).contains(&byte);
                let strongest = ranges.iter().filter(at).map(|range| range.kind).max();
                assert_eq!(strongest.unwrap_or(Free), kind, "{byte}");
            }
            let mut known = [Free; BYTES as usize];
            for range in union.ranges() {
                known[range.start as usize..=range.end as usize].fill(range.kind);
            }
            assert_eq!(known, host);
        }
    }
}
