//! The way out: jobs from the loop to the workers, and which worker is awake for them.
//!
//! A worker is busy with a job, searching for one, or asleep. While one is searching nobody is
//! woken: it will find the job, and if it leaves others behind it wakes the next. Otherwise the
//! worker is woken that went to sleep last, whose caches are warm; the others may fall idle and
//! leave. All decisions are made under one short lock; only the search looks without it.

use std::collections::VecDeque;
use std::time::Duration;

use super::spin::Spin;
use crate::sync::{
    Arc, AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, Thread, lock, park_until, thread,
};

pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    /// How many jobs wait, for those who look without the lock.
    waiting: AtomicUsize,
    /// Signalled when a worker has left.
    left: Condvar,
    max_threads: usize,
    idle_time: Duration,
}

struct State<J> {
    jobs: VecDeque<J>,
    /// The one that went to sleep last at the end.
    asleep: Vec<Arc<Sleeper>>,
    searching: usize,
    threads: usize,
    ending: bool,
}

struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
}

/// What has to be done, without the lock, so that a job finds a worker.
#[must_use]
pub(crate) enum Next {
    /// Nothing.
    Nothing,
    /// Wake this one.
    Wake(Wake),
    /// Start a thread that calls [`Queue::work`]; it is counted already.
    Start,
}

/// A worker to be woken.
pub(crate) struct Wake(Arc<Sleeper>);

impl Wake {
    pub(crate) fn wake(self) {
        self.0.woken.store(true, Ordering::Release);
        self.0.thread.unpark();
    }
}

impl<J> Queue<J> {
    pub(crate) fn new(max_threads: usize, idle_time: Duration) -> Queue<J> {
        Queue {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                asleep: Vec::new(),
                searching: 0,
                threads: 0,
                ending: false,
            }),
            waiting: AtomicUsize::new(0),
            left: Condvar::new(),
            max_threads: max_threads.max(1),
            idle_time,
        }
    }

    /// Adds a job.
    pub(crate) fn submit(&self, job: J) -> Next {
        let mut state = lock(&self.state);
        state.jobs.push_back(job);
        self.waiting.store(state.jobs.len(), Ordering::Relaxed);
        self.find_worker(&mut state)
    }

    fn find_worker(&self, state: &mut State<J>) -> Next {
        if state.jobs.is_empty() || state.searching > 0 {
            return Next::Nothing;
        }
        // It counts as searching from now on, so that it is not woken for another job as well.
        if let Some(sleeper) = state.asleep.pop() {
            state.searching += 1;
            return Next::Wake(Wake(sleeper));
        }
        if state.threads < self.max_threads {
            state.threads += 1;
            state.searching += 1;
            return Next::Start;
        }
        Next::Nothing
    }

    /// The thread that [`Next::Start`] asked for could not be started. Returns the jobs that
    /// nobody will ever do, as there is no other worker.
    pub(crate) fn not_started(&self) -> VecDeque<J> {
        let mut state = lock(&self.state);
        state.threads -= 1;
        state.searching -= 1;
        if state.threads > 0 {
            return VecDeque::new();
        }
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut state.jobs)
    }

    /// A worker's life: takes job after job until there has been none for a while, or the end.
    /// `act` does what [`Next`] asks for.
    pub(crate) fn work(&self, act: impl Fn(Next), run: impl Fn(J)) {
        let me = Arc::new(Sleeper {
            thread: thread::current(),
            woken: AtomicBool::new(false),
        });
        let mut spin = Spin::new();
        while let Some(job) = self.take(&me, &mut spin, &act) {
            run(job);
            lock(&self.state).searching += 1;
        }
        self.left.notify_all();
    }

    /// The next job for a worker that counts as searching; None if it is to leave.
    fn take(&self, me: &Arc<Sleeper>, spin: &mut Spin, act: impl Fn(Next)) -> Option<J> {
        loop {
            spin.until(|| self.waiting.load(Ordering::Relaxed) > 0);
            let mut state = lock(&self.state);
            if let Some(job) = state.jobs.pop_front() {
                self.waiting.store(state.jobs.len(), Ordering::Relaxed);
                state.searching -= 1;
                let next = self.find_worker(&mut state);
                drop(state);
                act(next);
                return Some(job);
            }
            state.searching -= 1;
            if state.ending {
                state.threads -= 1;
                return None;
            }
            me.woken.store(false, Ordering::Relaxed);
            state.asleep.push(me.clone());
            drop(state);

            park_until(|| me.woken.load(Ordering::Acquire), self.idle_time);

            let mut state = lock(&self.state);
            if let Some(place) = state.asleep.iter().position(|other| Arc::ptr_eq(other, me)) {
                // Nobody has woken it: it is not needed.
                state.asleep.remove(place);
                state.threads -= 1;
                return None;
            }
        }
    }

    /// Ends the workers when they have no job any more, and waits until they have left.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ending = true;
        let asleep = std::mem::take(&mut state.asleep);
        state.searching += asleep.len();
        drop(state);
        for sleeper in asleep {
            Wake(sleeper).wake();
        }
        let mut state = lock(&self.state);
        while state.threads > 0 {
            state = self
                .left
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// Every order in which a loop and its workers can meet.
#[cfg(all(test, shuttle))]
mod model {
    use super::*;
    use crate::sync::thread;

    type Done = AtomicUsize;

    fn act(queue: &Arc<Queue<usize>>, done: &Arc<Done>, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Wake(worker) => worker.wake(),
            Next::Start => {
                let (queue, done) = (queue.clone(), done.clone());
                thread::spawn(move || {
                    queue.work(
                        |next| act(&queue, &done, next),
                        |job| {
                            done.fetch_add(job, Ordering::Relaxed);
                        },
                    );
                });
            }
        }
    }

    fn every_job_is_done(max_threads: usize, jobs: &'static [usize]) {
        shuttle::check_dfs(
            move || {
                let queue = Arc::new(Queue::new(max_threads, Duration::ZERO));
                let done = Arc::new(Done::new(0));
                for job in jobs {
                    act(&queue, &done, queue.submit(*job));
                }
                // Returns when the workers have left. A worker that sleeps over a job would be
                // reported as a deadlock, or leave the sum short.
                queue.end();
                assert_eq!(done.load(Ordering::Relaxed), jobs.iter().sum());
            },
            Some(200_000),
        );
    }

    #[test]
    fn one_worker_does_every_job() {
        every_job_is_done(1, &[1, 10]);
    }

    #[test]
    fn two_workers_do_every_job() {
        every_job_is_done(2, &[1, 10]);
    }
}
