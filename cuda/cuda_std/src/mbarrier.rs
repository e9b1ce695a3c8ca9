//! Barriers in shared memory that count arrivals and, from sm_90, bytes of asynchronous copies.
//!
//! Route on the device: `asm!`; each operation is a thread's own access to shared memory, with a memory clobber.

use crate::shared::Shared;
use crate::target::mbarrier as target;

/// An `mbarrier` object: 8 bytes of shared memory, aligned to 8.
///
/// It goes through phases of alternating parity, 0 first. A phase is complete when the expected arrivals have
/// come and the expected bytes have landed; the next phase starts by itself with the same number of arrivals.
/// All methods need the object to be initialised, and [`init`](Self::init) needs a block barrier behind it
/// before other threads use it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Mbarrier {
    address: u32,
}

impl Mbarrier {
    /// The barrier in `place`.
    #[inline(always)]
    #[must_use]
    pub const fn new(place: Shared<u64>) -> Self {
        Self { address: place.address() }
    }

    /// Its address in the shared state space.
    #[inline(always)]
    #[must_use]
    pub const fn address(self) -> u32 {
        self.address
    }

    /// Starts phase 0, which expects `arrivals` (1 to 2^20 - 1).
    ///
    /// # Safety
    /// The place is the block's, one thread initialises it, and nobody uses it yet.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn init(self, arrivals: u32) {
        // SAFETY: the caller's promise.
        unsafe { target::init(self.address, arrivals) }
    }

    /// Makes the place ordinary memory again.
    ///
    /// # Safety
    /// Nobody uses the barrier any more.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn invalidate(self) {
        // SAFETY: the caller's promise.
        unsafe { target::invalidate(self.address) }
    }

    /// Counts one arrival; what this thread wrote before is seen by those who then wait for the phase.
    ///
    /// # Safety
    /// The phase still expects an arrival.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn arrive(self) {
        // SAFETY: the caller's promise.
        unsafe { target::arrive(self.address) }
    }

    /// [`arrive`](Self::arrive) where `condition`, without a branch: LLVM may copy what stands between two branches on one condition into both of their sides, and lanes
    /// that took different sides never meet in a copied operation of the warp.
    ///
    /// # Safety
    /// As for [`arrive`](Self::arrive), where `condition`.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn arrive_if(self, condition: bool) {
        // SAFETY: the caller's promise.
        unsafe { target::arrive_if(self.address, condition) }
    }

    /// Counts one arrival and lets the phase wait for `bytes` more of bulk copies. sm_90.
    ///
    /// # Safety
    /// The phase still expects an arrival, and the copies will come.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn arrive_expect_tx(self, bytes: u32) {
        // SAFETY: the caller's promise.
        unsafe { target::arrive_expect_tx(self.address, bytes) }
    }

    /// Lets the phase wait for `bytes` more of bulk copies, without an arrival. sm_90.
    ///
    /// # Safety
    /// The phase is not complete, and the copies will come.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn expect_tx(self, bytes: u32) {
        // SAFETY: the caller's promise.
        unsafe { target::expect_tx(self.address, bytes) }
    }

    /// Lets all `cp.async` that this thread issued so far arrive once, together, when they are done; the
    /// arrival is one of those that `init` counted.
    ///
    /// # Safety
    /// The phase still expects an arrival.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn arrive_after_copies(self) {
        // SAFETY: the caller's promise.
        unsafe { target::arrive_after_copies(self.address) }
    }

    /// Whether the phase of this parity is complete; if so, what came before its arrivals is seen.
    ///
    /// # Safety
    /// The barrier is initialised, and the phase is the current or the one before.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    #[must_use]
    pub unsafe fn test_wait(self, parity: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { target::test_wait(self.address, parity) }
    }

    /// [`test_wait`](Self::test_wait) that may sleep for a while before it says no. sm_90.
    ///
    /// # Safety
    /// As for [`test_wait`](Self::test_wait).
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    #[must_use]
    pub unsafe fn try_wait(self, parity: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { target::try_wait(self.address, parity) }
    }

    /// Waits for the phase of this parity: sleeping on sm_90, spinning before.
    ///
    /// # Safety
    /// As for [`test_wait`](Self::test_wait).
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn wait(self, parity: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            if cfg!(target_feature = "sm_90") {
                while !self.try_wait(parity) {}
            } else {
                while !self.test_wait(parity) {}
            }
        }
    }
}

/// Makes initialised barriers visible to bulk copies, before the block barrier behind [`Mbarrier::init`].
/// sm_90.
#[inline(always)]
pub fn fence_init() {
    target::fence_init();
}
