//! What the lanes of a warp do together.

use std::format;
use std::sync::Arc;

use super::order::Knowledge;
use super::report::Defect;
use super::tensor::{self, Format};
use super::thread::{Place, Status, Thread};
use super::wgmma::Factors;

/// An operation of the lanes of a warp. Each lane hands over an array of words (`io`), in which it finds its
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Sync,
    /// In: value, lane operand, clamp. Out: value, whether the source was in range.
    Shuffle(Shuffle),
    /// In: predicate. Out: a bit for each lane of the mask.
    Ballot,
    /// In: value. Out: the lanes with the same.
    Match,
    /// In: value. Out: the result over all lanes.
    Reduce(Reduce),
    /// Out: whether this is the lane.
    Elect,
    /// In: address of a row, two words. Out: a word for each matrix.
    LoadMatrix {
        count: u32,
        transposed: bool,
    },
    /// In: a, b, c. Out: d.
    Mma {
        format: Format,
        depth: u32,
    },
    /// Likewise, of TF32.
    MmaTf32,
    /// Likewise, of signed bytes.
    MmaIntegers {
        depth: u32,
    },
    /// `wgmma`; operands are in [`Thread::operands`].
    Multiply(Factors),
    /// `wgmma.wait_group`.
    WaitForSums {
        pending: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Add,
    Min,
    Max,
    UnsignedMin,
    UnsignedMax,
    And,
    Or,
    Xor,
}

/// An operation that some lanes have come to.
pub struct Exchange {
    operation: Operation,
    mask: u32,
    arrived: u32,
    io: [*mut [u32; 10]; 32],
}

impl Thread {
    /// Comes to `operation` with the lanes of `mask`, and goes on when all did.
    pub fn exchange(&self, operation: Operation, mask: u32, io: &mut [u32; 10], place: Place) {
        let block = self.block();
        let bit = 1 << self.lane();
        if mask & bit == 0 {
            let detail = format!("lane {} is not in its own mask {mask:#010x}", self.lane());
            self.fail(Defect::AbsentLanes, place, detail);
        }
        self.place.set(Some(place));
        let mut open = block.warps[self.index as usize / 32].borrow_mut();
        let mine = |exchange: &Exchange| {
            exchange.mask == mask && exchange.operation == operation && exchange.arrived & bit == 0
        };
        let index = open.iter().position(mine).unwrap_or_else(|| {
            open.push(Exchange { operation, mask, arrived: 0, io: [core::ptr::null_mut(); 32] });
            open.len() - 1
        });
        open[index].arrived |= bit;
        open[index].io[self.lane() as usize] = io;
        if !self.is_complete(&open[index]) {
            drop(open);
            self.wait(Status::Warp, place);
            return;
        }
        let exchange = open.swap_remove(index);
        drop(open);
        if !self.complete(&exchange) {
            self.stop();
        }
    }

    /// Lets the others go on that only waited for this lane to come or to end. Called when it ended.
    pub fn leave_warp(&self) {
        let warp = &self.block().warps[self.index as usize / 32];
        loop {
            let mut open = warp.borrow_mut();
            let Some(index) = open.iter().position(|exchange| self.is_complete(exchange)) else { return };
            let exchange = open.swap_remove(index);
            drop(open);
            let first = (self.index - self.lane()) as usize;
            let lane = exchange.arrived.trailing_zeros() as usize;
            if !self.block().threads[first + lane].complete(&exchange) {
                return;
            }
            self.block().wake((first + lane) as u32);
        }
    }

    /// Whether every lane came that must. CUDA asks for all lanes of the mask that have not ended; where each
    /// lane's part is needed for the result, for all of the mask.
    fn is_complete(&self, exchange: &Exchange) -> bool {
        let block = self.block();
        let missing = exchange.mask & !exchange.arrived;
        let may_be_ended = matches!(
            exchange.operation,
            Operation::Sync | Operation::Shuffle(_) | Operation::Ballot | Operation::Match
        );
        missing == 0 || (may_be_ended && missing & !block.ended_lanes[self.index as usize / 32].get() == 0)
    }

    /// Computes every lane's result and lets the others go on, unless it finds a defect.
    fn complete(&self, exchange: &Exchange) -> bool {
        let block = self.block();
        let first = (self.index - self.lane()) as usize;
        let arrived = exchange.arrived;
        let lanes = || (0..32usize).filter(|lane| arrived >> lane & 1 == 1);
        // SAFETY: each pointer leads to a live array on the stack of a lane that waits here.
        let io = |lane: usize| unsafe { slot(exchange.io[lane]) };
        match exchange.operation {
            Operation::Sync => self.order_lanes(arrived),
            Operation::Shuffle(kind) => {
                let mut values = [0; 32];
                lanes().for_each(|lane| values[lane] = io(lane)[0]);
                for lane in lanes() {
                    let [_, operand, clamp, ..] = *io(lane);
                    let (source, in_range) = source(kind, lane as u32, operand, clamp);
                    if arrived >> source & 1 == 0 {
                        let thread = &block.threads[first + lane];
                        let place = thread.place.get().unwrap_or(block.launch().place());
                        let why =
                            if exchange.mask >> source & 1 == 0 { "is not in the mask" } else { "has ended" };
                        let detail = format!("lane {lane} reads lane {source}, which {why}");
                        block.fail(thread, Defect::AbsentLanes, place, None, detail);
                        return false;
                    }
                    io(lane)[0] = values[source as usize];
                    io(lane)[1] = u32::from(in_range);
                }
            }
            Operation::Ballot => {
                let ballot = lanes().fold(0, |ballot, lane| ballot | (io(lane)[0] & 1) << lane);
                lanes().for_each(|lane| io(lane)[0] = ballot);
            }
            Operation::Match => {
                let mut values = [[0; 2]; 32];
                lanes().for_each(|lane| values[lane] = [io(lane)[0], io(lane)[1]]);
                for lane in lanes() {
                    let same = lanes().filter(|&other| values[other] == values[lane]);
                    io(lane)[0] = same.fold(0, |mask, other| mask | 1 << other);
                }
            }
            Operation::Reduce(kind) => {
                let all = lanes().map(|lane| io(lane)[0]).reduce(|a, b| reduce(kind, a, b)).unwrap_or(0);
                lanes().for_each(|lane| io(lane)[0] = all);
            }
            Operation::Elect => {
                let chosen = arrived.trailing_zeros();
                lanes().for_each(|lane| {
                    *io(lane) = [chosen, u32::from(lane as u32 == chosen), 0, 0, 0, 0, 0, 0, 0, 0]
                });
            }
            Operation::LoadMatrix { count, transposed } => {
                let mut rows = [[0u16; 8]; 32];
                for (lane, row) in rows[..8 * count as usize].iter_mut().enumerate() {
                    // SAFETY: the lane has checked the row when it came.
                    *row = unsafe { block.shared_at::<[u16; 8]>(io(lane)[0]).read() };
                }
                for lane in 0..32 {
                    for matrix in 0..count as usize {
                        let element = |i: usize| {
                            let (row, column) = (lane / 4, 2 * (lane % 4) + i);
                            let (row, column) = if transposed { (column, row) } else { (row, column) };
                            u32::from(rows[8 * matrix + row][column])
                        };
                        io(lane)[matrix] = element(0) | element(1) << 16;
                    }
                }
            }
            Operation::Mma { format, depth } => {
                let mut words = [[0; 10]; 32];
                lanes().for_each(|lane| words[lane] = *io(lane));
                let d = tensor::multiply(tensor::HOPPER, format, depth as usize, &words);
                lanes().for_each(|lane| io(lane)[..4].copy_from_slice(&d[lane]));
            }
            Operation::MmaTf32 => {
                let mut words = [[0; 10]; 32];
                lanes().for_each(|lane| words[lane] = *io(lane));
                let d = tensor::multiply_tf32(tensor::HOPPER, &words);
                lanes().for_each(|lane| io(lane)[..4].copy_from_slice(&d[lane]));
            }
            Operation::MmaIntegers { depth } => {
                let mut words = [[0; 10]; 32];
                lanes().for_each(|lane| words[lane] = *io(lane));
                let d = tensor::multiply_integers(depth as usize, &words);
                lanes().for_each(|lane| io(lane)[..4].copy_from_slice(&d[lane]));
            }
            Operation::Multiply(factors) => self.issue_product(factors),
            // The tiles were read for all lanes, and any of them may say so.
            Operation::WaitForSums { pending } => {
                self.finish_products(pending);
                self.order_lanes(arrived);
            }
        }
        for lane in lanes() {
            if first + lane != self.index as usize {
                block.wake((first + lane) as u32);
            }
        }
        block.step();
        true
    }

    /// `sync_warp`: what the lanes did before is known to all of them.
    fn order_lanes(&self, arrived: u32) {
        let block = self.block();
        let first = self.index - self.lane();
        let threads = &block.threads[first as usize..(first + 32).min(block.size.get()) as usize];
        let here = || threads.iter().filter(|thread| arrived >> thread.lane() & 1 == 1);
        let latest = here().map(|thread| thread.clock.get()).max().unwrap_or(0);
        if here().count() == threads.len() && here().all(|thread| thread.known.borrow().is_none()) {
            for thread in threads {
                thread.warp_floor.set(latest);
                thread.set_clock(latest + 1);
            }
            return;
        }
        let mut told = Knowledge::default();
        here().for_each(|thread| told.join(&thread.knowledge()));
        let told = Arc::new(told);
        for thread in here() {
            thread.learn(&told);
            thread.set_clock(latest + 1);
        }
    }
}

/// # Safety
/// The pointer leads to a live array that nobody else uses.
unsafe fn slot<'a>(io: *mut [u32; 10]) -> &'a mut [u32; 10] {
    // SAFETY: the caller's promise.
    unsafe { &mut *io }
}

/// The lane that a shuffle reads, as the PTX ISA defines it (`shfl.sync`), and whether it was in range.
fn source(kind: Shuffle, lane: u32, operand: u32, clamp: u32) -> (u32, bool) {
    let (operand, bound, segment) = (operand & 31, clamp & 31, clamp >> 8 & 31);
    let last = lane & segment | bound & !segment;
    let (source, in_range) = match kind {
        Shuffle::Up => (lane.wrapping_sub(operand), lane as i32 - operand as i32 >= last as i32),
        Shuffle::Down => (lane + operand, lane + operand <= last),
        Shuffle::Butterfly => (lane ^ operand, (lane ^ operand) <= last),
        Shuffle::Index => {
            let source = lane & segment | operand & !segment;
            (source, source <= last)
        }
    };
    if in_range { (source, true) } else { (lane, false) }
}

fn reduce(kind: Reduce, a: u32, b: u32) -> u32 {
    match kind {
        Reduce::Add => a.wrapping_add(b),
        Reduce::Min => a.cast_signed().min(b.cast_signed()).cast_unsigned(),
        Reduce::Max => a.cast_signed().max(b.cast_signed()).cast_unsigned(),
        Reduce::UnsignedMin => a.min(b),
        Reduce::UnsignedMax => a.max(b),
        Reduce::And => a & b,
        Reduce::Or => a | b,
        Reduce::Xor => a ^ b,
    }
}
