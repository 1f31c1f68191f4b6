//! The queues between the loop and the workers.
//!
//! ```text
//!   loop ──submit──▶ inbox ──▶ queue ──take──▶ worker ──complete──▶ done ──take_done──▶ loop
//!         (no lock)      (under the workers' lock)       (no lock)
//! ```
//!
//! `inbox` and `done` are lock-free stacks that are taken whole. So the loop never waits for a
//! worker that is preempted while it holds the lock.
//!
//! A worker is *awake* from the moment another thread wakes it until it goes to sleep. It is
//! *searching* while it is awake and has no job. Who wakes workers:
//! - The loop wakes one, the last that went to sleep, when it submits a job and none is awake.
//! - In each iteration the loop wakes another one if jobs are left, none was taken for
//!   [`PATIENCE`], and no worker is searching.
//! - Before it sleeps the loop wakes another one if jobs are left and no worker is searching.
//! - While the loop sleeps, a worker that takes a job does so.
//!
//! So one worker does a burst of short jobs, and a job that blocks delays the next one by at most
//! that time and an iteration of the loop.
//!
//! Each condition is a store followed by a load on both sides, all sequentially consistent, so that
//! at least one side sees the other's store:
//! - submit writes `inbox` and reads `awake`; a worker that goes to sleep writes `awake` and reads
//!   `inbox`;
//! - the loop writes `sleeping` and reads `inbox`, `backlog` and `searching`; a worker that takes a
//!   job writes those and reads `sleeping`;
//! - the loop writes `sleeping` and reads `done`; a worker that completes a job writes `done` and
//!   reads `sleeping`.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use super::job::Job;
use super::spin::{SEARCH, Spin};
use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicUsize, Mutex, MutexGuard,
    Ordering::{Acquire, Relaxed, SeqCst},
    Parker, seq_cst_fence, thread,
};

/// How long a job waits behind others, while the loop is awake, before another worker is woken for
/// it: waking a worker costs as much as several short jobs.
const PATIENCE: Duration = Duration::from_micros(10);
/// How long an idle worker waits before it ends.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Stack size of a worker, whose closures make system calls.
#[cfg(not(loom))]
const THREAD_STACK: usize = 256 * 1024;

#[cfg(not(loom))]
thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// A signal that wakes the loop.
pub(super) trait Event {
    fn signal(&self);
}

/// The state that the loop and the workers share.
pub(super) struct Hub<E>(Arc<Shared<E>>);

pub(super) struct Shared<E> {
    /// Submitted jobs that are not yet in the queue, the last first.
    inbox: AtomicPtr<Job>,
    /// Whether there are jobs in the queue.
    backlog: AtomicBool,
    /// Number of jobs taken from the queue.
    taken: AtomicUsize,
    awake: AtomicUsize,
    searching: AtomicUsize,
    queue: Mutex<Queue>,
    /// Completed jobs, the last first.
    done: AtomicPtr<Job>,
    /// Whether the loop is asleep, or about to be, and was not yet signalled.
    sleeping: AtomicBool,
    pub(super) max_threads: usize,
    start: Start,
    spin: Spin,
    pub(super) event: E,
}

/// The first function that a worker calls if the loop has started it.
pub(super) type Start = Box<dyn Fn() + Send + Sync>;

/// The loop's record of the workers' progress.
#[derive(Default)]
pub(super) struct Progress {
    /// Jobs taken by the last iteration of the loop.
    taken: Cell<usize>,
    /// Since when none was taken although jobs are left.
    since: Cell<Option<Instant>>,
}

/// The workers' common state.
struct Queue {
    first: *mut Job,
    /// Sleeping workers, in the order in which they went to sleep.
    idle: Vec<Parker>,
    threads: usize,
    ending: bool,
}

// SAFETY: another thread may run the jobs in the queue, and the thread that takes one out is the
// only one that uses it.
unsafe impl Send for Queue {}

// SAFETY: threads exchange jobs by the two atomic pointers and the locked queue, and the thread
// that takes one out is the only one that uses it. The other fields are Sync.
unsafe impl<E: Sync> Sync for Shared<E> {}
// SAFETY: the pointers refer to jobs, which another thread may run. The other fields are Send.
unsafe impl<E: Send> Send for Shared<E> {}

impl<E> Deref for Hub<E> {
    type Target = Shared<E>;

    fn deref(&self) -> &Shared<E> {
        &self.0
    }
}

impl<E: Event + Send + Sync + 'static> Hub<E> {
    pub(super) fn new(max_threads: usize, event: E, start: Start) -> Hub<E> {
        Hub(Arc::new(Shared {
            inbox: AtomicPtr::new(ptr::null_mut()),
            backlog: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            awake: AtomicUsize::new(0),
            searching: AtomicUsize::new(0),
            queue: Mutex::new(Queue {
                first: ptr::null_mut(),
                idle: Vec::new(),
                threads: 0,
                ending: false,
            }),
            done: AtomicPtr::new(ptr::null_mut()),
            sleeping: AtomicBool::new(false),
            max_threads: max_threads.max(1),
            start,
            spin: Spin::new(SEARCH),
            event,
        }))
    }

    // ---- the loop's side

    /// Submits a job to the workers.
    ///
    /// # Safety
    /// The job must be in no list. It must stay alive, and not be used otherwise, until
    /// [`take_done`](Hub::take_done) returns it.
    pub(super) unsafe fn submit(&self, job: NonNull<Job>) {
        // SAFETY: the caller promises that the job is in no list, alive, and not used otherwise.
        unsafe { push(&self.inbox, job) };
        seq_cst_fence();
        if self.awake.load(SeqCst) == 0 {
            self.wake_one();
        }
    }

    /// Wakes another worker if jobs are left and none was taken for [`PATIENCE`].
    pub(super) fn wake_if_stalled(&self, progress: &Progress) {
        if self.is_left() {
            let taken = self.taken.load(Relaxed);
            if progress.taken.replace(taken) != taken {
                progress.since.set(None);
                return;
            }
            match progress.since.get() {
                None => progress.since.set(Some(Instant::now())),
                Some(since) if since.elapsed() < PATIENCE => {}
                Some(_) => {
                    progress.since.set(None);
                    self.wake_for_backlog();
                }
            }
        }
    }

    /// Wakes another worker if jobs are left and none is searching.
    fn wake_for_backlog(&self) {
        if self.is_left() && self.searching.load(SeqCst) == 0 {
            self.wake_one();
        }
    }

    /// Takes the completed jobs, the first first.
    pub(super) fn take_done(&self) -> *mut Job {
        if self.done.load(Relaxed).is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the whole list is taken, and its jobs are alive until they are returned here.
        unsafe { reversed(self.done.swap(ptr::null_mut(), Acquire)) }
    }

    pub(super) fn is_done(&self) -> bool {
        !self.done.load(Relaxed).is_null()
    }

    /// Announces that the loop is about to sleep: from now on a completion signals it. Returns
    /// whether it may sleep.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.sleeping.swap(true, SeqCst);
        self.wake_for_backlog();
        seq_cst_fence();
        self.done.load(SeqCst).is_null()
    }

    /// Announces that the loop is awake. Returns whether a worker has signalled, or is about to.
    pub(super) fn awake(&self) -> bool {
        !self.sleeping.swap(false, SeqCst)
    }

    /// Makes the workers end when no jobs are left.
    pub(super) fn end(&self) {
        let mut queue = self.lock();
        queue.ending = true;
        let idle = std::mem::take(&mut queue.idle);
        self.awake.fetch_add(idle.len(), SeqCst);
        self.searching.fetch_add(idle.len(), SeqCst);
        drop(queue);
        idle.iter().for_each(Parker::unpark);
    }

    // ---- both sides

    /// Wakes the worker that went to sleep last, or starts one, and counts it as awake and
    /// searching.
    fn wake_one(&self) {
        let mut queue = self.lock();
        if let Some(worker) = queue.idle.pop() {
            self.awake.fetch_add(1, SeqCst);
            self.searching.fetch_add(1, SeqCst);
            drop(queue);
            worker.unpark();
        } else if queue.threads < self.max_threads {
            queue.threads += 1;
            self.awake.fetch_add(1, SeqCst);
            self.searching.fetch_add(1, SeqCst);
            drop(queue);
            if !self.start() {
                self.without_thread();
            }
        }
    }

    #[cfg(not(loom))]
    fn start(&self) -> bool {
        let hub = Hub(self.0.clone());
        let builder = thread::Builder::new()
            .name("worker".into())
            .stack_size(THREAD_STACK);
        // A thread inherits the attributes of the worker that starts it.
        let inherits = IS_WORKER.get();
        let life = move || {
            IS_WORKER.set(true);
            if !inherits {
                (hub.start)();
            }
            hub.work();
        };
        builder.spawn(life).is_ok()
    }

    #[cfg(loom)]
    fn start(&self) -> bool {
        let hub = Hub(self.0.clone());
        thread::spawn(move || {
            (hub.start)();
            hub.work();
        });
        true
    }

    /// Called when a thread could not be started. If there is no other, runs the jobs here.
    #[cold]
    fn without_thread(&self) {
        let mut queue = self.lock();
        queue.threads -= 1;
        self.awake.fetch_sub(1, SeqCst);
        self.searching.fetch_sub(1, SeqCst);
        while queue.threads == 0 {
            let Some(job) = self.next(&mut queue) else {
                return;
            };
            drop(queue);
            // SAFETY: the job was just taken from the queue.
            unsafe { self.run(job) };
            queue = self.lock();
        }
    }

    /// Whether there are jobs that no worker has taken.
    fn is_left(&self) -> bool {
        seq_cst_fence();
        !self.inbox.load(SeqCst).is_null() || self.backlog.load(SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code panics while it holds the lock.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // ---- the workers' side

    /// The main function of a worker, which starts awake and searching.
    fn work(&self) {
        let this = Parker::this();
        loop {
            // One spinning worker is enough.
            if self.searching.load(Relaxed) == 1 {
                self.spin.until(|| self.is_left());
            }
            let mut queue = self.lock();
            let Some(mut job) = self.next(&mut queue) else {
                if queue.ending || !self.sleep(&this, queue) {
                    break;
                }
                continue;
            };
            drop(queue);
            self.searching.fetch_sub(1, SeqCst);
            loop {
                // If the loop is awake it does this in its next iteration.
                seq_cst_fence();
                if self.sleeping.load(SeqCst) {
                    self.wake_for_backlog();
                }
                // SAFETY: the job was just taken from the queue.
                unsafe { self.run(job) };
                if !self.is_left() {
                    break;
                }
                match self.next(&mut self.lock()) {
                    Some(next) => job = next,
                    None => break,
                }
            }
            self.searching.fetch_add(1, SeqCst);
        }
    }

    /// Takes the oldest job.
    fn next(&self, queue: &mut Queue) -> Option<NonNull<Job>> {
        if queue.first.is_null() {
            // An empty inbox is not written to, as that would take the cache line from the loop.
            if self.inbox.load(Relaxed).is_null() {
                return None;
            }
            // SAFETY: the whole list is taken, and its jobs are alive until they are done.
            queue.first = unsafe { reversed(self.inbox.swap(ptr::null_mut(), SeqCst)) };
        }
        let job = NonNull::new(queue.first)?;
        // SAFETY: a job in the queue, which is locked, is alive and not used otherwise.
        queue.first = unsafe { job.as_ref() }.next.get();
        let backlog = !queue.first.is_null();
        if backlog != self.backlog.load(Relaxed) {
            self.backlog.store(backlog, SeqCst);
        }
        self.taken
            .store(self.taken.load(Relaxed).wrapping_add(1), Relaxed);
        Some(job)
    }

    /// Sleeps until there is work, and returns true, or returns false after [`IDLE_TIME`]. The
    /// locked queue must be empty.
    fn sleep(&self, this: &Parker, mut queue: MutexGuard<'_, Queue>) -> bool {
        queue.idle.push(this.clone());
        self.awake.fetch_sub(1, SeqCst);
        self.searching.fetch_sub(1, SeqCst);
        drop(queue);
        loop {
            // A job may have arrived before the loop could see that no worker is awake.
            if self.is_left() && self.wake_itself(this) {
                return true;
            }
            let timed_out = !this.park(IDLE_TIME);
            let mut queue = self.lock();
            let Some(place) = queue.place_of(this) else {
                // The thread that has woken this worker has counted it as awake.
                return true;
            };
            if timed_out && !self.is_left() {
                queue.idle.remove(place);
                queue.threads -= 1;
                return false;
            }
        }
    }

    /// Wakes the calling worker itself, unless another is searching already.
    fn wake_itself(&self, this: &Parker) -> bool {
        let mut queue = self.lock();
        let Some(place) = queue.place_of(this) else {
            return true;
        };
        if self.searching.load(SeqCst) > 0 {
            return false;
        }
        queue.idle.remove(place);
        self.awake.fetch_add(1, SeqCst);
        self.searching.fetch_add(1, SeqCst);
        true
    }

    /// Runs a job, and returns it to the loop.
    ///
    /// # Safety
    /// This thread must have taken the job from the queue.
    unsafe fn run(&self, job: NonNull<Job>) {
        // SAFETY: a job taken from the queue is only used by this thread, is in no list, and is
        // alive until the loop has it.
        unsafe {
            Job::run(job);
            push(&self.done, job);
        }
        // From here on the loop owns the job.
        seq_cst_fence();
        if self.sleeping.load(SeqCst) && self.sleeping.swap(false, SeqCst) {
            self.event.signal();
        }
    }
}

impl Queue {
    /// The position of a worker among the sleeping ones.
    fn place_of(&self, worker: &Parker) -> Option<usize> {
        self.idle.iter().position(|other| other.is(worker))
    }
}

/// Pushes a job to a lock-free stack.
///
/// # Safety
/// The job must be in no list and not be used otherwise. It must stay alive until it is taken from
/// the stack.
unsafe fn push(list: &AtomicPtr<Job>, job: NonNull<Job>) {
    let mut first = list.load(Relaxed);
    loop {
        // SAFETY: until it is on the stack the job is alive and only used by this thread.
        unsafe { job.as_ref() }.next.set(first);
        match list.compare_exchange_weak(first, job.as_ptr(), SeqCst, Relaxed) {
            Ok(_) => return,
            Err(other) => first = other,
        }
    }
}

/// Reverses a list.
///
/// # Safety
/// The jobs in the list must be alive and not be used otherwise.
unsafe fn reversed(mut list: *mut Job) -> *mut Job {
    let mut result = ptr::null_mut();
    // SAFETY: the caller promises that the jobs are alive and not used otherwise.
    while let Some(job) = unsafe { list.as_ref() } {
        list = job.next.replace(result);
        result = ptr::from_ref(job).cast_mut();
    }
    result
}
