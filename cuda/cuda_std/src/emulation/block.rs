//! One block: its threads as coroutines, its shared memory, and who runs next.

use core::cell::{Cell, RefCell};
use core::ptr;
use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::collections::{HashMap, VecDeque};
use std::format;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult};

use super::barrier::Barrier;
use super::copies::Event;
use super::launch::{Launch, Region};
use super::mbarrier::Counter;
use super::messages::Message;
use super::order::Knowledge;
use super::panics;
use super::proxy::GRANULE;
use super::random::Random;
use super::report::Defect;
use super::shadow::Shadow;
use super::shared::{SHARED_ROOM, SharedRange};
use super::site::SiteCache;
use super::thread::{self, Place, Status, Thread};
use super::warp::Exchange;
use super::wgmma::{Issued, Products};

/// Stack of an emulated thread: enough for a panic message with a backtrace. Pages never touched take no memory.
const STACK_BYTES: usize = 256 * 1024;

type Fiber = Coroutine<(), (), (), DefaultStack>;

/// Blocks that a worker keeps: a model's kernels have about so many dimensions.
const MAX_SPARE: usize = 8;

std::thread_local! {
    /// Stacks of ended threads, for the next ones.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
    /// Blocks of earlier launches, the latest last, for the next ones.
    #[allow(clippy::vec_box, reason = "a block's threads know where it is")]
    static SPARE: RefCell<Vec<Box<Block>>> = const { RefCell::new(Vec::new()) };
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// Everybody waits for another block.
    Suspended,
    Failed,
}

/// The order in which threads that can run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    First,
    Last,
    Any,
}

pub struct Block {
    dimensions: [u32; 3],
    launch: Cell<*const Launch>,
    /// Over the grid, x fastest.
    pub index: Cell<u32>,
    pub position: Cell<[u32; 3]>,
    /// Threads.
    pub size: Cell<u32>,
    /// Number of its first thread in the grid.
    pub first_thread: Cell<u32>,
    pub threads: Vec<Thread>,
    fibers: RefCell<Vec<Option<Fiber>>>,
    pub checks: Cell<bool>,

    /// Accesses of the block up to this clock are known to all its threads.
    pub floor: Cell<u32>,
    /// The latest clock of any thread.
    pub latest: Cell<u32>,
    /// What all its threads know of other blocks.
    pub known: RefCell<Option<Arc<Knowledge>>>,

    ready: RefCell<VecDeque<u32>>,
    spinning: RefCell<Vec<u32>>,
    ended: Cell<u32>,
    /// Counts what is not just asking again.
    pub steps: Cell<u64>,
    /// Whether the launch knows that something moved since the block was last run.
    announced: Cell<bool>,
    order: Cell<Order>,
    pub random: Random,

    pub barriers: [RefCell<Barrier>; 16],
    pub warps: Vec<RefCell<Vec<Exchange>>>,
    /// Of each warp, the lanes that have ended, or that the block does not have.
    pub ended_lanes: Vec<Cell<u32>>,
    pub counters: RefCell<Vec<Counter>>,
    pub events: RefCell<Vec<Event>>,
    pub messages: RefCell<HashMap<usize, Message>>,

    pub memory: Box<[Cell<u128>]>,
    pub shared_shadow: Shadow,
    /// Who wrote which 16 bytes of shared memory last by ordinary stores; see [`super::proxy`].
    pub stores: Box<[Cell<u64>]>,
    /// How often its threads have fenced.
    pub fences: Cell<u64>,
    /// What each warp multiplies, and what each warpgroup has issued.
    pub products: Vec<RefCell<Products>>,
    pub issued: Vec<RefCell<Issued>>,
    pub ranges: RefCell<Vec<SharedRange>>,
    /// End of the last range.
    pub shared_end: Cell<u32>,
    pub shared_bytes: Cell<u32>,
    pub generation: Cell<u32>,
    pub sites: SiteCache,
}

impl Block {
    /// Room for blocks of these dimensions: what an earlier launch left, if it fits.
    pub fn take(dimensions: [u32; 3]) -> Box<Self> {
        let spare = SPARE.with_borrow_mut(|spare| {
            let index = spare.iter().position(|block| block.dimensions == dimensions)?;
            Some(spare.remove(index))
        });
        spare.unwrap_or_else(|| Self::new(dimensions))
    }

    /// Leaves a finished block for later launches; of many, the latest are kept.
    pub fn leave(self: Box<Self>) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() == MAX_SPARE {
                spare.remove(0);
            }
            spare.push(self);
        });
    }

    fn new(dimensions: [u32; 3]) -> Box<Self> {
        let size = dimensions.iter().product::<u32>();
        let mut block = Box::new(Self {
            dimensions,
            launch: Cell::new(ptr::null()),
            index: Cell::new(0),
            position: Cell::new([0; 3]),
            size: Cell::new(size),
            first_thread: Cell::new(0),
            threads: Vec::new(),
            fibers: RefCell::new((0..size).map(|_| None).collect()),
            checks: Cell::new(true),
            floor: Cell::new(0),
            latest: Cell::new(0),
            known: RefCell::default(),
            ready: RefCell::default(),
            spinning: RefCell::default(),
            ended: Cell::new(0),
            steps: Cell::new(0),
            announced: Cell::new(false),
            order: Cell::new(Order::First),
            random: Random::new(0),
            barriers: Default::default(),
            warps: (0..size.div_ceil(32)).map(|_| RefCell::default()).collect(),
            ended_lanes: (0..size.div_ceil(32)).map(|_| Cell::default()).collect(),
            counters: RefCell::default(),
            events: RefCell::default(),
            messages: RefCell::default(),
            memory: (0..SHARED_ROOM / 16).map(|_| Cell::new(0)).collect(),
            shared_shadow: Shadow::new(SHARED_ROOM),
            stores: (0..SHARED_ROOM / GRANULE).map(|_| Cell::new(0)).collect(),
            fences: Cell::new(0),
            products: (0..size.div_ceil(32)).map(|_| RefCell::default()).collect(),
            issued: (0..size / 128).map(|_| RefCell::default()).collect(),
            ranges: RefCell::default(),
            shared_end: Cell::new(0),
            shared_bytes: Cell::new(0),
            generation: Cell::new(0),
            sites: SiteCache::new(),
        });
        let address = ptr::from_ref(&*block);
        let [x, y, _] = dimensions;
        block.threads = (0..size).map(|i| Thread::new(address, i, [i % x, i / x % y, i / (x * y)])).collect();
        block
    }

    pub fn launch(&self) -> &Launch {
        // SAFETY: set in `start`; a launch outlives its blocks' running.
        unsafe { &*self.launch.get() }
    }

    #[inline(always)]
    pub fn regions(&self) -> &[Region] {
        &self.launch().regions
    }

    /// Makes this block number `index` of a launch, with no thread started.
    pub fn start(&self, launch: &Launch, index: u32) {
        self.launch.set(launch);
        self.index.set(index);
        let [x, y, _] = launch.config.grid;
        self.position.set([index % x, index / x % y, index / (x * y)]);
        self.first_thread.set(if launch.numbered { index * self.size.get() } else { 0 });
        self.checks.set(launch.options.check);
        self.floor.set(0);
        self.latest.set(0);
        self.known.replace(None);
        self.random.seed(launch.options.seed ^ u64::from(index) << 32);
        self.order.set(match launch.options.seed % 3 {
            0 => Order::First,
            1 => Order::Any,
            _ => Order::Last,
        });
        self.steps.set(0);
        self.ended.set(0);
        self.spinning.borrow_mut().clear();
        for barrier in &self.barriers {
            barrier.replace(Barrier::default());
        }
        for warp in &self.warps {
            warp.borrow_mut().clear();
        }
        for (warp, ended) in self.ended_lanes.iter().enumerate() {
            let here = (self.size.get() - 32 * warp as u32).min(32);
            ended.set(!(u32::MAX >> (32 - here)));
        }
        self.fences.set(0);
        for products in &self.products {
            products.take();
        }
        for issued in &self.issued {
            issued.take();
        }
        self.counters.borrow_mut().clear();
        self.events.borrow_mut().clear();
        self.messages.borrow_mut().clear();
        self.generation.set(super::launch::new_generation());
        self.ranges.borrow_mut().clear();
        self.shared_end.set(launch.config.shared_bytes);
        self.shared_bytes.set(launch.config.shared_bytes);
        let mut ready = self.ready.borrow_mut();
        ready.clear();
        ready.extend(0..self.size.get());
        for thread in &self.threads {
            thread.set_clock(1);
            thread.warp_floor.set(0);
            thread.known.replace(None);
            thread.released.replace(None);
            thread.seen.replace(None);
            thread.status.set(Status::Ready);
            thread.place.set(None);
            thread.last_atomic.set((0, 0, 0));
            thread.copies.borrow_mut().clear();
            thread.operands.set(None);
            thread.last_fence.set(0);
        }
    }

    /// Runs the block until it ends or waits for others.
    pub fn run(&self) -> Outcome {
        let mut asked_at = None;
        self.announced.set(false);
        loop {
            if self.launch().has_failed() {
                return Outcome::Failed;
            }
            if let Some(index) = self.next_ready() {
                self.resume(index);
                continue;
            }
            if self.ended.get() == self.size.get() {
                return Outcome::Finished;
            }
            if self.fire_event() {
                self.wake_spinning();
                continue;
            }
            if self.spinning.borrow().is_empty() {
                self.report_stuck();
                return Outcome::Failed;
            }
            // Once more around; if nothing but the same questions comes of it, others must move first.
            self.wake_spinning();
            if asked_at == Some(self.steps.get()) {
                return Outcome::Suspended;
            }
            asked_at = Some(self.steps.get());
        }
    }

    /// Counts something that is not just asking again; others that wait may hope.
    pub fn step(&self) {
        self.steps.set(self.steps.get() + 1);
        if !self.announced.replace(true) {
            self.launch().moved.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn next_ready(&self) -> Option<u32> {
        let mut ready = self.ready.borrow_mut();
        match self.order.get() {
            Order::First => ready.pop_front(),
            Order::Last => ready.pop_back(),
            Order::Any if ready.is_empty() => None,
            Order::Any => {
                let i = self.random.below(ready.len() as u32) as usize;
                ready.swap_remove_back(i)
            }
        }
    }

    /// Lets a waiting thread run.
    pub fn wake(&self, index: u32) {
        self.threads[index as usize].status.set(Status::Ready);
        self.ready.borrow_mut().push_back(index);
    }

    fn wake_spinning(&self) {
        for index in self.spinning.borrow_mut().drain(..) {
            self.wake(index);
        }
    }

    fn resume(&self, index: u32) {
        let thread = &self.threads[index as usize];
        // Taken out, so that the list is not borrowed while the thread runs.
        let fiber = self.fibers.borrow_mut()[index as usize].take();
        let mut fiber = match fiber {
            Some(fiber) => fiber,
            None => match self.new_fiber(thread) {
                Some(fiber) => fiber,
                None => return,
            },
        };
        let before = thread::set_current(thread);
        let result = fiber.resume(());
        thread::set_current(before);
        match result {
            CoroutineResult::Yield(()) => {
                self.fibers.borrow_mut()[index as usize] = Some(fiber);
                match thread.status.get() {
                    Status::Spinning => self.spinning.borrow_mut().push(index),
                    Status::Ready => self.ready.borrow_mut().push_back(index),
                    _ => {}
                }
            }
            CoroutineResult::Return(()) => {
                STACKS.with_borrow_mut(|stacks| stacks.push(fiber.into_stack()));
                thread.status.set(Status::Ended);
                let ended = &self.ended_lanes[index as usize / 32];
                ended.set(ended.get() | 1 << thread.lane());
                thread.leave_warp();
                self.ended.set(self.ended.get() + 1);
                self.step();
            }
        }
    }

    fn new_fiber(&self, thread: &Thread) -> Option<Fiber> {
        let stack = STACKS.with_borrow_mut(Vec::pop).map_or_else(|| DefaultStack::new(STACK_BYTES), Ok);
        let stack = match stack {
            Ok(stack) => stack,
            Err(error) => {
                let detail = format!("no stack for another thread: {error}; launch fewer at a time");
                self.fail(thread, Defect::InvalidLaunch, self.launch().place(), None, detail);
                return None;
            }
        };
        thread.stack.set((stack.limit().get(), stack.base().get()));
        let thread = ptr::from_ref(thread);
        // SAFETY: the closure borrows nothing but the thread, which outlives the fiber.
        let fiber = unsafe {
            Coroutine::with_stack_unchecked(stack, move |yielder, ()| {
                let thread = &*thread;
                thread.yielder.set(yielder);
                let launch = thread.block().launch();
                // The caller of the launch answers for parameters and kernel.
                let run = || (launch.kernel.body)(launch.params);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
                    let (file, line, message) = panics::take(payload, launch.kernel);
                    thread.block().fail_at(thread, Defect::Panic, (file, line), None, message);
                }
                thread.finish_copies();
            })
        };
        Some(fiber)
    }

    /// Ends the launch with a report about `thread`.
    pub fn fail(
        &self,
        thread: &Thread,
        defect: Defect,
        place: Place,
        earlier: Option<(u64, bool)>,
        detail: String,
    ) {
        self.fail_at(thread, defect, (place.file(), place.line()), earlier, detail);
    }

    fn fail_at(
        &self,
        thread: &Thread,
        defect: Defect,
        (file, line): (&'static str, u32),
        earlier: Option<(u64, bool)>,
        detail: String,
    ) {
        let launch = self.launch();
        launch.fail(super::report::Report {
            defect,
            kernel: launch.kernel.name,
            block: self.position.get(),
            thread: thread.position,
            file,
            line,
            other: earlier.map(|(stamp, wrote)| Box::new(launch.other(stamp, wrote))),
            detail,
            seed: launch.options.seed,
        });
    }

    /// Nobody can run, nothing will happen: says who waits where.
    fn report_stuck(&self) {
        let waiting = |wanted: fn(Status) -> bool| {
            self.threads.iter().find(|thread| wanted(thread.status.get()) && thread.place.get().is_some())
        };
        let found = waiting(|status| status == Status::Warp)
            .map(|thread| (thread, Defect::AbsentLanes, "waits for lanes that do not come"))
            .or_else(|| {
                waiting(|status| matches!(status, Status::Barrier(_))).map(|thread| {
                    (thread, Defect::DivergentBarrier, "waits at a barrier that not all threads reach")
                })
            });
        let Some((thread, defect, what)) = found else { return };
        let place = thread.place.get().unwrap_or(self.launch().place());
        self.fail(thread, defect, place, None, format!("{what}: {}", self.whereabouts()));
    }

    /// Which threads are where, in words.
    pub fn whereabouts(&self) -> String {
        let mut text = String::new();
        let mut first = 0;
        while first < self.threads.len() {
            let state = |thread: &Thread| {
                let place = thread.place.get().map(|place| (place.file(), place.line()));
                (thread.status.get(), place.filter(|_| thread.status.get() != Status::Ended))
            };
            let here = state(&self.threads[first]);
            let same = self.threads[first..].iter().take_while(|thread| state(thread) == here).count();
            let last = first + same - 1;
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(&if same == 1 {
                format!("thread {first}")
            } else {
                format!("threads {first} to {last}")
            });
            text.push_str(match here.0 {
                Status::Ended => " ended",
                Status::Spinning => " ask again and again",
                Status::Ready => " run",
                _ => " wait",
            });
            if let Some((file, line)) = here.1 {
                text.push_str(&format!(" at {file}:{line}"));
            }
            first += same;
            if text.len() > 1000 {
                text.push_str(", …");
                break;
            }
        }
        text
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        for fiber in self.fibers.get_mut() {
            if let Some(mut fiber) = fiber.take() {
                // SAFETY: a stopped kernel owns nothing that needs dropping: it is `no_std` code on plain values.
                unsafe { fiber.force_reset() };
                let stack = fiber.into_stack();
                // Where the thread of the host ends, too, there is nothing to keep it for.
                let _ = STACKS.try_with(|stacks| stacks.borrow_mut().push(stack));
            }
        }
    }
}
