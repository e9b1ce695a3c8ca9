//! Loops whose tasks all cores share. A step of one token is some hundreds of products of some tens of microseconds each: a thread that sleeps
//! between two of them is woken when half of the next one is done. So the helpers of a loop look for another for a while before they
//! sleep, and whoever leads a loop computes too instead of waiting for them.
//!
//! There is one team. Loops within rayon's threads, and those of a second engine while the team is at work, are rayon's.

use rayon::prelude::*;
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize, fence};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use std::{hint, thread};

/// How long whoever waits keeps its processor.
const KEEP: Duration = Duration::from_micros(50);

/// How long a helper looks for another loop before it sleeps: longer than it takes from one token to the next.
const STAY_AWAKE: Duration = Duration::from_millis(1);

/// Turns of a wait between two looks at the clock.
const TURNS: u32 = 64;

/// Calls `task` with each number below `count`, on all cores and in any order.
pub(super) fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    if count <= 1 || rayon::current_num_threads() == 1 {
        return (0..count).for_each(task);
    }
    let is_of_rayon = rayon::current_thread_index().is_some();
    let lead = match (!is_of_rayon).then(|| LEAD.try_lock()) {
        Some(Ok(lead)) => Some(lead),
        Some(Err(TryLockError::Poisoned(error))) => Some(error.into_inner()),
        Some(Err(TryLockError::WouldBlock)) | None => None,
    };
    match lead {
        Some(_lead) if num_helpers() > 0 => TEAM.run(count, &task),
        _ => (0..count).into_par_iter().for_each(&task),
    }
}

/// Calls `task` with the index and the values of each `len` of `values`, the last ones of which may be fewer, as [`for_each`].
pub(super) fn for_each_chunk<T: Send>(values: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    /// The first value.
    struct First<T>(*mut T);
    // SAFETY: each task takes values of its own.
    unsafe impl<T: Send> Sync for First<T> {}
    impl<T> First<T> {
        /// All of it, so that closures do not take the pointer out.
        fn get(&self) -> *mut T {
            self.0
        }
    }
    let (all, len) = (values.len(), len.max(1));
    let first = First(values.as_mut_ptr());
    for_each(all.div_ceil(len), |i| {
        let start = i * len;
        // SAFETY: chunks do not overlap and lie in `values`, whose borrow outlives the loop.
        task(i, unsafe { std::slice::from_raw_parts_mut(first.get().add(start), len.min(all - start)) });
    });
}

/// Calls `run` with each of `tasks`, `at_once` by `at_once`, as [`for_each`].
pub(super) fn for_each_of<T: Send>(tasks: Vec<T>, at_once: usize, run: impl Fn(T) + Sync) {
    let mut tasks: Vec<_> = tasks.into_iter().map(Some).collect();
    for_each_chunk(&mut tasks, at_once, |_, tasks| {
        tasks.iter_mut().filter_map(Option::take).for_each(&run);
    });
}

/// Held by whoever leads a loop of the team.
static LEAD: Mutex<()> = Mutex::new(());

static TEAM: Team = Team {
    is_open: Line(AtomicBool::new(false)),
    count: AtomicUsize::new(0),
    next: Line(AtomicUsize::new(0)),
    inside: Line(AtomicUsize::new(0)),
    shared_loop: UnsafeCell::new(Loop { task: std::ptr::null(), call: nothing, count: 0 }),
    sleepers: AtomicUsize::new(0),
    bed: Mutex::new(()),
    woken: Condvar::new(),
    panic: Mutex::new(None),
};

/// Helpers that there are: a thread for each of rayon's but one. Starts them at the first call.
fn num_helpers() -> usize {
    static HELPERS: OnceLock<usize> = OnceLock::new();
    *HELPERS.get_or_init(|| {
        let start =
            |_: &usize| thread::Builder::new().name("cpu-helper".into()).spawn(|| TEAM.help()).is_ok();
        (1..rayon::current_num_threads()).take_while(start).count()
    })
}

/// Of two cache lines, which processors fetch together.
#[repr(align(128))]
struct Line<T>(T);

/// A loop with its type erased.
#[derive(Clone, Copy)]
struct Loop {
    task: *const (),
    /// Calls `task` with a number.
    call: unsafe fn(*const (), usize),
    count: usize,
}

unsafe fn nothing(_: *const (), _: usize) {}

struct Team {
    /// Whether there is a loop that helpers may enter.
    is_open: Line<AtomicBool>,
    /// Its tasks, for those who are not inside.
    count: AtomicUsize,
    /// The next of them.
    next: Line<AtomicUsize>,
    /// Helpers that may be reading `shared_loop`.
    inside: Line<AtomicUsize>,
    /// Written by the leader while none is open and nobody inside.
    shared_loop: UnsafeCell<Loop>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    woken: Condvar,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the loop is written and read as its field says.
unsafe impl Sync for Team {}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// Leads a loop; the caller holds [`LEAD`].
    fn run<F: Fn(usize) + Sync>(&self, count: usize, task: &F) {
        unsafe fn call<F: Fn(usize)>(task: *const (), i: usize) {
            // SAFETY: it is the task of this loop, which is borrowed until all helpers have left it.
            unsafe { (*task.cast::<F>())(i) }
        }
        /// Ends the loop, whatever happens in it.
        struct End<'a>(&'a Team);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.is_open.0.store(false, SeqCst);
                let mut wait = Wait::new();
                while self.0.inside.0.load(SeqCst) > 0 {
                    wait.turn();
                }
                fence(Acquire);
                if thread::panicking() {
                    // One is enough, and the next loop has nothing to do with either.
                    *locked(&self.0.panic) = None;
                }
            }
        }
        let this = Loop { task: (&raw const *task).cast(), call: call::<F>, count };
        // SAFETY: the last loop was ended: none is open, and nobody is inside.
        unsafe { *self.shared_loop.get() = this };
        self.count.store(count, Relaxed);
        self.next.0.store(0, Relaxed);
        let end = End(self);
        self.is_open.0.store(true, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            let _bed = locked(&self.bed);
            self.woken.notify_all();
        }
        while let Some(i) = self.claim(count) {
            task(i);
        }
        drop(end);
        if let Some(panic) = locked(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// A task that nobody has.
    fn claim(&self, count: usize) -> Option<usize> {
        let i = self.next.0.fetch_add(1, Relaxed);
        (i < count).then_some(i)
    }

    /// A helper's life.
    fn help(&self) {
        loop {
            self.wait_for_loop();
            self.inside.0.fetch_add(1, SeqCst);
            // The leader sees who is inside, or who is inside sees that it was ended.
            if self.is_open.0.load(SeqCst) {
                // SAFETY: it is open, and its leader waits until nobody is inside.
                let Loop { task, call, count } = unsafe { *self.shared_loop.get() };
                let work = || {
                    while let Some(i) = self.claim(count) {
                        // SAFETY: as above.
                        unsafe { call(task, i) };
                    }
                };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                    // Its last tasks need nobody any more.
                    self.next.0.store(count, Relaxed);
                    *locked(&self.panic) = Some(panic);
                }
            }
            self.inside.0.fetch_sub(1, Release);
        }
    }

    /// Returns when a loop may be open that has tasks nobody has.
    fn wait_for_loop(&self) {
        let has_tasks =
            || self.is_open.0.load(SeqCst) && self.next.0.load(Relaxed) < self.count.load(Relaxed);
        let mut wait = Wait::new();
        while !has_tasks() {
            if wait.turn() < STAY_AWAKE {
                continue;
            }
            let mut bed = locked(&self.bed);
            self.sleepers.fetch_add(1, SeqCst);
            while !has_tasks() {
                bed = self.woken.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, SeqCst);
        }
    }
}

/// A wait for another thread that will not take long.
struct Wait {
    began: Instant,
    turns: u32,
    waited: Duration,
}

impl Wait {
    fn new() -> Self {
        Self { began: Instant::now(), turns: 0, waited: Duration::ZERO }
    }

    /// Waits a little; answers how long it has been, about.
    fn turn(&mut self) -> Duration {
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS) {
            self.waited = self.began.elapsed();
        }
        if self.waited < KEEP {
            hint::spin_loop()
        } else {
            thread::yield_now()
        }
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_from_many_threads_at_a_time() {
        thread::scope(|scope| {
            for leader in 0..4 {
                scope.spawn(move || {
                    for count in (0..300).chain([5000]) {
                        let counts: Vec<_> = (0..count).map(|_| AtomicU32::new(0)).collect();
                        for_each(count, |i| {
                            counts[i].fetch_add(1, Relaxed);
                        });
                        assert!(
                            counts.iter().all(|n| n.load(Relaxed) == 1),
                            "leader {leader}, {count} tasks"
                        );
                        if count % 50 == 0 {
                            // Longer than helpers stay awake.
                            thread::sleep(2 * STAY_AWAKE);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn chunks_are_all_values() {
        for (all, len) in [(0, 3), (1, 3), (3, 3), (100, 7), (64, 1)] {
            let mut values = vec![0; all];
            for_each_chunk(&mut values, len, |i, chunk| {
                assert_eq!(chunk.len(), len.min(all - i * len));
                chunk.iter_mut().enumerate().for_each(|(j, value)| *value += i * len + j + 1);
            });
            assert_eq!(values, (1..=all).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_reaches_whoever_leads_and_the_next_loop_works() {
        for culprit in [0, 1, 40, 99] {
            let panic = catch_unwind(|| {
                for_each(100, |i| {
                    thread::sleep(Duration::from_micros(20));
                    assert_ne!(i, culprit, "task {culprit}");
                });
            });
            assert!(panic.is_err(), "task {culprit}");
            let sum = AtomicUsize::new(0);
            for_each(100, |i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn panics_of_all_threads_are_one() {
        let panic = catch_unwind(|| {
            for_each(1000, |_| {
                thread::sleep(Duration::from_micros(20));
                panic!("all of them");
            });
        });
        assert!(panic.is_err());
        for_each(1000, |_| ());
    }

    #[test]
    fn loops_in_loops_are_whole() {
        let sum = AtomicUsize::new(0);
        for_each(10, |i| {
            for_each(10, |j| {
                sum.fetch_add(10 * i + j, Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}
