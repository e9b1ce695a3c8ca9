//! Loads, stores and prefetches of global memory: see [`crate::memory`].

use core::arch::asm;

use super::access::{self, loads, stores};
use crate::Bits;

macro_rules! load {
    ($($name:ident, $kind:ident, $instruction:literal;)*) => { $(
        struct $kind;
        loads!($kind, u64, reg64, "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; ", $instruction, "[g]", " }}");

        #[inline(always)]
        pub unsafe fn $name<T: Bits>(pointer: *const T) -> T {
            // SAFETY: the caller's promise.
            unsafe { access::load::<$kind, T>(pointer as u64) }
        }
    )* };
}

macro_rules! store {
    ($($name:ident, $kind:ident, $instruction:literal;)*) => { $(
        struct $kind;
        stores!($kind, u64, reg64, "{{ .reg .b64 g; cvta.to.global.u64 g, {0}; ", $instruction, "[g]", " }}");

        #[inline(always)]
        pub unsafe fn $name<T: Bits>(pointer: *mut T, value: T) {
            // SAFETY: the caller's promise.
            unsafe { access::store::<$kind, T>(pointer as u64, value) }
        }
    )* };
}

load! {
    load, Plain, "ld.global";
    load_nc, NonCoherent, "ld.global.nc";
    load_nc_no_allocate, NonCoherentNoAllocate, "ld.global.nc.L1::no_allocate.L2::128B";
    load_nc_no_allocate_256, NonCoherentNoAllocate256, "ld.global.nc.L1::no_allocate.L2::256B";
    load_nc_evict_first, NonCoherentEvictFirst, "ld.global.nc.L1::evict_first";
    load_nc_evict_last, NonCoherentEvictLast, "ld.global.nc.L1::evict_last";
    load_streaming, Streaming, "ld.global.cs";
    load_l2, Level2, "ld.global.cg";
    load_volatile, Volatile, "ld.volatile.global";
}

store! {
    store, StorePlain, "st.global";
    store_streaming, StoreStreaming, "st.global.cs";
    store_l2, StoreLevel2, "st.global.cg";
    store_no_allocate, StoreNoAllocate, "st.global.L1::no_allocate";
    store_evict_first, StoreEvictFirst, "st.global.L1::evict_first";
    store_volatile, StoreVolatile, "st.volatile.global";
}

macro_rules! policy {
    ($($name:ident, $instruction:literal;)*) => { $(
        #[inline(always)]
        pub fn $name() -> u64 {
            let policy: u64;
            // SAFETY: makes a value in a register.
            unsafe {
                asm!(
                    concat!($instruction, " {}, 1.0;"), out(reg64) policy,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            policy
        }
    )* };
}

policy! {
    evict_first, "createpolicy.fractional.L2::evict_first.b64";
    evict_last, "createpolicy.fractional.L2::evict_last.b64";
    evict_unchanged, "createpolicy.fractional.L2::evict_unchanged.b64";
}

#[inline(always)]
pub unsafe fn load_nc_hinted(pointer: *const [u32; 4], policy: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.b32 {{{2}, {3}, {4}, {5}}}, [g], {1}; }}",
            in(reg64) pointer, in(reg64) policy, out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            options(readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}
#[inline(always)]
pub unsafe fn store_hinted(pointer: *mut [u32; 4], [a, b, c, d]: [u32; 4], policy: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .b64 g; cvta.to.global.u64 g, {0};",
            "st.global.L2::cache_hint.v4.b32 [g], {{{2}, {3}, {4}, {5}}}, {1}; }}",
            in(reg64) pointer, in(reg64) policy, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags)
        );
    }
}

macro_rules! prefetch {
    ($($name:ident, $instruction:literal;)*) => { $(
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
    prefetch_l1, "prefetch.global.L1";
    prefetch_l2, "prefetch.global.L2";
    prefetch_l2_evict_last, "prefetch.global.L2::evict_last";
}
