//! Driver and device at the same time, each waking the other only when it was asked to: a
//! notification that is lost stops both.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::EventFd;

use crate::front_end::feature;
use crate::guest_memory::GuestMemory;
use crate::machine::{BUFFERS, FEATURES, Machine, count, eventfd};
use crate::random::Random;
use ring_driver::{NO_NOTIFY, Ring, chained, readable, writable};

const REQUESTS: usize = 10_000;
/// The most that are made available at once.
const MOST: u16 = 3;

/// The heads of so many requests of two descriptors.
fn heads(count: u16) -> impl Iterator<Item = u16> {
    (0..count).map(|number| 2 * number)
}

/// The driver's part, on a thread of its own.
struct Driver {
    memory: GuestMemory,
    ring: Ring,
    kick: EventFd,
    call: EventFd,
    event_idx: bool,
}

impl Driver {
    /// Makes a few requests available, and kicks if the device wants it.
    fn post(&mut self, count: u16) {
        let old = self.ring.avail_idx;
        for head in heads(count) {
            fence(Ordering::Release);
            self.ring.publish(&self.memory, head);
        }
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            // The event is one of those that were just passed (virtio 1.2, 2.7.10).
            let event = self.ring.avail_event(&self.memory);
            let new = self.ring.avail_idx;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.ring.used_flags(&self.memory) & NO_NOTIFY == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Waits for something that was used.
    fn wait(&mut self) -> usize {
        loop {
            self.ring.set_used_event(&self.memory, self.ring.used_idx);
            fence(Ordering::SeqCst);
            let used = self.ring.take_used(&self.memory).len();
            if used > 0 {
                return used;
            }
            let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, 10_000_u16).unwrap();
            assert_eq!(ready, 1, "a notification was lost");
            count(&self.call);
        }
    }

    /// Makes its requests, says that it has finished, and kicks once more.
    fn drive(mut self, seed: u64, finished: &AtomicBool) {
        for head in heads(MOST) {
            let chain = chained(&[readable(BUFFERS, 8), writable(BUFFERS + 8, 8)], head);
            self.ring.describe(&self.memory, head, &chain);
        }
        let mut random = Random(seed);
        let mut done = 0;
        while done < REQUESTS {
            let count = 1 + random.below(MOST.into()) as u16;
            self.post(count);
            let mut left = usize::from(count);
            while left > 0 {
                left -= self.wait();
            }
            done += usize::from(count);
        }
        finished.store(true, Ordering::SeqCst);
        self.kick.write(1).unwrap();
    }
}

fn race(features: u64) {
    let mut machine = Machine::started_with(features);
    let driver = Driver {
        memory: std::mem::take(&mut machine.memory),
        ring: Ring::new(128, machine.ring.layout),
        kick: std::mem::replace(&mut machine.kick, eventfd()),
        call: std::mem::replace(&mut machine.call, eventfd()),
        event_idx: features & feature::EVENT_IDX != 0,
    };
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| driver.drive(features, &finished));
        while !finished.load(Ordering::SeqCst) {
            machine.event_loop.turn_when_ready();
        }
    });
    assert!(machine.handler.handled.get() >= REQUESTS);
}

#[test]
fn no_notification_is_lost() {
    race(FEATURES & !feature::EVENT_IDX);
}

#[test]
fn no_notification_is_lost_with_event_idx() {
    race(FEATURES);
}
