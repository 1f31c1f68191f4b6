//! Ids of the guest and of the host, where they differ.

use std::ops::Range;
use std::str::FromStr;

use nix::errno::Errno;

/// The id that means none; never translated.
const NONE: u32 = u32::MAX;

/// One rule of `--translate-uid` or `--translate-gid`: its type and numbers, separated by colons,
/// as in virtiofsd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Translation {
    /// `map:GUEST:HOST:COUNT`, in both directions.
    Map(Shift),
    /// `guest:GUEST:HOST:COUNT`, only from the guest to the host.
    Guest(Shift),
    /// `host:HOST:GUEST:COUNT`, only from the host to the guest.
    Host(Shift),
    /// `squash-guest:FIRST:HOST:COUNT`: all of a range of the guest become one of the host.
    SquashGuest(Shift),
    /// `squash-host:FIRST:GUEST:COUNT`: all of a range of the host are shown as one.
    SquashHost(Shift),
    /// `forbid-guest:FIRST:COUNT`: requests of the guest with these ids get EPERM.
    ForbidGuest(Range<u64>),
}

/// A range of ids and what its first id becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    /// The ids that are translated.
    pub from: Range<u64>,
    /// The first, or the only, id that they become.
    pub to: u32,
}

/// The translation of one kind of id, users or groups. Ids without a rule stay as they are.
#[derive(Clone, Debug, Default)]
pub struct IdMap {
    to_host: Vec<(Range<u64>, Image)>,
    to_guest: Vec<(Range<u64>, Image)>,
}

/// What a range becomes.
#[derive(Clone, Copy, Debug)]
enum Image {
    From(u32),
    One(u32),
    Forbidden,
}

impl FromStr for Translation {
    type Err = String;

    fn from_str(text: &str) -> Result<Translation, String> {
        let (kind, numbers) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Vec<u32> = numbers
            .split(':')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| "expected TYPE:FIRST:TO:COUNT, the last three being numbers")?;
        let range = |first: u32, count: u32| {
            let range = first.into()..u64::from(first) + u64::from(count);
            if range.is_empty() || range.end > NONE.into() {
                Err("the ids go from 0 to 4294967294, and there is at least one")
            } else {
                Ok(range)
            }
        };
        if kind == "forbid-guest" {
            return match numbers[..] {
                [first, count] => Ok(Translation::ForbidGuest(range(first, count)?)),
                _ => Err("expected forbid-guest:FIRST:COUNT".into()),
            };
        }
        let [first, to, count] = numbers[..] else {
            return Err("expected TYPE:FIRST:TO:COUNT".into());
        };
        let from = range(first, count)?;
        let shift = Shift { from, to };
        let becomes = if kind.starts_with("squash") { 1 } else { count };
        // The results have to be ids, too.
        range(to, becomes)?;
        let translation = match kind {
            "map" => Translation::Map(shift),
            "guest" => Translation::Guest(shift),
            "host" => Translation::Host(shift),
            "squash-guest" => Translation::SquashGuest(shift),
            "squash-host" => Translation::SquashHost(shift),
            _ => {
                return Err(
                    "the type is one of map, guest, host, squash-guest, squash-host, \
                            forbid-guest"
                        .into(),
                );
            }
        };
        Ok(translation)
    }
}

impl IdMap {
    /// From rules in any order. Errors: a text, if two of them translate the same id.
    pub fn new(rules: &[Translation]) -> Result<IdMap, String> {
        let mut map = IdMap::default();
        for rule in rules {
            match rule {
                Translation::Map(Shift { from, to }) => {
                    let back = u64::from(*to)..u64::from(*to) + (from.end - from.start);
                    map.to_host.push((from.clone(), Image::From(*to)));
                    // The range starts with an id, which has 32 bits.
                    map.to_guest.push((back, Image::From(from.start as u32)));
                }
                Translation::Guest(Shift { from, to }) => {
                    map.to_host.push((from.clone(), Image::From(*to)));
                }
                Translation::Host(Shift { from, to }) => {
                    map.to_guest.push((from.clone(), Image::From(*to)));
                }
                Translation::SquashGuest(Shift { from, to }) => {
                    map.to_host.push((from.clone(), Image::One(*to)));
                }
                Translation::SquashHost(Shift { from, to }) => {
                    map.to_guest.push((from.clone(), Image::One(*to)));
                }
                Translation::ForbidGuest(from) => {
                    map.to_host.push((from.clone(), Image::Forbidden));
                }
            }
        }
        for (ranges, whose) in [(&mut map.to_host, "guest"), (&mut map.to_guest, "host")] {
            ranges.sort_by_key(|(range, _)| range.start);
            if let Some(pair) = ranges
                .windows(2)
                .find(|pair| pair[0].0.end > pair[1].0.start)
            {
                let id = pair[1].0.start;
                return Err(format!("the {whose}'s id {id} is translated by two rules"));
            }
        }
        Ok(map)
    }

    /// The host's id for a guest's id. Errors: EPERM for a forbidden one.
    pub fn to_host(&self, id: u32) -> Result<u32, Errno> {
        translate(&self.to_host, id).ok_or(Errno::EPERM)
    }

    /// Whether a rule makes an id of the guest one of the host that is not among these.
    pub fn leads_beyond(&self, ids: &[u32]) -> bool {
        self.to_host.iter().any(|(range, image)| match *image {
            Image::Forbidden => false,
            Image::One(to) => !ids.contains(&to),
            // The first that is none of them comes soon: they are few.
            Image::From(to) => (0..range.end - range.start)
                .any(|at| !ids.contains(&(u64::from(to) + at).try_into().unwrap_or(NONE))),
        })
    }

    /// The guest's id for a host's id.
    pub fn to_guest(&self, id: u32) -> u32 {
        // No id is forbidden in this direction.
        translate(&self.to_guest, id).unwrap_or(id)
    }
}

fn translate(ranges: &[(Range<u64>, Image)], id: u32) -> Option<u32> {
    if id == NONE {
        return Some(id);
    }
    let number = u64::from(id);
    let behind = ranges.partition_point(|(range, _)| range.end <= number);
    match ranges
        .get(behind)
        .filter(|(range, _)| range.contains(&number))
    {
        None => Some(id),
        Some((_, Image::Forbidden)) => None,
        Some((_, Image::One(to))) => Some(*to),
        // Checked when the rule was read: the sum is an id.
        Some((range, Image::From(to))) => Some(to + (number - range.start) as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rules: &[&str]) -> Result<IdMap, String> {
        let rules: Vec<Translation> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        IdMap::new(&rules)
    }

    #[test]
    fn a_map_goes_both_ways_and_the_rest_stays() {
        let map = map(&["map:0:100000:65536", "map:70000:5:1"]).unwrap();
        for (guest, host) in [(0, 100_000), (65_535, 165_535), (70_000, 5)] {
            assert_eq!(map.to_host(guest), Ok(host));
            assert_eq!(map.to_guest(host), guest);
        }
        assert_eq!(map.to_host(65_536), Ok(65_536));
        assert_eq!(map.to_guest(99_999), 99_999);
        assert_eq!(map.to_guest(165_536), 165_536);
        assert_eq!(map.to_host(NONE), Ok(NONE));
    }

    #[test]
    fn squashed_and_forbidden_ids() {
        let map = map(&[
            "squash-guest:0:65534:1000",
            "forbid-guest:1000:1",
            "guest:1001:7:2",
            "squash-host:0:65534:100",
            "host:1000:0:1",
        ])
        .unwrap();
        assert_eq!(map.to_host(0), Ok(65_534));
        assert_eq!(map.to_host(999), Ok(65_534));
        assert_eq!(map.to_host(1000), Err(Errno::EPERM));
        assert_eq!(map.to_host(1002), Ok(8));
        assert_eq!(map.to_guest(99), 65_534);
        assert_eq!(map.to_guest(1000), 0);
        assert_eq!(map.to_guest(7), 65_534);
    }

    #[test]
    fn the_largest_range_is_every_id() {
        let squash = map(&["squash-guest:0:1:4294967295"]).unwrap();
        assert_eq!(squash.to_host(4_294_967_294), Ok(1));
        let map = map(&["map:0:0:4294967295"]).unwrap();
        assert_eq!(map.to_host(4_294_967_294), Ok(4_294_967_294));
    }

    #[test]
    fn rules_may_lead_beyond_the_ids_that_the_daemon_has() {
        let own = [1000, 4];
        for (rule, beyond) in [
            ("map:0:1000:1", false),
            ("squash-guest:0:1000:65536", false),
            ("forbid-guest:0:10", false),
            ("host:0:5:1", false),
            ("squash-host:0:5:1000", false),
            ("map:0:1000:2", true),
            ("guest:0:0:1", true),
            ("squash-guest:0:65534:1", true),
            ("map:0:0:4294967295", true),
        ] {
            assert_eq!(map(&[rule]).unwrap().leads_beyond(&own), beyond, "{rule}");
        }
        assert!(!IdMap::default().leads_beyond(&[]));
    }

    #[test]
    fn mistakes_are_told() {
        for text in [
            "",
            "map",
            "map:1:2",
            "map:1:2:3:4",
            "map:a:2:3",
            "map:-1:2:3",
            "map:1:2:0",
            "map:4294967295:0:1",
            "map:0:4294967290:100",
            "forbid-guest:1:2:3",
            "swap:1:2:3",
        ] {
            assert!(text.parse::<Translation>().is_err(), "{text}");
        }
        assert!(map(&["map:0:100:10", "guest:9:0:1"]).is_err());
        assert!(map(&["map:0:100:10", "map:50:109:1"]).is_err());
        assert!(map(&["map:0:100:10", "map:10:110:10"]).is_ok());
    }
}
