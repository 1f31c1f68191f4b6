//! Closures that another thread runs, one after the other or 32 at a time.

use std::rc::Rc;

use coroutine::Workers;

/// Threads in each pool.
pub const THREADS: usize = 4;

/// A closure that does nothing, and is not optimised away.
fn work() -> usize {
    std::hint::black_box(1)
}

/// This library: `coroutines` coroutines, each of which offloads `hops` closures.
pub struct Ours(Rc<Workers>);

impl Default for Ours {
    fn default() -> Ours {
        Ours(Rc::new(Workers::new(THREADS).expect("no event")))
    }
}

impl Ours {
    /// Runs them all.
    pub fn run(&self, coroutines: usize, hops: usize) {
        for _ in 0..coroutines {
            let workers = self.0.clone();
            coroutine::spawn(move || {
                for _ in 0..hops {
                    workers.offload(work);
                }
            })
            .expect("no stack");
        }
        while self.0.wait_completed() > 0 {}
    }
}

/// tokio: the same number of tasks, which await `spawn_blocking`.
pub struct Tokio(tokio::runtime::Runtime);

impl Default for Tokio {
    fn default() -> Tokio {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(THREADS)
            .build()
            .expect("no runtime");
        Tokio(runtime)
    }
}

impl Tokio {
    /// Runs them all.
    pub fn run(&self, tasks: usize, hops: usize) {
        self.0.block_on(async {
            let mut set = tokio::task::JoinSet::new();
            for _ in 0..tasks {
                set.spawn(async move {
                    for _ in 0..hops {
                        tokio::task::spawn_blocking(work)
                            .await
                            .expect("the closure panicked");
                    }
                });
            }
            while set.join_next().await.is_some() {}
        });
    }
}

/// A queue with a mutex and a condition variable, and an eventfd that is written when a batch is
/// done. No thread spins.
pub mod condvar {
    use std::collections::VecDeque;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::FromRawFd;
    use std::sync::{Arc, Condvar, Mutex};
    use std::thread::JoinHandle;

    use super::{THREADS, work};

    type Job = Box<dyn FnOnce() -> usize + Send>;

    #[derive(Default)]
    struct Queue {
        jobs: VecDeque<Job>,
        ending: bool,
    }

    struct Shared {
        queue: Mutex<Queue>,
        work: Condvar,
        done: Mutex<Vec<usize>>,
        batch: usize,
        event: File,
    }

    /// The pool, for batches of a given size.
    pub struct Pool {
        shared: Arc<Shared>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Pool {
        /// Starts the threads.
        pub fn new(batch: usize) -> Pool {
            // SAFETY: the call takes no pointers; the descriptor that it returns is ours.
            let event = unsafe {
                let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
                assert!(fd >= 0, "no event");
                File::from_raw_fd(fd)
            };
            let shared = Arc::new(Shared {
                queue: Mutex::default(),
                work: Condvar::new(),
                done: Mutex::default(),
                batch,
                event,
            });
            let threads = (0..THREADS)
                .map(|_| {
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.serve())
                })
                .collect();
            Pool { shared, threads }
        }

        /// Runs `batches` batches, each submitted when the previous one is done.
        pub fn run(&self, batches: usize) {
            for _ in 0..batches {
                {
                    let mut queue = self.shared.queue.lock().unwrap();
                    for _ in 0..self.shared.batch {
                        queue.jobs.push_back(Box::new(work));
                    }
                }
                if self.shared.batch == 1 {
                    self.shared.work.notify_one();
                } else {
                    self.shared.work.notify_all();
                }
                let mut count = [0; 8];
                (&self.shared.event)
                    .read_exact(&mut count)
                    .expect("no event");
                self.shared.done.lock().unwrap().clear();
            }
        }
    }

    impl Drop for Pool {
        fn drop(&mut self) {
            self.shared.queue.lock().unwrap().ending = true;
            self.shared.work.notify_all();
            for thread in self.threads.drain(..) {
                thread.join().unwrap();
            }
        }
    }

    impl Shared {
        fn serve(&self) {
            let mut queue = self.queue.lock().unwrap();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    drop(queue);
                    let result = job();
                    let mut done = self.done.lock().unwrap();
                    done.push(result);
                    let last = done.len() == self.batch;
                    drop(done);
                    if last {
                        (&self.event)
                            .write_all(&1_u64.to_ne_bytes())
                            .expect("no event");
                    }
                    queue = self.queue.lock().unwrap();
                } else if queue.ending {
                    return;
                } else {
                    queue = self.work.wait(queue).unwrap();
                }
            }
        }
    }
}
