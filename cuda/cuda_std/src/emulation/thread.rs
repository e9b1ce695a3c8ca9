//! One emulated thread: where it is, what it knows of others' accesses, and its own accesses.

use core::cell::{Cell, RefCell};
use core::panic::Location;
use core::ptr;
use std::format;
use std::string::String;
use std::sync::Arc;

use corosensei::Yielder;

use super::block::Block;
use super::copies::Copies;
use super::launch::owner;
use super::order::Knowledge;
use super::report::Defect;
use super::shadow::{self, CLOCK_SHIFT, Conflict, INITIALISED, PENDING, READ, THREAD_SHIFT, WRITE};
use super::shared::SHARED_BASE;
use super::wgmma::Operands;
use crate::Bits;

std::thread_local! {
    /// The emulated thread that runs on this one now.
    static CURRENT: Cell<*const Thread> = const { Cell::new(ptr::null()) };
}

pub type Place = &'static Location<'static>;

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not started, running, or about to.
    Ready,
    /// Waits for the lanes of a warp.
    Warp,
    /// Waits at this hardware barrier.
    Barrier(u32),
    /// Asked again and again for a value that does not change.
    Spinning,
    /// Returned.
    Ended,
    /// Stopped by a report.
    Stopped,
}

pub struct Thread {
    /// In its block, x fastest.
    pub index: u32,
    pub position: [u32; 3],
    pub block: *const Block,
    /// Accesses carry it; grows with every synchronisation that others may learn of.
    pub clock: Cell<u32>,
    /// Clock and thread as in a shadow cell.
    pub stamp: Cell<u64>,
    /// Accesses of the warp's lanes up to this clock are known.
    pub warp_floor: Cell<u32>,
    /// What else is known, beside the block's own.
    pub known: RefCell<Option<Arc<Knowledge>>>,
    /// What the last releasing fence covered, for the atomics behind it.
    pub released: RefCell<Option<Arc<Knowledge>>>,
    /// What atomics without acquire have seen, for the next acquiring fence.
    pub seen: RefCell<Option<Arc<Knowledge>>>,
    pub yielder: Cell<*const Yielder<(), ()>>,
    /// Lowest and highest address of its stack.
    pub stack: Cell<(usize, usize)>,
    pub status: Cell<Status>,
    /// Where it waits.
    pub place: Cell<Option<Place>>,
    /// What the others of a barrier left for it.
    pub result: Cell<u32>,
    /// Place, address and value of the last atomic access, to see that it spins.
    pub last_atomic: Cell<(usize, usize, u64)>,
    pub copies: RefCell<Copies>,
    /// What it brings to an operation of its warpgroup.
    pub operands: Cell<Option<Operands>>,
    /// When it last ordered ordinary accesses and those of the asynchronous proxy, in fences of the block.
    pub last_fence: Cell<u64>,
}

/// The emulated thread that runs now.
///
/// # Panics
/// Outside a kernel.
pub fn current<'a>() -> &'a Thread {
    let thread = CURRENT.get();
    assert!(
        !thread.is_null(),
        "this operation exists inside a running kernel only: launch it with the Emulator"
    );
    // SAFETY: set by the scheduler for as long as the thread runs.
    unsafe { &*thread }
}

/// As [`current`], `None` outside a kernel.
#[inline(always)]
pub fn current_or_none<'a>() -> Option<&'a Thread> {
    // SAFETY: null or set by the scheduler for as long as the thread runs.
    unsafe { CURRENT.get().as_ref() }
}

/// Says which thread runs; returns which one did.
pub fn set_current(thread: *const Thread) -> *const Thread {
    CURRENT.replace(thread)
}

impl Thread {
    pub fn new(block: *const Block, index: u32, position: [u32; 3]) -> Self {
        Self {
            index,
            position,
            block,
            clock: Cell::new(0),
            stamp: Cell::new(0),
            warp_floor: Cell::new(0),
            known: RefCell::default(),
            released: RefCell::default(),
            seen: RefCell::default(),
            yielder: Cell::new(ptr::null()),
            stack: Cell::new((0, 0)),
            status: Cell::new(Status::Ready),
            place: Cell::new(None),
            result: Cell::new(0),
            last_atomic: Cell::new((0, 0, 0)),
            copies: RefCell::default(),
            operands: Cell::new(None),
            last_fence: Cell::new(0),
        }
    }

    #[inline(always)]
    pub fn block(&self) -> &Block {
        // SAFETY: a block outlives its threads.
        unsafe { &*self.block }
    }

    pub fn lane(&self) -> u32 {
        self.index % 32
    }

    /// The thread's number in the grid.
    pub fn number(&self) -> u32 {
        self.block().first_thread.get() + self.index
    }

    pub fn set_clock(&self, clock: u32) {
        self.clock.set(clock);
        self.stamp.set(u64::from(clock) << CLOCK_SHIFT | u64::from(self.number()) << THREAD_SHIFT);
        let block = self.block();
        if clock > block.latest.get() {
            block.latest.set(clock);
        }
    }

    /// Moves its time on: what it does from here on is not covered by what it told others before.
    pub fn tick(&self) {
        self.set_clock(self.clock.get() + 1);
    }

    /// Whether something orders the access of `stamp` before what this thread does now.
    #[inline(always)]
    pub fn is_after(&self, stamp: u64) -> bool {
        self.is_plainly_after(stamp) || self.knows(stamp)
    }

    /// Whether the block's or the warp's barriers order the access of `stamp`, or it is this thread's own.
    #[inline(always)]
    pub fn is_plainly_after(&self, stamp: u64) -> bool {
        let (clock, number, _) = shadow::parts(stamp);
        let block = self.block();
        let other = number.wrapping_sub(block.first_thread.get());
        if other < block.size.get() {
            if clock <= block.floor.get() || (other / 32 == self.index / 32 && clock <= self.warp_floor.get())
            {
                return true;
            }
            if other == self.index {
                return clock != PENDING;
            }
        }
        false
    }

    #[cold]
    fn knows(&self, stamp: u64) -> bool {
        let (clock, number, _) = shadow::parts(stamp);
        let owner = number / self.block().size.get();
        let covers = |known: &RefCell<Option<Arc<Knowledge>>>| {
            known.borrow().as_ref().is_some_and(|known| known.covers(owner, number, clock))
        };
        clock != PENDING && (covers(&self.known) || covers(&self.block().known))
    }

    /// Everything that others may know once they have heard from this thread.
    pub fn knowledge(&self) -> Knowledge {
        let block = self.block();
        let mut all = Knowledge::default();
        for known in [&self.known, &block.known] {
            if let Some(known) = &*known.borrow() {
                all.join(known);
            }
        }
        all.add_block(block.index.get(), block.floor.get());
        if self.warp_floor.get() > block.floor.get() {
            let first = self.number() - self.lane();
            for lane in 0..32.min(block.size.get() - (self.index - self.lane())) {
                all.add_thread(first + lane, self.warp_floor.get());
            }
        }
        all.add_thread(self.number(), self.clock.get());
        all
    }

    /// Learns what another one knew.
    pub fn learn(&self, news: &Arc<Knowledge>) {
        learn(&mut self.known.borrow_mut(), news);
    }

    /// Lets others run until the scheduler comes back.
    pub fn wait(&self, status: Status, place: Place) {
        self.status.set(status);
        self.place.set(Some(place));
        // SAFETY: set when the coroutine started, which this runs in.
        unsafe { &*self.yielder.get() }.suspend(());
    }

    /// Ends the launch with a report; this thread never goes on.
    pub fn fail(&self, defect: Defect, place: Place, detail: String) -> ! {
        self.block().fail(self, defect, place, None, detail);
        self.stop()
    }

    pub fn stop(&self) -> ! {
        self.status.set(Status::Stopped);
        loop {
            // SAFETY: as in `wait`.
            unsafe { &*self.yielder.get() }.suspend(());
        }
    }

    /// A number is beyond the range of the format that it is rounded to.
    pub fn out_of_range(&self, value: f32, place: Place) {
        if self.block().launch().options.range && value.is_finite() {
            self.fail(Defect::OutOfRange, place, format!("{value:e} is beyond the range of its new format"));
        }
    }

    /// Checks and notes an access of kind `KIND` to `size` bytes at a generic address.
    #[inline]
    pub fn observe<const KIND: u8>(&self, address: usize, size: usize, align: usize, place: Place) {
        let block = self.block();
        if !block.checks.get() || size == 0 {
            return;
        }
        if address & (align - 1) != 0 {
            self.misaligned(address, align, place);
        }
        for region in block.regions() {
            let offset = address.wrapping_sub(region.start);
            if offset < region.bytes {
                if size > region.bytes - offset {
                    self.outside(address, size, place);
                }
                if !block.launch().numbered {
                    return;
                }
                let site = block.sites.number(place);
                let result = region.shadow.touch::<KIND>(offset, size, block.launch().generation, self, site);
                if let Err((conflict, at)) = result {
                    let what = format!("byte {at} of the buffer {}", owner(region.parameter));
                    self.conflict(conflict, KIND, place, &what);
                }
                return;
            }
        }
        let offset = address.wrapping_sub(block.shared_start());
        if offset < block.shared_room() {
            self.observe_shared::<KIND>(offset, size, 1, place);
            return;
        }
        let (low, high) = self.stack.get();
        if address < low || address >= high {
            self.outside(address, size, place);
        }
    }

    /// Checks and notes an access to shared memory; `offset` counts from its start.
    #[inline]
    pub fn observe_shared<const KIND: u8>(&self, offset: usize, size: usize, align: usize, place: Place) {
        let block = self.block();
        if !block.checks.get() {
            return;
        }
        if offset & (align - 1) != 0 {
            self.misaligned(offset + SHARED_BASE as usize, align, place);
        }
        if !block.shared_holds(offset, size) {
            self.outside_shared(offset, size, place);
        }
        let site = block.sites.number(place);
        let result = if KIND == READ {
            const CHECKED: u8 = READ | INITIALISED;
            block.shared_shadow.touch::<CHECKED>(offset, size, block.generation.get(), self, site)
        } else {
            block.shared_shadow.touch::<KIND>(offset, size, block.generation.get(), self, site)
        };
        if let Err((conflict, at)) = result {
            self.conflict(conflict, KIND, place, &block.describe_shared(at));
        }
        if KIND & WRITE != 0 {
            self.note_store(offset, size);
        }
    }

    /// A value of shared memory, moved 16 bytes at a time at most.
    ///
    /// # Safety
    /// As for [`Shared::get`](crate::shared::Shared::get); what is checked here needs no promise.
    #[inline]
    pub unsafe fn load_shared<T: Bits>(&self, address: u32, place: Place) -> T {
        let offset = address.wrapping_sub(SHARED_BASE) as usize;
        self.observe_shared::<READ>(offset, size_of::<T>(), size_of::<T>().min(16), place);
        // SAFETY: inside shared memory; only this block's threads touch it, one at a time.
        unsafe { self.block().shared_at::<T>(address).read_unaligned() }
    }

    /// As [`load_shared`](Self::load_shared).
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub unsafe fn store_shared<T: Bits>(&self, address: u32, value: T, place: Place) {
        let offset = address.wrapping_sub(SHARED_BASE) as usize;
        self.observe_shared::<WRITE>(offset, size_of::<T>(), size_of::<T>().min(16), place);
        // SAFETY: as above.
        unsafe { self.block().shared_at::<T>(address).write_unaligned(value) }
    }

    /// Lets others run.
    pub fn pause(&self, place: Place) {
        self.wait(Status::Ready, place);
    }

    #[cold]
    fn misaligned(&self, address: usize, align: usize, place: Place) -> ! {
        let detail = format!("the address {address:#x} is not a multiple of {align}");
        self.fail(Defect::Misaligned, place, detail)
    }

    #[cold]
    fn outside(&self, address: usize, size: usize, place: Place) -> ! {
        let detail = self.block().launch().describe_address(address, size);
        self.fail(Defect::OutOfBounds, place, detail)
    }

    #[cold]
    fn outside_shared(&self, offset: usize, size: usize, place: Place) -> ! {
        let detail = self.block().describe_outside(offset, size);
        self.fail(Defect::OutOfBounds, place, detail)
    }

    #[cold]
    fn conflict(&self, conflict: Conflict, kind: u8, place: Place, what: &str) -> ! {
        match conflict {
            Conflict::Uninitialised => {
                let detail = format!("{what} is read, and nobody has written it");
                self.fail(Defect::UninitialisedShared, place, detail)
            }
            Conflict::Race { earlier, wrote } if shadow::parts(earlier).0 == PENDING => {
                let detail = format!("{what} is the destination of a copy that was not waited for");
                self.block().fail(self, Defect::UnfinishedCopy, place, Some((earlier, wrote)), detail);
                self.stop()
            }
            Conflict::Race { earlier, wrote } => {
                let now = if kind & shadow::WRITE != 0 { "written" } else { "read" };
                let detail = format!("{what} is {now} with nothing to order the two accesses");
                self.block().fail(self, Defect::Race, place, Some((earlier, wrote)), detail);
                self.stop()
            }
        }
    }
}

/// Adds `news` to what is known; shares it where nothing was known before.
pub fn learn(known: &mut Option<Arc<Knowledge>>, news: &Arc<Knowledge>) {
    match known {
        None => *known = Some(news.clone()),
        Some(own) if Arc::ptr_eq(own, news) => {}
        Some(own) => Arc::make_mut(own).join(news),
    }
}
