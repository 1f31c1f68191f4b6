//! How fast a guest may be: requests and bytes per second.
//!
//! A leaky bucket: each request advances the moment at which everything let through so far is paid
//! for, and waits, as a coroutine, until that moment is no further away than a burst. Requests go
//! on in the order in which they came.
//!
//! The end of the session or of the ring cuts such waits short, because the next session, or the
//! front-end that stops the ring, must not wait for them. What is served too early is owed: until
//! it is paid for, no request is taken out of the ring, neither by this session nor by the next. So
//! in the long run no more passes than the rate allows, and at most what was in the ring passes too
//! early.

use std::cell::Cell;
use std::str::FromStr;
use std::time::{Duration, Instant};

use protocol::Tmessage;

use super::requests::{Failure, Running, Wake};

/// How much per second, and how much at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests or bytes each second; not 0.
    pub each_second: u64,
    /// Requests or bytes at once; not 0.
    pub burst: u64,
}

impl FromStr for Rate {
    type Err = String;

    /// `RATE` or `RATE,BURST`. The default burst is a tenth of a second's amount, and at least one.
    fn from_str(text: &str) -> Result<Rate, String> {
        let (rate, burst) = match text.split_once(',') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let number = |text: &str| text.parse().ok().filter(|number: &u64| *number > 0);
        let parsed = number(rate).and_then(|each_second| {
            let burst = burst.map_or(Some((each_second / 10).max(1)), number)?;
            Some(Rate { each_second, burst })
        });
        parsed.ok_or_else(|| "RATE or RATE,BURST is expected, whole numbers above 0".into())
    }
}

/// What is allowed; `None` for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Requests.
    pub requests: Option<Rate>,
    /// Bytes of files that are read and written.
    pub bytes: Option<Rate>,
    /// Reads, which count as requests as well.
    pub reads: Option<Rate>,
    /// Writes.
    pub writes: Option<Rate>,
    /// Bytes that are read.
    pub bytes_read: Option<Rate>,
    /// Bytes that are written.
    pub bytes_written: Option<Rate>,
}

/// What a limit counts of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Requests,
    Bytes,
    Reads,
    Writes,
    BytesRead,
    BytesWritten,
}

impl Counted {
    fn amount(self, message: &Tmessage<'_>) -> u64 {
        let (read, written) = match message {
            Tmessage::Read(read) => (Some(read.count), None),
            Tmessage::Write(write) => (None, Some(write.count)),
            _ => (None, None),
        };
        match self {
            Counted::Requests => 1,
            Counted::Bytes => read.or(written).unwrap_or(0).into(),
            Counted::Reads => read.is_some().into(),
            Counted::Writes => written.is_some().into(),
            Counted::BytesRead => read.unwrap_or(0).into(),
            Counted::BytesWritten => written.unwrap_or(0).into(),
        }
    }
}

/// Lets requests through as the rates allow.
pub struct Throttle {
    limits: Vec<(Counted, Bucket)>,
    /// Whether something was let through too early and may not be paid for yet.
    cut: Cell<bool>,
}

struct Bucket {
    rate: Rate,
    /// When everything let through so far is paid for.
    paid: Cell<Instant>,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        Bucket {
            rate,
            paid: Cell::new(Instant::now()),
        }
    }

    /// Lets `amount` through at the returned moment.
    fn reserve(&self, amount: u64, now: Instant) -> Instant {
        let from = self.paid.get().max(now);
        // A moment beyond the clock's range is never, whatever is added.
        let paid = from.checked_add(self.time(amount)).unwrap_or(from);
        self.paid.set(paid);
        // What is larger than a burst passes when the bucket is empty.
        let ahead = self.time(self.rate.burst.max(amount));
        paid.checked_sub(ahead).map_or(now, |begin| begin.max(now))
    }

    /// When everything let through, less one burst, is paid for.
    fn within_burst(&self) -> Instant {
        let paid = self.paid.get();
        paid.checked_sub(self.time(self.rate.burst)).unwrap_or(paid)
    }

    fn time(&self, amount: u64) -> Duration {
        Duration::from_secs_f64(amount as f64 / self.rate.each_second as f64)
    }
}

impl Throttle {
    /// Empty buckets.
    pub fn new(rates: Rates) -> Throttle {
        let limits = [
            (Counted::Requests, rates.requests),
            (Counted::Bytes, rates.bytes),
            (Counted::Reads, rates.reads),
            (Counted::Writes, rates.writes),
            (Counted::BytesRead, rates.bytes_read),
            (Counted::BytesWritten, rates.bytes_written),
        ];
        Throttle {
            limits: limits
                .into_iter()
                .filter_map(|(counted, rate)| Some((counted, Bucket::new(rate?))))
                .collect(),
            cut: Cell::new(false),
        }
    }

    /// Whether requests may be taken out of the ring.
    #[inline]
    pub fn takes(&self) -> bool {
        !self.cut.get() || self.is_paid(Instant::now())
    }

    /// Until when they may not, if they may not.
    pub fn held_until(&self) -> Option<Instant> {
        match self.takes() {
            true => None,
            false => Some(self.within_burst()?),
        }
    }

    /// Whether what was let through too early is paid for.
    fn is_paid(&self, now: Instant) -> bool {
        let paid = self.within_burst().is_none_or(|moment| moment <= now);
        self.cut.set(!paid);
        paid
    }

    fn within_burst(&self) -> Option<Instant> {
        let buckets = self.limits.iter().map(|(_, bucket)| bucket);
        buckets.map(Bucket::within_burst).max()
    }

    /// Returns when the request may be served: mostly at once. The end of the session or of the
    /// ring lets all waiting requests pass, and then none until they are paid for.
    #[inline]
    pub fn wait(&self, message: &Tmessage<'_>, running: &Running<'_>) -> Result<(), Failure> {
        if self.limits.is_empty() {
            return Ok(());
        }
        self.wait_for_turn(message, running)
    }

    /// Lets a request through at the returned moment, which each limit allows.
    fn reserve(&self, message: &Tmessage<'_>, now: Instant) -> Instant {
        let begins = self.limits.iter().filter_map(|(counted, bucket)| {
            let amount = counted.amount(message);
            (amount > 0).then(|| bucket.reserve(amount, now))
        });
        begins.max().unwrap_or(now)
    }

    fn wait_for_turn(&self, message: &Tmessage<'_>, running: &Running<'_>) -> Result<(), Failure> {
        // A request that ends something does not wait.
        if let Tmessage::Version(_) | Tmessage::Flush(_) | Tmessage::Clunk(_) = message {
            return Ok(());
        }
        let now = Instant::now();
        let begin = self.reserve(message, now);
        if begin == now {
            return Ok(());
        }
        loop {
            let left = begin.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match running.wait(left) {
                Wake::Retry => {}
                Wake::Flushed => return Err(Failure::Flushed),
                Wake::Stopped => {
                    self.cut.set(true);
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_in_time() {
        let bucket = Bucket::new("10,5".parse().unwrap());
        let now = Instant::now();
        let begins: Vec<_> = (0..8).map(|_| bucket.reserve(1, now) - now).collect();
        let expected = [0, 0, 0, 0, 0, 100, 200, 300].map(Duration::from_millis);
        for (begin, expected) in begins.iter().zip(expected) {
            assert!(
                begin.abs_diff(expected) < Duration::from_millis(1),
                "{begins:?}"
            );
        }
        // After a pause there is a burst again, and no more than one.
        let later = now + Duration::from_secs(60);
        let begins: Vec<_> = (0..6).map(|_| bucket.reserve(1, later) - later).collect();
        assert_eq!(begins.iter().filter(|begin| begin.is_zero()).count(), 5);
    }

    #[test]
    fn what_is_larger_than_a_burst_goes_and_is_paid_for_afterwards() {
        let bucket = Bucket::new("1000,10".parse().unwrap());
        let now = Instant::now();
        assert_eq!(bucket.reserve(5000, now), now);
        let next = bucket.reserve(1, now) - now;
        assert!(
            next.abs_diff(Duration::from_millis(4991)) < Duration::from_millis(1),
            "{next:?}"
        );
    }

    #[test]
    fn whatever_is_cut_short_no_more_goes_through_than_the_rate_and_one_ring() {
        const RING: u64 = 64;
        const ROUNDS: u64 = 100;
        let throttle = Throttle::new(Rates {
            requests: Some("1000000".parse().unwrap()),
            bytes: Some("1000,500".parse().unwrap()),
            ..Rates::default()
        });
        let (_, bytes) = &throttle.limits[1];
        let begin = Instant::now();
        let mut now = begin;
        let mut through = 0;
        for round in 0..ROUNDS {
            // A ring full of requests, the waits of which are cut short.
            assert!(throttle.is_paid(now));
            for _ in 0..RING {
                bytes.reserve(100, now);
                through += 100;
            }
            throttle.cut.set(true);
            let until = throttle.within_burst().unwrap();
            assert!(until > now && !throttle.is_paid(until - Duration::from_millis(1)));
            // Neither more of the same nor a new session changes that.
            assert!(throttle.cut.get(), "round {round}");
            now = until;
            let allowed = 500 + (now - begin).as_millis() as u64;
            assert!(through <= allowed + 1, "{through} of {allowed}");
        }
        assert!(throttle.is_paid(now) && !throttle.cut.get());
    }

    #[test]
    fn reads_and_writes_wait_for_their_own_limits() {
        let read = Tmessage::Read(protocol::Tread {
            fid: 1,
            offset: 0,
            count: 1000,
        });
        let write = Tmessage::Write(protocol::Twrite {
            fid: 1,
            offset: 0,
            count: 1000,
        });
        let other = Tmessage::Clunk(protocol::Tclunk { fid: 1 });
        let rate = |text: &str| Some(text.parse().unwrap());
        let none = Rates::default();
        for (rates, waits) in [
            (
                Rates {
                    requests: rate("1,1"),
                    ..none
                },
                [true, true, true],
            ),
            (
                Rates {
                    bytes: rate("1000,1000"),
                    ..none
                },
                [true, true, false],
            ),
            (
                Rates {
                    reads: rate("1,1"),
                    ..none
                },
                [true, false, false],
            ),
            (
                Rates {
                    writes: rate("1,1"),
                    ..none
                },
                [false, true, false],
            ),
            (
                Rates {
                    bytes_read: rate("1000,1000"),
                    ..none
                },
                [true, false, false],
            ),
            (
                Rates {
                    bytes_written: rate("1000,1000"),
                    ..none
                },
                [false, true, false],
            ),
        ] {
            let waited = [&read, &write, &other].map(|message| {
                let throttle = Throttle::new(rates);
                let now = Instant::now();
                assert_eq!(
                    throttle.reserve(message, now),
                    now,
                    "the first goes at once"
                );
                throttle.reserve(message, now) > now
            });
            assert_eq!(waited, waits, "{rates:?}");
        }
        // The slowest of several decides.
        let throttle = Throttle::new(Rates {
            bytes: rate("1000000"),
            bytes_written: rate("100,100"),
            ..none
        });
        let now = Instant::now();
        for _ in 0..2 {
            throttle.reserve(&write, now);
        }
        assert!(throttle.reserve(&write, now) - now >= Duration::from_secs(19));
        assert!(throttle.reserve(&read, now) - now < Duration::from_secs(1));
    }

    #[test]
    fn the_largest_requests_are_owed_and_no_fault() {
        let bucket = Bucket::new("1".parse().unwrap());
        let now = Instant::now();
        // Nearly all that the clock can say.
        let end = Duration::from_secs(i64::MAX as u64 - 10_000_000_000);
        bucket.paid.set(now + end);
        for _ in 0..4 {
            assert!(bucket.reserve(u32::MAX.into(), now) > now + end / 2);
        }
    }

    #[test]
    fn rates_are_read() {
        let rate = |text: &str| {
            text.parse::<Rate>()
                .ok()
                .map(|rate| (rate.each_second, rate.burst))
        };
        assert_eq!(rate("1000"), Some((1000, 100)));
        assert_eq!(rate("3"), Some((3, 1)));
        assert_eq!(rate("3,40"), Some((3, 40)));
        for wrong in ["", "0", "5,0", "-1", "5,", "1,2,3", "1k"] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }
}
