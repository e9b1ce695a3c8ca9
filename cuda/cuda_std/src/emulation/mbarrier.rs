//! `mbarrier` objects.

use std::format;
use std::sync::Arc;

use super::block::Block;
use super::order::Knowledge;
use super::report::Defect;
use super::shadow::{ATOMICALLY, READ, UPDATE, WRITE};
use super::shared::SHARED_BASE;
use super::thread::{Place, Status, Thread};

/// The state of an `mbarrier`.
pub struct Counter {
    offset: usize,
    expected: u32,
    /// Arrivals that the phase still waits for.
    arrivals: u32,
    /// Bytes that it still waits for; copies may come before they are announced.
    bytes: i64,
    /// Phases that are complete.
    phase: u64,
    /// What the arrivals of this phase have told.
    telling: Knowledge,
    /// What those of the phases before have.
    told: Arc<Knowledge>,
}

/// The offset in shared memory of the `mbarrier` at a shared address.
pub fn offset(address: u32) -> usize {
    address.wrapping_sub(SHARED_BASE) as usize
}

/// Counts arrivals and bytes, as a thread or a copy brings them.
pub fn count(block: &Block, offset: usize, arrivals: u32, bytes: u32, told: &Knowledge, place: Place) {
    let mut counters = block.counters.borrow_mut();
    let Some(counter) = counters.iter_mut().find(|counter| counter.offset == offset) else {
        let detail =
            format!("there is no initialised mbarrier at shared address {}", offset + SHARED_BASE as usize);
        block.fail(&block.threads[0], Defect::BarrierMisuse, place, None, detail);
        return;
    };
    if arrivals > counter.arrivals {
        let detail = format!("more arrivals than the {} that the mbarrier expects", counter.expected);
        block.fail(&block.threads[0], Defect::BarrierMisuse, place, None, detail);
        return;
    }
    counter.arrivals -= arrivals;
    counter.bytes -= i64::from(bytes);
    counter.telling.join(told);
    counter.complete(block);
}

impl Counter {
    fn complete(&mut self, block: &Block) {
        if self.arrivals == 0 && self.bytes == 0 {
            self.phase += 1;
            self.arrivals = self.expected;
            Arc::make_mut(&mut self.told).join(&core::mem::take(&mut self.telling));
            block.step();
        }
    }
}

impl Thread {
    /// `mbarrier.init`.
    pub fn counter_init(&self, offset: usize, arrivals: u32, place: Place) {
        self.observe_shared::<WRITE>(offset, 8, 8, place);
        if !(1..1 << 20).contains(&arrivals) {
            let detail = format!("an mbarrier expects 1 to {} arrivals, not {arrivals}", (1 << 20) - 1);
            self.fail(Defect::BarrierMisuse, place, detail);
        }
        let mut counters = self.block().counters.borrow_mut();
        counters.retain(|counter| counter.offset != offset);
        counters.push(Counter {
            offset,
            expected: arrivals,
            arrivals,
            bytes: 0,
            phase: 0,
            telling: Knowledge::default(),
            told: Arc::default(),
        });
    }

    /// `mbarrier.inval`.
    pub fn counter_invalidate(&self, offset: usize, place: Place) {
        self.observe_shared::<WRITE>(offset, 8, 8, place);
        self.expect_counter(offset, place);
        self.block().counters.borrow_mut().retain(|counter| counter.offset != offset);
    }

    /// `mbarrier.arrive` and `mbarrier.expect_tx`.
    pub fn counter_arrive(&self, offset: usize, arrivals: u32, expected_bytes: u32, place: Place) {
        const ATOMIC_UPDATE: u8 = UPDATE | ATOMICALLY;
        self.observe_shared::<ATOMIC_UPDATE>(offset, 8, 8, place);
        self.expect_counter(offset, place);
        if let Some(counter) = self.block().counters.borrow_mut().iter_mut().find(|c| c.offset == offset) {
            counter.bytes += i64::from(expected_bytes);
            if arrivals > counter.arrivals {
                let detail = format!("more arrivals than the {} that the mbarrier expects", counter.expected);
                self.fail(Defect::BarrierMisuse, place, detail);
            }
        }
        let told = if arrivals > 0 { self.knowledge() } else { Knowledge::default() };
        count(self.block(), offset, arrivals, 0, &told, place);
        self.tick();
        self.block().step();
    }

    /// `mbarrier.test_wait.parity`: lets others run where the answer is no.
    pub fn counter_test(&self, offset: usize, parity: u32, place: Place) -> bool {
        const ATOMIC_READ: u8 = READ | ATOMICALLY;
        self.observe_shared::<ATOMIC_READ>(offset, 8, 8, place);
        self.expect_counter(offset, place);
        let counters = self.block().counters.borrow();
        if let Some(counter) = counters.iter().find(|counter| counter.offset == offset)
            && counter.phase & 1 != u64::from(parity & 1)
        {
            self.learn(&counter.told);
            return true;
        }
        drop(counters);
        self.wait(Status::Spinning, place);
        false
    }

    /// Checks that there is an `mbarrier` before anything is asked of it.
    pub fn expect_counter(&self, offset: usize, place: Place) {
        if !self.block().counters.borrow().iter().any(|counter| counter.offset == offset) {
            let address = offset + SHARED_BASE as usize;
            let detail = format!("there is no initialised mbarrier at shared address {address}");
            self.fail(Defect::BarrierMisuse, place, detail);
        }
    }
}
