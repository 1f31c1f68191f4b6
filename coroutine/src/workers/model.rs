//! The hub under loom, which tries every interleaving of its steps.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p coroutine --lib`

use std::ptr::NonNull;

use loom::sync::{Condvar, Mutex};

use super::hub::{self, Hub};
use super::job::Job;

/// Stands for the eventfd.
struct Flag {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn new() -> Flag {
        Flag {
            set: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    fn wait(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
        *set = false;
    }
}

impl hub::Event for Flag {
    fn signal(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// Submits a job that calls `run`.
fn submit_job(hub: &Hub<Flag>, run: unsafe fn(NonNull<Job>)) {
    let job = NonNull::from(Box::leak(Box::new(Job::with(run))));
    // SAFETY: the job is new, and is freed by `take_done`.
    unsafe { hub.submit(job) };
}

/// Submits a job that does nothing.
fn submit(hub: &Hub<Flag>) {
    submit_job(hub, |_| ());
}

/// Frees the completed jobs, and returns their number.
fn take_done(hub: &Hub<Flag>) -> usize {
    let mut list = hub.take_done();
    let mut count = 0;
    while let Some(job) = NonNull::new(list) {
        // SAFETY: only the loop uses a completed job, and it comes from the `Box` in `submit_job`.
        let job = unsafe { Box::from_raw(job.as_ptr()) };
        list = job.next.get();
        count += 1;
    }
    count
}

/// Runs the loop until `jobs` jobs are done. It sleeps whenever it may.
fn drain(hub: &Hub<Flag>, jobs: usize) {
    let mut done = 0;
    loop {
        done += take_done(hub);
        if done == jobs {
            break;
        }
        if hub.prepare_sleep() {
            hub.event.wait();
            assert!(hub.awake(), "the loop was woken without a signal");
        } else if hub.awake() {
            // A worker has signalled, or is about to.
            hub.event.wait();
        }
    }
}

fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// No wake-up is lost between the loop and one worker that both sleep whenever they may.
#[test]
fn one_worker() {
    check(Some(3), || {
        let hub = Hub::new(1, Flag::new(), Box::new(|| {}));
        submit(&hub);
        submit(&hub);
        drain(&hub, 2);
        hub.end();
    });
}

/// The worker goes to sleep between two jobs.
#[test]
fn a_worker_between_sleep_and_work() {
    check(Some(3), || {
        let hub = Hub::new(1, Flag::new(), Box::new(|| {}));
        for _ in 0..2 {
            submit(&hub);
            drain(&hub, 1);
        }
        hub.end();
    });
}

/// The first of two jobs ends only when the second is done: a job that blocks does not delay the
/// next one, although the loop sleeps.
#[test]
fn a_job_that_blocks() {
    loom::lazy_static! {
        static ref GATE: Flag = Flag::new();
    }
    check(Some(2), || {
        let hub = Hub::new(2, Flag::new(), Box::new(|| {}));
        submit_job(&hub, |_| GATE.wait());
        submit_job(&hub, |_| hub::Event::signal(&*GATE));
        drain(&hub, 2);
        hub.end();
    });
}

/// Two workers go to sleep while the loop submits a job: at least one of them sees it.
#[test]
fn two_workers() {
    check(Some(2), || {
        let hub = Hub::new(2, Flag::new(), Box::new(|| {}));
        for _ in 0..2 {
            submit(&hub);
        }
        drain(&hub, 2);
        submit(&hub);
        drain(&hub, 1);
        hub.end();
    });
}
