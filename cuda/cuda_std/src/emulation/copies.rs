//! Asynchronous copies, which finish as late as they may.
//!
//! A copy is noted and checked when it is issued; its bytes move when a wait needs them. Until then the
//! destination is marked, so that whoever touches it is reported. What finishes through an `mbarrier` becomes an
//! [`Event`]: it happens when nobody in the block can go on without it, in an order drawn from the seed, or, with
//! some seeds, earlier.

use core::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::vec::Vec;

use super::block::Block;
use super::mbarrier;
use super::order::Knowledge;
use super::report::Defect;
use super::shadow::{CLOCK_SHIFT, PENDING, READ, SITE_SHIFT, WRITE};
use super::shared::SHARED_BASE;
use super::thread::{Place, Thread};
use crate::tensor_map::TensorMap;

/// A copy to shared memory that has been issued.
pub struct Copy {
    /// Offset in shared memory.
    to: usize,
    from: usize,
    /// Bytes of the destination, of which the first `valid` come from the source and the rest are zero.
    bytes: usize,
    valid: usize,
    /// What its bytes are stamped with once there; of the waiting thread where nobody set it.
    stamp: Cell<Option<u64>>,
    done: Cell<bool>,
}

/// A copy from shared to global memory.
struct Store {
    to: usize,
    from: usize,
    bytes: usize,
    place: Place,
    /// The bytes, once they were read.
    data: Option<Vec<u8>>,
}

/// What one thread has under way.
#[derive(Default)]
pub struct Copies {
    open: Vec<Rc<Copy>>,
    groups: VecDeque<Vec<Rc<Copy>>>,
    open_stores: Vec<Store>,
    store_groups: VecDeque<Vec<Store>>,
}

impl Copies {
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What happens by itself, later.
pub struct Event {
    copies: Vec<Rc<Copy>>,
    /// Offset of the `mbarrier`.
    counter: usize,
    /// Bytes that the counter is told of; 0 for an arrival.
    bytes: u32,
    arrivals: u32,
    told: Arc<Knowledge>,
    place: Place,
}

impl Thread {
    fn new_copy(
        &self,
        to: u32,
        from: u64,
        bytes: usize,
        valid: usize,
        align: usize,
        place: Place,
    ) -> Rc<Copy> {
        let (to, from) = (to.wrapping_sub(SHARED_BASE) as usize, from as usize);
        self.observe::<READ>(from, valid, align, place);
        self.observe_shared::<WRITE>(to, bytes, align, place);
        let block = self.block();
        if block.checks.get() {
            let site = u64::from(block.sites.number(place)) << SITE_SHIFT;
            let stamp =
                self.stamp.get() & ((1 << CLOCK_SHIFT) - 1) | u64::from(PENDING) << CLOCK_SHIFT | site;
            block.shared_shadow.mark(to, bytes, block.generation.get(), stamp);
        }
        Rc::new(Copy { to, from, bytes, valid, stamp: Cell::new(None), done: Cell::new(false) })
    }

    /// `cp.async`.
    pub fn copy(&self, to: u32, from: u64, bytes: usize, valid: usize, place: Place) {
        let copy = self.new_copy(to, from, bytes, valid.min(bytes), bytes, place);
        self.copies.borrow_mut().open.push(copy);
    }

    /// `cp.async.commit_group`.
    pub fn commit_copies(&self) {
        let mut copies = self.copies.borrow_mut();
        let group = core::mem::take(&mut copies.open);
        copies.groups.push_back(group);
    }

    /// `cp.async.wait_group`; `None` for `wait_all`.
    pub fn wait_copies(&self, pending: Option<usize>) {
        let mut copies = self.copies.borrow_mut();
        while copies.groups.len() > pending.unwrap_or(0) {
            for copy in copies.groups.pop_front().into_iter().flatten() {
                self.block().land(&copy, self.stamp.get());
            }
        }
        if pending.is_none() {
            for copy in core::mem::take(&mut copies.open) {
                self.block().land(&copy, self.stamp.get());
            }
        }
    }

    /// `cp.async.mbarrier.arrive.noinc`.
    pub fn arrive_after_copies(&self, counter: usize, place: Place) {
        let mut copies = self.copies.borrow_mut();
        copies.open.retain(|copy| !copy.done.get());
        let under_way: Vec<_> = copies.groups.iter().flatten().chain(&copies.open).cloned().collect();
        for copy in &under_way {
            if copy.stamp.get().is_none() {
                copy.stamp.set(Some(self.stamp.get()));
            }
        }
        let told = Arc::new(self.knowledge());
        self.tick();
        self.block().add_event(Event { copies: under_way, counter, bytes: 0, arrivals: 1, told, place });
    }

    /// `cp.async.bulk` to shared memory.
    pub fn bulk_copy(&self, to: u32, from: u64, bytes: u32, counter: usize, place: Place) {
        self.check_bulk(bytes, place);
        let copy = self.new_copy(to, from, bytes as usize, bytes as usize, 16, place);
        self.note_bulk_store(copy.to, copy.bytes);
        copy.stamp.set(Some(self.stamp.get()));
        let told = Arc::new(self.knowledge());
        self.tick();
        self.block().add_event(Event { copies: Vec::from([copy]), counter, bytes, arrivals: 0, told, place });
    }

    /// `cp.async.bulk.tensor.2d` of a box, which is swizzled.
    pub fn tensor_copy(&self, to: u32, map: u64, [column, row]: [u32; 2], counter: usize, place: Place) {
        const WORDS: u32 = TensorMap::COLUMNS / 8;
        self.observe::<READ>(map as usize, size_of::<TensorMap>(), align_of::<TensorMap>(), place);
        // SAFETY: just found to be inside a buffer, or checks are off.
        let TensorMap([mark, address, rows, cols, box_rows, ..]) =
            unsafe { (map as *const TensorMap).read() };
        if mark != TensorMap::EMULATED {
            let detail = std::format!("there is no map of an emulated device's matrix at {map:#x}");
            self.fail(Defect::OutOfBounds, place, detail);
        }
        if !to.is_multiple_of(1024) {
            let detail = std::format!("the shared address {to} of a box is not a multiple of 1,024");
            self.fail(Defect::Misaligned, place, detail);
        }
        let words = (0..box_rows as u32).flat_map(|y| (0..WORDS).map(move |x| (y, x)));
        let copies = words.map(|(y, x)| {
            let (row, first) = (u64::from(row + y), u64::from(column + 8 * x));
            let there = if row < rows { cols.saturating_sub(first).min(8) as usize * 2 } else { 0 };
            let from = if there > 0 { address + (row * cols + first) * 2 } else { address };
            let copy = self.new_copy(to + y * 128 + (x ^ (y % 8)) * 16, from, 16, there, 16, place);
            copy.stamp.set(Some(self.stamp.get()));
            copy
        });
        let copies = copies.collect();
        let bytes = TensorMap::box_bytes(box_rows as u32);
        self.note_bulk_store(to.wrapping_sub(SHARED_BASE) as usize, bytes as usize);
        let told = Arc::new(self.knowledge());
        self.tick();
        self.block().add_event(Event { copies, counter, bytes, arrivals: 0, told, place });
    }

    fn check_bulk(&self, bytes: u32, place: Place) {
        if self.block().checks.get() && !bytes.is_multiple_of(16) {
            let detail = std::format!("{bytes} bytes are not a multiple of 16");
            self.fail(Defect::Misaligned, place, detail);
        }
    }

    /// `cp.async.bulk` to global memory.
    pub fn bulk_store(&self, to: u64, from: u32, bytes: u32, place: Place) {
        self.check_bulk(bytes, place);
        let (to, from, bytes) = (to as usize, from.wrapping_sub(SHARED_BASE) as usize, bytes as usize);
        self.observe_shared::<READ>(from, bytes, 16, place);
        self.check_fences(from, bytes, place);
        self.observe::<WRITE>(to, bytes, 16, place);
        self.copies.borrow_mut().open_stores.push(Store { to, from, bytes, place, data: None });
    }

    /// `cp.async.bulk.commit_group`.
    pub fn commit_stores(&self) {
        let mut copies = self.copies.borrow_mut();
        let group = core::mem::take(&mut copies.open_stores);
        copies.store_groups.push_back(group);
    }

    /// `cp.async.bulk.wait_group`, with `only_read` its `.read` form.
    pub fn wait_stores(&self, pending: usize, only_read: bool) {
        let mut copies = self.copies.borrow_mut();
        let finished = copies.store_groups.len().saturating_sub(pending);
        for store in copies.store_groups.iter_mut().take(finished).flatten() {
            self.read_source(store);
        }
        if !only_read {
            for store in copies.store_groups.drain(..finished).flatten() {
                self.finish_store(&store);
            }
        }
    }

    fn read_source(&self, store: &mut Store) {
        let block = self.block();
        store.data.get_or_insert_with(|| {
            let from = (block.shared_start() + store.from) as *const u8;
            // SAFETY: checked when it was issued; only this block's threads touch it, one at a time.
            unsafe { core::slice::from_raw_parts(from, store.bytes) }.to_vec()
        });
    }

    fn finish_store(&self, store: &Store) {
        let Some(data) = &store.data else { return };
        self.observe::<WRITE>(store.to, store.bytes, 16, store.place);
        // SAFETY: the launch's buffers; checked when it was issued.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), store.to as *mut u8, data.len()) };
    }

    /// What the hardware finishes after the thread has ended.
    pub fn finish_copies(&self) {
        let mut copies = self.copies.take();
        for copy in copies.groups.into_iter().flatten().chain(copies.open) {
            if copy.stamp.get().is_none() {
                self.block().land(&copy, self.stamp.get());
            }
        }
        for store in copies.store_groups.iter_mut().flatten().chain(&mut copies.open_stores) {
            self.read_source(store);
            self.finish_store(store);
        }
    }
}

impl Block {
    /// Finishes a copy, once.
    fn land(&self, copy: &Copy, stamp: u64) {
        if copy.done.replace(true) {
            return;
        }
        self.move_bytes(copy);
        if self.checks.get() {
            let stamp = copy.stamp.get().unwrap_or(stamp);
            self.shared_shadow.mark(copy.to, copy.bytes, self.generation.get(), stamp);
            self.note_landing(copy.to, copy.bytes);
        }
    }

    fn move_bytes(&self, copy: &Copy) {
        let to = (self.shared_start() + copy.to) as *mut u8;
        // SAFETY: source and destination were checked when the copy was issued.
        unsafe {
            core::ptr::copy_nonoverlapping(copy.from as *const u8, to, copy.valid);
            to.add(copy.valid).write_bytes(0, copy.bytes - copy.valid);
        }
    }

    fn add_event(&self, event: Event) {
        // With a quarter of the seeds some bytes arrive early; nobody may know before the wait.
        if self.launch().options.seed % 4 == 3 && self.random.below(2) == 0 {
            event.copies.iter().for_each(|copy| self.move_bytes(copy));
        }
        self.events.borrow_mut().push(event);
    }

    /// Lets something happen that was put off; whether there was anything.
    pub fn fire_event(&self) -> bool {
        let mut events = self.events.borrow_mut();
        if events.is_empty() {
            return false;
        }
        let i = self.random.below(events.len() as u32) as usize;
        let event = events.swap_remove(i);
        drop(events);
        self.happen(&event);
        self.step();
        true
    }

    fn happen(&self, event: &Event) {
        for copy in &event.copies {
            self.land(copy, copy.stamp.get().unwrap_or(0));
        }
        mbarrier::count(self, event.counter, event.arrivals, event.bytes, &event.told, event.place);
    }
}
