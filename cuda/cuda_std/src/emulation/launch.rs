//! One launch: what a driver would refuse, which memory it may touch, and blocks on all cores.

use core::ffi::c_void;
use std::boxed::Box;
use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::vec::Vec;

use super::Options;
use super::block::{Block, Outcome};
use super::messages::Messages;
use super::random::Random;
use super::report::{Defect, Other, Report};
use super::shadow::{self, Shadow};
use super::shared::SHARED_LIMIT;
use super::site;
use super::thread::Place;
use crate::launch::{Kernel, LaunchConfig};

/// Bytes of parameters that every driver takes.
const PARAMETER_LIMIT: usize = 4096;
/// Times that nothing may move before a launch counts as stuck.
const PATIENCE: u32 = 3;
/// How long a launch in which nothing moves leaves the core to other devices.
const WAIT_FOR_PEERS: Duration = Duration::from_micros(50);

/// A buffer that the launch may touch.
pub struct Region {
    pub start: usize,
    pub bytes: usize,
    pub shadow: Arc<Shadow>,
    /// The parameter that leads to it; `None` for one of another device.
    pub parameter: Option<usize>,
}

pub struct Launch {
    pub kernel: &'static Kernel,
    pub config: LaunchConfig,
    pub params: *const *mut c_void,
    pub options: Options,
    pub regions: Vec<Region>,
    /// Whether another device may write what threads here wait for.
    has_peers: bool,
    /// Distinguishes this launch's shadow cells from earlier ones'.
    pub generation: u32,
    /// Whether threads can be numbered over the grid; if not, races between blocks are not seen.
    pub numbered: bool,
    pub messages: Messages,
    pub has_messages: AtomicBool,
    failed: AtomicBool,
    report: Mutex<Option<Report>>,
    blocks: u32,
    next_block: AtomicU32,
    /// The order of blocks: the first, and the distance from each to the next.
    first_block: u32,
    stride: u32,
    /// Counts what happens in blocks that wait for others.
    pub moved: AtomicU64,
    /// For each worker, what `moved` was when nothing moved in any of its blocks.
    idle: Box<[AtomicU64]>,
}

// SAFETY: the parameters are only read, and the caller of the launch keeps them alive until it returns.
unsafe impl Sync for Launch {}

/// A number that no launch and no block had before, but for wrapping around.
pub fn new_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let generation = NEXT.fetch_add(1, Relaxed);
        if generation != 0 && generation != u32::MAX {
            return generation;
        }
    }
}

fn refuse(kernel: &'static Kernel, options: Options, detail: String) -> Report {
    Report {
        defect: Defect::InvalidLaunch,
        kernel: kernel.name,
        block: [0; 3],
        thread: [0; 3],
        file: kernel.file,
        line: kernel.line,
        other: None,
        detail,
        seed: options.seed,
    }
}

/// What a driver refuses.
fn check(kernel: &Kernel, config: &LaunchConfig, given: usize) -> Result<(), String> {
    let threads = config.block.iter().map(|&n| u64::from(n)).product::<u64>();
    let limits =
        [(config.block, [1024, 1024, 64], "block"), (config.grid, [0x7fff_ffff, 65535, 65535], "grid")];
    for (size, limit, what) in limits {
        if size.iter().zip(limit).any(|(&n, limit)| n == 0 || n > limit) {
            return Err(format!(
                "the {what} is {size:?}; each number must be at least 1 and at most {limit:?}"
            ));
        }
    }
    if threads > 1024 {
        return Err(format!("the block has {threads} threads, and 1024 is the most"));
    }
    if kernel.max_threads != 0 && threads > u64::from(kernel.max_threads) {
        return Err(format!(
            "the block has {threads} threads, and the kernel states max_threads = {}",
            kernel.max_threads
        ));
    }
    if config.shared_bytes > SHARED_LIMIT {
        return Err(format!(
            "{} bytes of dynamic shared memory are more than the {SHARED_LIMIT} that a block can have",
            config.shared_bytes
        ));
    }
    let bytes = kernel.parameters.iter().sum::<usize>();
    if bytes > PARAMETER_LIMIT {
        return Err(format!(
            "{bytes} bytes of parameters are more than the {PARAMETER_LIMIT} that a kernel can have"
        ));
    }
    if given != kernel.parameters.len() {
        return Err(format!("{given} parameters are given, and the kernel has {}", kernel.parameters.len()));
    }
    if config.grid.iter().map(|&n| u64::from(n)).product::<u64>() > u64::from(u32::MAX) {
        return Err(format!("the emulator runs at most 2^32 - 1 blocks, not a grid of {:?}", config.grid));
    }
    Ok(())
}

/// Start and length of a buffer, and what is known of accesses to it.
type Found = (usize, usize, Arc<Shadow>);

/// Runs a kernel to its end. `find` gives the buffer that an address lies in; `peers` are those of other devices that it may touch.
///
/// # Errors
/// The first defect.
///
/// # Safety
/// As for [`Launcher::launch`](crate::launch::Launcher::launch).
pub unsafe fn run(
    kernel: &'static Kernel,
    config: &LaunchConfig,
    params: &[*mut c_void],
    options: Options,
    find: impl Fn(usize) -> Option<Found>,
    peers: impl Iterator<Item = Found>,
) -> Result<(), Report> {
    super::panics::install();
    check(kernel, config, params.len()).map_err(|detail| refuse(kernel, options, detail))?;
    let mut regions: Vec<Region> = Vec::new();
    for (parameter, (&pointer, &bytes)) in params.iter().zip(kernel.parameters).enumerate() {
        for word in 0..bytes / 8 {
            // SAFETY: inside the parameter.
            let address = unsafe { pointer.cast::<u64>().add(word).read_unaligned() } as usize;
            if let Some((start, bytes, shadow)) = find(address)
                && regions.iter().all(|region| region.start != start)
            {
                regions.push(Region { start, bytes, shadow, parameter: Some(parameter) });
            }
        }
    }
    let of_parameters = regions.len();
    regions.extend(peers.map(|(start, bytes, shadow)| Region { start, bytes, shadow, parameter: None }));
    let has_peers = regions.len() > of_parameters;
    let blocks = config.grid.iter().product::<u32>();
    let threads = u64::from(blocks) * u64::from(config.block.iter().product::<u32>());
    let workers = rayon::current_num_threads().min(blocks as usize).max(1);
    let (first_block, stride) = block_order(options.seed, blocks);
    let launch = Launch {
        kernel,
        config: *config,
        params: params.as_ptr(),
        options,
        regions,
        has_peers,
        generation: new_generation(),
        numbered: threads < 1 << shadow::THREAD_BITS,
        messages: Mutex::default(),
        has_messages: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        report: Mutex::default(),
        blocks,
        next_block: AtomicU32::new(0),
        first_block,
        stride,
        moved: AtomicU64::new(0),
        idle: (0..workers).map(|_| AtomicU64::new(u64::MAX - 1)).collect(),
    };
    if workers == 1 {
        launch.work(0);
    } else {
        rayon::scope(|scope| {
            for worker in 0..workers {
                let launch = &launch;
                scope.spawn(move |_| launch.work(worker));
            }
        });
    }
    match launch.report.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(report) => Err(report),
        None => Ok(()),
    }
}

/// Forward, backward, or jumping: the first block, and the distance to the next, which has no divisor in common
/// with the number of blocks.
fn block_order(seed: u64, blocks: u32) -> (u32, u32) {
    let random = Random::new(seed);
    match seed % 4 {
        0 => (0, 1),
        1 => (blocks - 1, blocks - 1),
        _ => {
            let mut stride = 1 + random.below(blocks);
            while gcd(stride, blocks) != 1 {
                stride = stride % blocks + 1;
            }
            (random.below(blocks), stride)
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Launch {
    /// Runs blocks until there are none left. A block whose threads all wait for others is put aside.
    fn work(&self, worker: usize) {
        let mut suspended: VecDeque<(Box<Block>, u64)> = VecDeque::new();
        let mut spare: Option<Box<Block>> = None;
        let mut quiet = 0;
        while !self.has_failed() {
            let next = self.next_block.load(Relaxed);
            let started = if next < self.blocks
                && self.next_block.compare_exchange(next, next + 1, Relaxed, Relaxed).is_ok()
            {
                let block = spare.take().unwrap_or_else(|| Block::take(self.config.block));
                self.moved.fetch_add(1, SeqCst);
                let index = u64::from(self.first_block) + u64::from(next) * u64::from(self.stride);
                block.start(self, (index % u64::from(self.blocks)) as u32);
                Some((block, 0))
            } else if next < self.blocks {
                continue;
            } else {
                suspended.pop_front()
            };
            let Some((block, steps)) = started else { break };
            match block.run() {
                Outcome::Finished => {
                    spare = Some(block);
                    quiet = 0;
                }
                Outcome::Suspended => {
                    let now = block.steps.get();
                    quiet = if now == steps { quiet + 1 } else { 0 };
                    suspended.push_back((block, now));
                }
                Outcome::Failed => {}
            }
            if quiet > suspended.len() as u32 * PATIENCE && self.next_block.load(Relaxed) >= self.blocks {
                if self.has_peers {
                    // The other device is at work, perhaps on this core.
                    std::thread::sleep(WAIT_FOR_PEERS);
                    quiet = 0;
                    continue;
                }
                let moved = self.moved.load(SeqCst);
                let same_before = self.idle[worker].swap(moved, SeqCst) == moved;
                if same_before
                    && self
                        .idle
                        .iter()
                        .all(|idle| matches!(idle.load(SeqCst), m if m == moved || m == u64::MAX))
                {
                    self.report_stuck(&suspended);
                }
                quiet = 0;
                std::thread::yield_now();
            }
        }
        if let Some(block) = spare {
            block.leave();
        }
        // This worker has nothing left that could move.
        self.idle[worker].store(u64::MAX, SeqCst);
    }

    fn report_stuck(&self, suspended: &VecDeque<(Box<Block>, u64)>) {
        let Some((block, _)) = suspended.front() else { return };
        let waits = |thread: &&super::thread::Thread| thread.status.get() != super::thread::Status::Ended;
        let Some(thread) = block.threads.iter().find(waits) else { return };
        let place = thread.place.get().unwrap_or(self.place());
        let others = suspended.len() - 1;
        let detail = format!(
            "waits for a value that nobody will write: {}; {others} other blocks of this worker wait as well",
            block.whereabouts()
        );
        block.fail(thread, Defect::Deadlock, place, None, detail);
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Ends the launch with a report, unless it has one.
    pub fn fail(&self, report: Report) {
        let mut first = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(report);
        self.failed.store(true, SeqCst);
    }

    /// Some place in the source for what has none of its own.
    #[track_caller]
    pub fn place(&self) -> Place {
        core::panic::Location::caller()
    }

    /// The access that a stamp stands for.
    pub fn other(&self, stamp: u64, write: bool) -> Other {
        let (_, number, site) = shadow::parts(stamp);
        let [x, y, _] = self.config.block;
        let size = self.config.block.iter().product::<u32>();
        let (block, thread) = (number / size, number % size);
        let [gx, gy, _] = self.config.grid;
        let (file, line) = site::place(site)
            .map_or((self.kernel.file, self.kernel.line), |place| (place.file(), place.line()));
        Other {
            block: [block % gx, block / gx % gy, block / (gx * gy)],
            thread: [thread % x, thread / x % y, thread / (x * y)],
            file,
            line,
            write,
        }
    }

    /// Where an address lies that no buffer of the launch contains.
    pub fn describe_address(&self, address: usize, size: usize) -> String {
        let near = self.regions.iter().min_by_key(|region| {
            let end = region.start + region.bytes;
            if address < region.start { region.start - address } else { address.saturating_sub(end) }
        });
        let mut text = format!("{size} bytes at {address:#x} are in no buffer of this launch");
        if let Some(region) = near {
            let (parameter, bytes) = (&region.parameter, region.bytes);
            text.push_str("; the nearest is that ");
            text.push_str(&owner(*parameter));
            text.push_str(&if address < region.start {
                format!(", which begins {} bytes later", region.start - address)
            } else {
                format!(" with {bytes} bytes, of which this is byte {}", address - region.start)
            });
        }
        text
    }
}

/// Whose buffer it is, for people.
pub fn owner(parameter: Option<usize>) -> String {
    parameter.map_or("of another device".into(), |parameter| format!("of parameter {parameter}"))
}
