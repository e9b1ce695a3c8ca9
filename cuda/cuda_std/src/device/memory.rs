//! Loads and stores of global memory with cache hints, 1 to 16 bytes an instruction.
//!
//! Route: `asm!`, one thread's own accesses. Each function moves any [`Bits`] type of 1, 2, 4, 8 or n × 16
//! bytes: `load_nc::<[u32; 4]>` is one `ld.global.nc.v4.b32`. A plain `*pointer` is right wherever no hint is
//! wanted: LLVM knows it and can combine and move it.

use core::arch::asm;

use super::access::{self, loads, stores};
use crate::Bits;

macro_rules! load {
    ($($(#[$doc:meta])* $name:ident, $kind:ident, $instruction:literal;)*) => { $(
        struct $kind;
        loads!($kind, u64, reg64, "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; ", $instruction, "[g]", " }}");

        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` leads to a readable T in global memory and is aligned to T's size, to 16 bytes if that
        /// is larger.
        #[inline(always)]
        #[must_use]
        pub unsafe fn $name<T: Bits>(pointer: *const T) -> T {
            // SAFETY: the caller's promise.
            unsafe { access::load::<$kind, T>(pointer as u64) }
        }
    )* };
}

macro_rules! store {
    ($($(#[$doc:meta])* $name:ident, $kind:ident, $instruction:literal;)*) => { $(
        struct $kind;
        stores!($kind, u64, reg64, "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; ", $instruction, "[g]", " }}");

        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` leads to a writable T in global memory and is aligned to T's size, to 16 bytes if that
        /// is larger.
        #[inline(always)]
        pub unsafe fn $name<T: Bits>(pointer: *mut T, value: T) {
            // SAFETY: the caller's promise.
            unsafe { access::store::<$kind, T>(pointer as u64, value) }
        }
    )* };
}

load! {
    /// Through every cache (`ld.global`).
    load, Plain, "ld.global";
    /// Through the read-only path (`.nc`): the memory must not be written while the kernel runs.
    load_nc, NonCoherent, "ld.global.nc";
    /// Read-only data that is used once: leaves nothing in L1 and fetches 128 bytes into L2
    /// (`.nc.L1::no_allocate.L2::128B`).
    load_nc_no_allocate, NonCoherentNoAllocate, "ld.global.nc.L1::no_allocate.L2::128B";
    /// As [`load_nc_no_allocate`], fetching 256 bytes into L2: for long sequential streams of weights.
    load_nc_no_allocate_256, NonCoherentNoAllocate256, "ld.global.nc.L1::no_allocate.L2::256B";
    /// Read-only data that L1 gives up first (`.nc.L1::evict_first`).
    load_nc_evict_first, NonCoherentEvictFirst, "ld.global.nc.L1::evict_first";
    /// Read-only data that L1 keeps longest (`.nc.L1::evict_last`).
    load_nc_evict_last, NonCoherentEvictLast, "ld.global.nc.L1::evict_last";
    /// Data likely to be read once: first to leave every cache (`ld.global.cs`).
    load_streaming, Streaming, "ld.global.cs";
    /// Through L2 alone (`ld.global.cg`): sees what other blocks wrote before a grid barrier.
    load_l2, Level2, "ld.global.cg";
    /// Read anew from memory each time (`ld.volatile.global`): for polling beside `atomic`'s loads.
    load_volatile, Volatile, "ld.volatile.global";
}

store! {
    /// Through every cache (`st.global`).
    store, StorePlain, "st.global";
    /// Data that nobody reads soon: first to leave every cache (`st.global.cs`).
    store_streaming, StoreStreaming, "st.global.cs";
    /// Into L2 alone (`st.global.cg`).
    store_l2, StoreLevel2, "st.global.cg";
    /// Leaves nothing in L1 (`st.global.L1::no_allocate`).
    store_no_allocate, StoreNoAllocate, "st.global.L1::no_allocate";
    /// L1 gives it up first (`st.global.L1::evict_first`).
    store_evict_first, StoreEvictFirst, "st.global.L1::evict_first";
    /// Written through at once (`st.volatile.global`).
    store_volatile, StoreVolatile, "st.volatile.global";
}

/// What L2 is to do with the lines of hinted accesses; made once by a thread and kept in a register.
#[derive(Clone, Copy)]
pub struct CachePolicy(u64);

macro_rules! policy {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal;)*) => {
        impl CachePolicy {
            $(
                $(#[$doc])*
                #[inline(always)]
                #[must_use]
                pub fn $name() -> Self {
                    let policy: u64;
                    // SAFETY: makes a value in a register.
                    unsafe {
                        asm!(
                            concat!($instruction, " {}, 1.0;"), out(reg64) policy,
                            options(pure, nomem, nostack, preserves_flags)
                        );
                    }
                    Self(policy)
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
    evict_first, "createpolicy.fractional.L2::evict_first.b64";
    /// Last to leave L2: for what every block reads again, such as activations.
    evict_last, "createpolicy.fractional.L2::evict_last.b64";
    /// L2's usual order, but the line stays where it is in that order.
    evict_unchanged, "createpolicy.fractional.L2::evict_unchanged.b64";
}

/// Loads 16 bytes of read-only data past L1, with a policy for L2
/// (`ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B`).
///
/// # Safety
/// `pointer` leads to 16 readable bytes in global memory, aligned to 16, that nobody writes while the kernel
/// runs.
#[inline(always)]
#[must_use]
pub unsafe fn load_nc_hinted(pointer: *const [u32; 4], policy: CachePolicy) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.b32 {{{2}, {3}, {4}, {5}}}, [g], {1}; }}",
            in(reg64) pointer, in(reg64) policy.0, out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            options(readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Stores 16 bytes with a policy for L2 (`st.global.L2::cache_hint`).
///
/// # Safety
/// `pointer` leads to 16 writable bytes in global memory, aligned to 16.
#[inline(always)]
pub unsafe fn store_hinted(pointer: *mut [u32; 4], [a, b, c, d]: [u32; 4], policy: CachePolicy) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "st.global.L2::cache_hint.v4.b32 [g], {{{2}, {3}, {4}, {5}}}, {1}; }}",
            in(reg64) pointer, in(reg64) policy.0, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags)
        );
    }
}

macro_rules! prefetch {
    ($($(#[$doc:meta])* $name:ident, $instruction:literal;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// `pointer` lies in an allocation of global memory.
        #[inline(always)]
        pub unsafe fn $name<T>(pointer: *const T) {
            // SAFETY: the caller's promise; nothing but caches changes.
            unsafe {
                asm!(
                    concat!("{{ .reg .b64 g; cvta.to.global.u64 g, {}; ", $instruction, " [g]; }}"), in(reg64) pointer,
                    options(readonly, nostack, preserves_flags)
                );
            }
        }
    )* };
}

prefetch! {
    /// Asks for the line into L1 and L2.
    prefetch_l1, "prefetch.global.L1";
    /// Asks for the line into L2.
    prefetch_l2, "prefetch.global.L2";
    /// Asks for the line into L2, to be kept longest.
    prefetch_l2_evict_last, "prefetch.global.L2::evict_last";
}
