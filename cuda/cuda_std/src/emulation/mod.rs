//! Kernels without a GPU: every thread a coroutine, every access checked.
//!
//! [`Emulator`] is a [`Launcher`]: the launchers that `#[kernel]` makes run on it as they do on a CUDA stream, but
//! a launch is over when it returns, and says what was wrong with it.
//!
//! ```
//! use cuda_std::emulation::{Defect, Emulator, Options};
//! use cuda_std::prelude::*;
//!
//! /// `out[i] = out[i + 1]`: thread `i` reads what thread `i + 1` writes.
//! #[kernel]
//! pub unsafe fn shift(out: *mut u32) {
//!     let i = thread::thread_idx_x() as usize;
//!     unsafe { *out.add(i) = *out.add(i + 1) }
//! }
//!
//! let emulator = Emulator::new(Options::default());
//! let out = DevicePtrMut::from_raw(emulator.allocate(33 * 4));
//! let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
//! let report = unsafe { shift(&emulator, &config, out) }.unwrap_err();
//! assert_eq!(report.defect, Defect::Race);
//! ```
//!
//! # How it runs
//! A thread runs until it has to wait: at a barrier, for the lanes of its warp, for an `mbarrier`, or for an atomic
//! that keeps giving the same answer. Then another one of its block does. Blocks are spread over rayon's threads
//! (`ThreadPool::install` with a pool of one gives the same schedule each time); a block in which everybody
//! waits for another is put aside, so that barriers over the grid work for any grid. If nobody can go on, that
//! is reported with who waits where. The order of threads and blocks, and how late copies finish, come from
//! [`Options::seed`]; as late as they may is the rule.
//!
//! # What it finds
//! See [`Defect`]. Races are found by what orders two accesses, not by what happens to come first: full, named and
//! warp barriers, `mbarrier`, and atomics and fences with release and acquire give order; shuffles and
//! votes do not, nor does running in one warp. Each pair of bytes remembers its last write and two reads that
//! are not ordered among themselves. Plain accesses of a kernel are seen since `#[kernel]` and `#[device]`
//! rewrite them on the host: dereferences of raw pointers, and the pointers' own methods (`read`, `write`, their
//! `_volatile` and `_unaligned` forms, `copy_from`, `copy_to`, `write_bytes`).
//!
//! # What it does not see
//! - Accesses through references: `&*pointer` counts as a read of the whole value where it is written,
//!   `&mut *pointer` as a write; what is done with the reference later is not seen.
//! - `(*pointer).field` counts as an access to all of `*pointer`.
//! - Dereferences in the arguments of macros whose arguments are neither expressions nor blocks; in functions that
//!   are marked neither `#[device]` nor `#[kernel]`; in `macro_rules!` themselves.
//! - Indices out of bounds inside one buffer, such as a row too long in a matrix that is not the last.
//! - Loops that wait with plain loads: they never end. Wait with `atomic` or `read_volatile`.
//! - A missing `fence_proxy_async` between a bulk copy's writes and ordinary ones; before a bulk store or `wgmma` reads what ordinary stores wrote it is
//!   seen.
//! - Sums of products are fused on the device where Rust does not ask for it (`a * b + c`), and here only where it
//!   does (`mul_add`). `std`'s functions (`exp`, `sin`, …) hide [`GpuFloat`](crate::float::GpuFloat)'s
//!   of the same name; both keep the bounds that are stated there.
//! - Operations of `cuda_std` give the NaN that an H200 gives (see [`GpuFloat`](crate::float::GpuFloat)); Rust's own
//!   operators and methods (`/`, `f32::max`, `f32::floor`, …) give the host's, and the host's choice between
//!   zeros of different sign in `f32::max` and `f32::min`. Rust specifies neither, so no kernel may rely on them.
//! - One byte is not told from its neighbour where several threads write single bytes of one pair.

use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::sync::Arc;
use std::vec::Vec;

mod barrier;
mod block;
mod copies;
mod launch;
mod mbarrier;
mod messages;
#[doc(hidden)]
pub mod observe;
mod order;
mod panics;
mod proxy;
mod random;
mod report;
mod shadow;
mod shared;
mod site;
mod tensor;
mod thread;
mod warp;
mod wgmma;

pub(crate) use barrier::Reduction;
pub(crate) use mbarrier::offset as counter_offset;
pub(crate) use messages::Access;
pub use report::{Defect, Other, Report};
pub(crate) use shadow::{ATOMICALLY, READ, WRITE};
pub(crate) use shared::SHARED_BASE;
pub use shared::SHARED_LIMIT;
pub use tensor::{BLOCK_PRODUCTS, EXTRA_BITS};
#[doc(hidden)]
pub use tensor::{Format, HOPPER, Model, multiply};
pub(crate) use thread::{Place, Thread, current, current_or_none};
pub(crate) use warp::{Operation, Reduce, Shuffle};
pub(crate) use wgmma::Factors;

use crate::launch::{Kernel, LaunchConfig, Launcher};
use shadow::Shadow;

/// How kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the schedule is drawn from.
    pub seed: u64,
    /// Whether accesses are checked. Without, kernels run several times as fast, and a wrong address is the
    /// host's own fault.
    pub check: bool,
    /// Whether a finite number that becomes infinite, or is kept from it, where it is rounded to f16 is a defect. Some kernels are made
    /// for such numbers; those of a model should have none.
    pub range: bool,
}

impl Default for Options {
    /// Seed 0, with checks of accesses.
    fn default() -> Self {
        Self { seed: 0, check: true, range: false }
    }
}

/// Bytes before and behind each allocation.
const GUARD: usize = 256;
/// What fresh memory is full of: a NaN in every float format.
const FRESH: u8 = 0xff;

/// A buffer of global memory.
struct Allocation {
    address: usize,
    bytes: usize,
    layout: Layout,
    shadow: Arc<Shadow>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc((self.address - GUARD) as *mut u8, self.layout) }
    }
}

/// A device that is the host: global memory, and kernels run on it.
///
/// Addresses are the host's own. Accesses of [`read`](Self::read) and its like must stay inside one allocation.
pub struct Emulator {
    options: Cell<Options>,
    /// Sorted by address.
    memory: RefCell<Vec<Allocation>>,
    /// Buffers of other devices that kernels of this one may touch.
    peers: RefCell<Vec<Peer>>,
}

/// A buffer of another device.
struct Peer {
    address: usize,
    bytes: usize,
    /// Of the accesses from here alone.
    shadow: Arc<Shadow>,
}

impl Emulator {
    /// A device without any memory in use.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options: Cell::new(options), memory: RefCell::default(), peers: RefCell::default() }
    }

    /// How kernels run.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options.get()
    }

    /// Draws the schedules of later launches from another seed.
    pub fn set_seed(&self, seed: u64) {
        self.options.set(Options { seed, ..self.options.get() });
    }

    /// A buffer of `bytes` bytes (0 is allowed), aligned to 256, all of them 0xff: a NaN in every float format.
    /// 256 bytes around it belong to nobody.
    #[must_use]
    pub fn allocate(&self, bytes: usize) -> u64 {
        let layout = Layout::from_size_align(bytes + 2 * GUARD, GUARD).expect("fits the address space");
        // SAFETY: the layout is not empty; all of it is written.
        let start = unsafe {
            let start = alloc(layout);
            if start.is_null() {
                handle_alloc_error(layout);
            }
            start.write_bytes(FRESH, layout.size());
            start
        };
        let address = start as usize + GUARD;
        let allocation = Allocation { address, bytes, layout, shadow: Arc::new(Shadow::new(bytes)) };
        let mut memory = self.memory.borrow_mut();
        let place = memory.partition_point(|other| other.address < address);
        memory.insert(place, allocation);
        address as u64
    }

    /// Bytes of all buffers that are in use.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.memory.borrow().iter().map(|allocation| allocation.bytes).sum()
    }

    /// Lets kernels of this device touch a buffer of another one, as GPUs do that reach each other's memory. What the kernels of one
    /// device do is checked by itself: of accesses of several only that they are inside. A kernel may wait for what another device's
    /// writes; it bounds that wait itself, since here nobody knows whether something will come.
    ///
    /// # Safety
    /// The buffer is there as long as kernels are launched here, and what several devices touch at the same time they touch by atomic
    /// operations.
    pub unsafe fn reach(&self, address: u64, bytes: usize) {
        let peer = Peer { address: address as usize, bytes, shadow: Arc::new(Shadow::new(bytes)) };
        self.peers.borrow_mut().push(peer);
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// `address` is not what [`allocate`](Self::allocate) returned.
    ///
    /// # Safety
    /// Nobody uses the buffer any more.
    pub unsafe fn free(&self, address: u64) {
        let mut memory = self.memory.borrow_mut();
        let place = memory.binary_search_by_key(&(address as usize), |allocation| allocation.address);
        memory.remove(place.expect("free: expected the address of an allocation"));
    }

    /// Copies `bytes` to `to`.
    ///
    /// # Panics
    /// The range is not inside an allocation.
    ///
    /// # Safety
    /// Nobody else uses the range.
    pub unsafe fn write(&self, to: u64, bytes: &[u8]) {
        self.expect_inside(to, bytes.len());
        // SAFETY: inside an allocation.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
    }

    /// Copies from `from` to `bytes`.
    ///
    /// # Panics
    /// The range is not inside an allocation.
    ///
    /// # Safety
    /// Nobody else writes the range.
    pub unsafe fn read(&self, from: u64, bytes: &mut [u8]) {
        self.expect_inside(from, bytes.len());
        // SAFETY: inside an allocation.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Sets `bytes` bytes at `to`.
    ///
    /// # Panics
    /// The range is not inside an allocation.
    ///
    /// # Safety
    /// Nobody else uses the range.
    pub unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) {
        self.expect_inside(to, bytes);
        // SAFETY: inside an allocation.
        unsafe { (to as *mut u8).write_bytes(byte, bytes) }
    }

    fn expect_inside(&self, address: u64, bytes: usize) {
        let inside = |allocation: &Allocation| {
            let offset = (address as usize).wrapping_sub(allocation.address);
            offset <= allocation.bytes && bytes <= allocation.bytes - offset
        };
        let memory = self.memory.borrow();
        let behind = memory.partition_point(|allocation| allocation.address <= address as usize);
        assert!(
            bytes == 0 || behind.checked_sub(1).is_some_and(|i| inside(&memory[i])),
            "{bytes} bytes at {address:#x} are not inside an allocation"
        );
    }
}

impl Launcher for Emulator {
    type Error = Report;

    /// Runs the kernel to its end, or to its first defect.
    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), Report> {
        let memory = self.memory.borrow();
        let find = |address: usize| {
            let behind = memory.partition_point(|allocation| allocation.address <= address);
            let found = memory.get(behind.checked_sub(1)?)?;
            // One past the end is a pointer to a buffer, too: of an empty range.
            (address <= found.address + found.bytes)
                .then(|| (found.address, found.bytes, found.shadow.clone()))
        };
        let peers = self.peers.borrow();
        let peers = peers.iter().map(|peer| (peer.address, peer.bytes, peer.shadow.clone()));
        // SAFETY: the caller's promise.
        unsafe { launch::run(kernel, config, params, self.options.get(), find, peers) }
    }
}
