//! The primitives of the public modules on the device: LLVM intrinsics and `asm!`.
//!
//! `host/` has the same functions for the host. Their contracts are those of the public functions that call
//! them.
#![allow(clippy::missing_safety_doc)]

use core::arch::asm;

mod access;
pub mod async_copy;
pub mod atomic;
pub mod f16x2;
mod intrinsics;
pub mod math;
pub mod mbarrier;
pub mod memory;
pub mod shared;
pub mod wgmma;

pub use intrinsics::*;

/// See [`crate::thread::nanosleep`].
#[inline(always)]
pub fn nanosleep(nanos: u32) {
    // SAFETY: waits.
    unsafe { asm!("nanosleep.u32 {};", in(reg32) nanos, options(nostack, preserves_flags)) }
}

macro_rules! counter {
    ($($name:ident, $type:ty, $class:ident, $instruction:literal;)*) => { $(
        #[inline(always)]
        pub fn $name() -> $type {
            let value: $type;
            // SAFETY: reads a register; not `pure`, since it changes, and a clobber of memory keeps it in its
            // place.
            unsafe { asm!($instruction, out($class) value, options(nostack, preserves_flags)) }
            value
        }
    )* };
}

counter! {
    clock, u32, reg32, "mov.u32 {}, %clock;";
    clock64, u64, reg64, "mov.u64 {}, %clock64;";
    globaltimer, u64, reg64, "mov.u64 {}, %globaltimer;";
    multiprocessor_id, u32, reg32, "mov.u32 {}, %smid;";
}

/// `*pointer`.
#[inline(always)]
pub unsafe fn read<T>(pointer: *const T) -> T {
    // SAFETY: the caller's promise.
    unsafe { pointer.read() }
}

/// `*pointer = value`.
#[inline(always)]
pub unsafe fn write<T>(pointer: *mut T, value: T) {
    // SAFETY: the caller's promise.
    unsafe { pointer.write(value) }
}
