//! Loads and stores of global memory with cache hints, 1 to 16 bytes an instruction.
//!
//! Route on the device: `asm!`, one thread's own accesses. Each function moves any [`Bits`] type of 1, 2, 4, 8 or n × 16
//! bytes: `load_nc::<[u32; 4]>` is one `ld.global.nc.v4.b32`. A plain `*pointer` is right wherever no hint is
//! wanted: LLVM knows it and can combine and move it.

use crate::Bits;
use crate::target::memory as target;

macro_rules! load {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` leads to a readable T in global memory and is aligned to T's size, to 16 bytes if that
        /// is larger.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        #[must_use]
        pub unsafe fn $name<T: Bits>(pointer: *const T) -> T {
            // SAFETY: the caller's promise.
            unsafe { target::$name(pointer) }
        }
    )* };
}

macro_rules! store {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` leads to a writable T in global memory and is aligned to T's size, to 16 bytes if that
        /// is larger.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        pub unsafe fn $name<T: Bits>(pointer: *mut T, value: T) {
            // SAFETY: the caller's promise.
            unsafe { target::$name(pointer, value) }
        }
    )* };
}

load! {
    /// Through every cache (`ld.global`).
    load;
    /// Through the read-only path (`.nc`): the memory must not be written while the kernel runs.
    load_nc;
    /// Read-only data that is used once: leaves nothing in L1 and fetches 128 bytes into L2
    /// (`.nc.L1::no_allocate.L2::128B`).
    load_nc_no_allocate;
    /// As [`load_nc_no_allocate`], fetching 256 bytes into L2: for long sequential streams of weights.
    load_nc_no_allocate_256;
    /// Read-only data that L1 gives up first (`.nc.L1::evict_first`).
    load_nc_evict_first;
    /// Read-only data that L1 keeps longest (`.nc.L1::evict_last`).
    load_nc_evict_last;
    /// Data likely to be read once: first to leave every cache (`ld.global.cs`).
    load_streaming;
    /// Through L2 alone (`ld.global.cg`): sees what other blocks wrote before a grid barrier.
    load_l2;
    /// Read anew from memory each time (`ld.volatile.global`): for polling beside `atomic`'s loads.
    load_volatile;
}

store! {
    /// Through every cache (`st.global`).
    store;
    /// Data that nobody reads soon: first to leave every cache (`st.global.cs`).
    store_streaming;
    /// Into L2 alone (`st.global.cg`).
    store_l2;
    /// Leaves nothing in L1 (`st.global.L1::no_allocate`).
    store_no_allocate;
    /// L1 gives it up first (`st.global.L1::evict_first`).
    store_evict_first;
    /// Written through at once (`st.volatile.global`).
    store_volatile;
}

/// What L2 is to do with the lines of hinted accesses; made once by a thread and kept in a register.
#[derive(Clone, Copy)]
pub struct CachePolicy(u64);

macro_rules! policy {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        impl CachePolicy {
            $(
                $(#[$doc])*
                #[inline(always)]
                #[must_use]
                pub fn $name() -> Self {
                    Self(target::$name())
                }
            )*

            /// The policy as instructions take it.
            #[inline(always)]
            #[must_use]
            pub const fn bits(self) -> u64 {
                self.0
            }
        }
    };
}

policy! {
    /// First to leave L2: for data that streams through once, such as the weights during decode.
    evict_first;
    /// Last to leave L2: for what every block reads again, such as activations.
    evict_last;
    /// L2's usual order, but the line stays where it is in that order.
    evict_unchanged;
}

/// Loads 16 bytes of read-only data past L1, with a policy for L2
/// (`ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B`).
///
/// # Safety
/// `pointer` leads to 16 readable bytes in global memory, aligned to 16, that nobody writes while the kernel
/// runs.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
#[must_use]
pub unsafe fn load_nc_hinted(pointer: *const [u32; 4], policy: CachePolicy) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { target::load_nc_hinted(pointer, policy.0) }
}

/// Stores 16 bytes with a policy for L2 (`st.global.L2::cache_hint`).
///
/// # Safety
/// `pointer` leads to 16 writable bytes in global memory, aligned to 16.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn store_hinted(pointer: *mut [u32; 4], words: [u32; 4], policy: CachePolicy) {
    // SAFETY: the caller's promise.
    unsafe { target::store_hinted(pointer, words, policy.0) }
}

macro_rules! prefetch {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` lies in an allocation of global memory.
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        #[inline(always)]
        pub unsafe fn $name<T>(pointer: *const T) {
            // SAFETY: the caller's promise.
            unsafe { target::$name(pointer) }
        }
    )* };
}

prefetch! {
    /// Asks for the line into L1 and L2.
    prefetch_l1;
    /// Asks for the line into L2.
    prefetch_l2;
    /// Asks for the line into L2, to be kept longest.
    prefetch_l2_evict_last;
}
