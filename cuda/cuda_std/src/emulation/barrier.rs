//! The 16 hardware barriers of a block.

use std::format;
use std::sync::Arc;
use std::vec::Vec;

use super::order::Knowledge;
use super::report::Defect;
use super::thread::{Place, Status, Thread, learn};

/// What a barrier does with the threads' predicates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    None,
    Count,
    And,
    Or,
}

#[derive(Default)]
pub struct Barrier {
    /// Threads that this phase waits for; 0 before the first came.
    expected: u32,
    arrived: u32,
    /// How many came with a true predicate.
    count: u32,
    waiting: Vec<u32>,
    /// Where each warp came to it.
    places: Vec<Option<Place>>,
    /// What the threads that came have told (a barrier of a part of the block).
    told: Knowledge,
}

impl Thread {
    /// A barrier of the whole block (`barrier.sync.aligned`).
    pub fn sync_block(&self, number: u32, predicate: bool, reduction: Reduction, place: Place) -> u32 {
        let block = self.block();
        let mut barrier = self.barrier(number, place).borrow_mut();
        let size = block.size.get();
        if barrier.expected != 0 && barrier.expected != size {
            let detail =
                format!("barrier {number} waits for {} threads; this is for all {size}", barrier.expected);
            self.fail(Defect::BarrierMisuse, place, detail);
        }
        barrier.expected = size;
        barrier.places.resize(size.div_ceil(32) as usize, None);
        match &mut barrier.places[self.index as usize / 32] {
            Some(other) if !same(other, place) => {
                let detail = format!(
                    "the lanes of a warp wait at two different barriers, the other at {}:{}: {}",
                    other.file(),
                    other.line(),
                    block.whereabouts()
                );
                self.fail(Defect::DivergentBarrier, place, detail);
            }
            warp => *warp = Some(place),
        }
        barrier.arrived += 1;
        barrier.count += u32::from(predicate);
        if barrier.arrived < size {
            barrier.waiting.push(self.index);
            drop(barrier);
            self.wait(Status::Barrier(number), place);
            return self.result.get();
        }

        let result = match reduction {
            Reduction::None => 0,
            Reduction::Count => barrier.count,
            Reduction::And => u32::from(barrier.count == size),
            Reduction::Or => u32::from(barrier.count > 0),
        };
        // Everything before is known to everyone now.
        let floor = block.latest.get();
        block.floor.set(floor);
        let mut known = block.known.borrow_mut();
        for thread in &block.threads {
            thread.set_clock(floor + 1);
            if let Some(news) = thread.known.take() {
                learn(&mut known, &news);
            }
        }
        barrier.arrived = 0;
        barrier.count = 0;
        barrier.expected = 0;
        barrier.places.fill(None);
        for index in barrier.waiting.drain(..) {
            block.threads[index as usize].result.set(result);
            block.wake(index);
        }
        block.step();
        result
    }

    /// A barrier of `threads` threads (`barrier.sync` and `barrier.arrive` with a count).
    pub fn sync_part(&self, number: u32, threads: u32, waits: bool, place: Place) {
        let block = self.block();
        let mut barrier = self.barrier(number, place).borrow_mut();
        if threads == 0 || !threads.is_multiple_of(32) || threads > block.size.get().next_multiple_of(32) {
            let detail = format!("{threads} threads are not a multiple of 32 within the block");
            self.fail(Defect::BarrierMisuse, place, detail);
        }
        if barrier.expected != 0 && barrier.expected != threads {
            let detail =
                format!("barrier {number} waits for {} threads; this is for {threads}", barrier.expected);
            self.fail(Defect::BarrierMisuse, place, detail);
        }
        barrier.expected = threads;
        barrier.arrived += 1;
        barrier.told.join(&self.knowledge());
        self.tick();
        block.step();
        if barrier.arrived < threads {
            if waits {
                barrier.waiting.push(self.index);
                drop(barrier);
                self.wait(Status::Barrier(number), place);
            }
            return;
        }
        let Barrier { told, waiting, .. } = core::mem::take(&mut *barrier);
        let told = Arc::new(told);
        for index in waiting {
            block.threads[index as usize].learn(&told);
            block.wake(index);
        }
        if waits {
            self.learn(&told);
        }
    }

    fn barrier(&self, number: u32, place: Place) -> &core::cell::RefCell<Barrier> {
        self.block().barriers.get(number as usize).unwrap_or_else(|| {
            self.fail(Defect::BarrierMisuse, place, format!("there is no barrier {number}: they are 0 to 15"))
        })
    }
}

/// Whether two places are the same in the source.
fn same(a: Place, b: Place) -> bool {
    core::ptr::eq(a, b) || (a.line() == b.line() && a.column() == b.column() && a.file() == b.file())
}
