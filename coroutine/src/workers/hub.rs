//! Where the loop and the workers meet.
//!
//! ```text
//!   loop ──submit──▶ inbox ──▶ queue ──take──▶ worker ──complete──▶ done ──take_done──▶ loop
//!         (no lock)      (under the workers' lock)       (no lock)
//! ```
//!
//! `inbox` and `done` are stacks that grow at the head and are taken whole, so that the loop never
//! waits for a worker that has been put off the processor with a lock in its hands.
//!
//! Who wakes whom. A worker is *awake* from when it is woken, by who wakes it, until it goes to
//! sleep, and *searching* while it is awake and has no job.
//! - The loop wakes one, the last that slept, when it submits and none is awake.
//! - At each of its turns it wakes one more if jobs are left, none was taken for a while, and no
//!   worker is searching.
//! - Before it sleeps it wakes one more if jobs are left and no worker is searching.
//! - While the loop sleeps, a worker that takes a job does the same.
//!
//! So a burst of short jobs is done by one worker, and a job that blocks holds no other up for
//! longer than that while and a turn of the loop.
//!
//! Each of these conditions is a store followed by a load on both sides, of which one at least
//! sees the other's (all sequentially consistent): submit writes `inbox` and reads `awake`, a
//! worker that goes to sleep writes `awake` and reads `inbox`; the loop writes `sleeping` and reads
//! what is left and who searches, a worker that takes a job the other way round; the loop writes
//! `sleeping` and reads `done`, a worker that completes the other way round.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use super::job::Job;
use super::spin::{SEARCH, Spin};
use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicUsize, Mutex, MutexGuard,
    Ordering::{Acquire, Relaxed, SeqCst},
    Parker, in_order, thread,
};

/// How long a job waits behind others before another worker is woken for it, while the loop is
/// awake: waking one costs as much as some short jobs.
const PATIENCE: Duration = Duration::from_micros(10);
/// How long a worker without work stays.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Stack of a worker, which runs closures of system calls.
#[cfg(not(loom))]
const THREAD_STACK: usize = 256 * 1024;

#[cfg(not(loom))]
thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// What wakes the loop.
pub(super) trait Event {
    fn signal(&self);
}

/// All of it, known to the loop and to each worker.
pub(super) struct Hub<E>(Arc<Shared<E>>);

pub(super) struct Shared<E> {
    /// Jobs submitted and not yet put into the queue, the last first.
    inbox: AtomicPtr<Job>,
    /// Whether there are jobs in the queue.
    backlog: AtomicBool,
    /// How many jobs were taken from the queue.
    taken: AtomicUsize,
    awake: AtomicUsize,
    searching: AtomicUsize,
    queue: Mutex<Queue>,
    /// Jobs done, the last first.
    done: AtomicPtr<Job>,
    /// Whether the loop is, or is about to be, asleep, and nobody has signalled it yet.
    sleeping: AtomicBool,
    pub(super) max_threads: usize,
    start: Start,
    spin: Spin,
    pub(super) event: E,
}

/// What a worker that the loop starts does first.
pub(super) type Start = Box<dyn Fn() + Send + Sync>;

/// What the loop knows of how the workers get on.
#[derive(Default)]
pub(super) struct Progress {
    /// Jobs that they had taken at the last turn.
    taken: Cell<usize>,
    /// Since when they have taken none, though there are some.
    since: Cell<Option<Instant>>,
}

/// What belongs to the workers together.
struct Queue {
    first: *mut Job,
    /// Workers that sleep, the last that went to sleep at the end.
    idle: Vec<Parker>,
    threads: usize,
    ending: bool,
}

// SAFETY: the jobs in it are made to be run by another thread, and whoever takes one out has it
// alone.
unsafe impl Send for Queue {}

// SAFETY: threads share jobs by the two atomic pointers and by the queue, which is locked, and whoever
// takes one out has it alone. The rest is Sync by itself.
unsafe impl<E: Sync> Sync for Shared<E> {}
// SAFETY: what the pointers lead to are jobs, which are made to be run by another thread. The rest is
// Send by itself.
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

    /// Gives a job to the workers.
    ///
    /// # Safety
    /// The job must be in no list, and stay alive, used by nobody else, until
    /// [`take_done`](Hub::take_done) returns it.
    pub(super) unsafe fn submit(&self, job: NonNull<Job>) {
        // SAFETY: the caller says that the job is in no list, alive, and used by nobody else.
        unsafe { push(&self.inbox, job) };
        in_order();
        if self.awake.load(SeqCst) == 0 {
            self.wake_one();
        }
    }

    /// Wakes one more worker if jobs are left and nobody has taken one for [`PATIENCE`].
    pub(super) fn see_to_progress(&self, progress: &Progress) {
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
                    self.see_to_the_rest();
                }
            }
        }
    }

    /// Wakes one more worker if jobs are left and none is searching.
    fn see_to_the_rest(&self) {
        if self.is_left() && self.searching.load(SeqCst) == 0 {
            self.wake_one();
        }
    }

    /// Jobs that are done, the first first.
    pub(super) fn take_done(&self) -> *mut Job {
        if self.done.load(Relaxed).is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the list is taken whole, of jobs that are alive until they are returned here.
        unsafe { reversed(self.done.swap(ptr::null_mut(), Acquire)) }
    }

    pub(super) fn is_done(&self) -> bool {
        !self.done.load(Relaxed).is_null()
    }

    /// Whether the loop may sleep: from now on a completion signals it.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.sleeping.swap(true, SeqCst);
        self.see_to_the_rest();
        in_order();
        self.done.load(SeqCst).is_null()
    }

    /// The loop is awake. Whether a signal has been, or is about to be, given.
    pub(super) fn awake(&self) -> bool {
        !self.sleeping.swap(false, SeqCst)
    }

    /// Lets the workers end when there is nothing left to do.
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

    /// Wakes the worker that slept last, or starts one. It counts as awake and searching at once.
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
        // A thread inherits what it is about from the worker that starts it.
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

    /// A thread could not be started: if there is none, the jobs are done here.
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
            // SAFETY: the job was taken out of the queue just now.
            unsafe { self.run(job) };
            queue = self.lock();
        }
    }

    /// Whether there are jobs that no worker has taken.
    fn is_left(&self) -> bool {
        in_order();
        !self.inbox.load(SeqCst).is_null() || self.backlog.load(SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that holds the lock panics.
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // ---- the workers' side

    /// A worker's life. It begins awake and searching.
    fn work(&self) {
        let this = Parker::this();
        loop {
            // One that searches is enough.
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
                // The loop, if it is awake, does this at its next turn.
                in_order();
                if self.sleeping.load(SeqCst) {
                    self.see_to_the_rest();
                }
                // SAFETY: the job was taken out of the queue just now.
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

    /// Takes the job that has waited longest.
    fn next(&self, queue: &mut Queue) -> Option<NonNull<Job>> {
        if queue.first.is_null() {
            // With nothing in the inbox there is no need to write to it, where the loop reads.
            if self.inbox.load(Relaxed).is_null() {
                return None;
            }
            // SAFETY: the list is taken whole, of jobs that are alive until they are done.
            queue.first = unsafe { reversed(self.inbox.swap(ptr::null_mut(), SeqCst)) };
        }
        let job = NonNull::new(queue.first)?;
        // SAFETY: the job is in the queue, which is locked: it is alive, and nobody else uses it.
        queue.first = unsafe { job.as_ref() }.next.get();
        let backlog = !queue.first.is_null();
        if backlog != self.backlog.load(Relaxed) {
            self.backlog.store(backlog, SeqCst);
        }
        self.taken
            .store(self.taken.load(Relaxed).wrapping_add(1), Relaxed);
        Some(job)
    }

    /// Sleeps until there is work, and returns true; false if there is none for a long time. The
    /// queue was empty when it was locked.
    fn sleep(&self, this: &Parker, mut queue: MutexGuard<'_, Queue>) -> bool {
        queue.idle.push(this.clone());
        self.awake.fetch_sub(1, SeqCst);
        self.searching.fetch_sub(1, SeqCst);
        drop(queue);
        loop {
            // A job may have come before the loop could see that nobody is awake.
            if self.is_left() && self.rise(this) {
                return true;
            }
            let timed_out = !this.park(IDLE_TIME);
            let mut queue = self.lock();
            let Some(place) = queue.place_of(this) else {
                // Woken by somebody who has counted this worker as awake.
                return true;
            };
            if timed_out && !self.is_left() {
                queue.idle.remove(place);
                queue.threads -= 1;
                return false;
            }
        }
    }

    /// Gets up unasked, unless another searches already.
    fn rise(&self, this: &Parker) -> bool {
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

    /// Does a job, and gives it to the loop.
    ///
    /// # Safety
    /// The job must have been taken out of the queue by this thread.
    unsafe fn run(&self, job: NonNull<Job>) {
        // SAFETY: what was taken out of the queue is this thread's alone, was submitted once, is
        // alive until the loop has it, and is in no list.
        unsafe {
            Job::run(job);
            push(&self.done, job);
        }
        // The job is the loop's now.
        in_order();
        if self.sleeping.load(SeqCst) && self.sleeping.swap(false, SeqCst) {
            self.event.signal();
        }
    }
}

impl Queue {
    /// Where a worker is among those that sleep.
    fn place_of(&self, worker: &Parker) -> Option<usize> {
        self.idle.iter().position(|other| other.is(worker))
    }
}

/// Puts a job on a list, at the head.
///
/// # Safety
/// The job must be in no list, used by nobody else, and stay alive until it is taken from the list.
unsafe fn push(list: &AtomicPtr<Job>, job: NonNull<Job>) {
    let mut first = list.load(Relaxed);
    loop {
        // SAFETY: until it is on the list the job is alive and this thread's alone.
        unsafe { job.as_ref() }.next.set(first);
        match list.compare_exchange_weak(first, job.as_ptr(), SeqCst, Relaxed) {
            Ok(_) => return,
            Err(other) => first = other,
        }
    }
}

/// Turns a list round.
///
/// # Safety
/// The jobs in the list must be alive and used by nobody else.
unsafe fn reversed(mut list: *mut Job) -> *mut Job {
    let mut result = ptr::null_mut();
    // SAFETY: the caller says that the jobs are alive and nobody else's.
    while let Some(job) = unsafe { list.as_ref() } {
        list = job.next.replace(result);
        result = ptr::from_ref(job).cast_mut();
    }
    result
}
