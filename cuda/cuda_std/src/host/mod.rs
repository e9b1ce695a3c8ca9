//! The primitives of the public modules on the host: emulation of what `nvptx/` has as instructions.
//!
//! Names, signatures and contracts are those of the functions there, most of them LLVM's names of PTX
//! instructions.
#![allow(clippy::missing_safety_doc)]

pub mod async_copy;
pub mod atomic;
pub mod f16x2;
mod lanes;
pub mod math;
pub mod mbarrier;
pub mod memory;
pub mod shared;
pub mod wgmma;

pub use lanes::*;
pub use math::{
    add_rn, cos_approx, ex2_approx, ex2_approx_ftz, lg2_approx, mul_rn, rcp_approx_ftz, rsqrt_approx,
    sin_approx,
};

use core::panic::Location;
use std::sync::LazyLock;
use std::time::Instant;

use crate::emulation::{READ, Reduction, Thread, WRITE, current, current_or_none};

macro_rules! index {
    ($($name:ident = |$thread:ident| $value:expr;)*) => { $(
        #[inline]
        pub fn $name() -> u32 {
            let $thread: &Thread = current();
            $value
        }
    )* };
}

index! {
    tid_x = |thread| thread.position[0];
    tid_y = |thread| thread.position[1];
    tid_z = |thread| thread.position[2];
    ntid_x = |thread| thread.block().launch().config.block[0];
    ntid_y = |thread| thread.block().launch().config.block[1];
    ntid_z = |thread| thread.block().launch().config.block[2];
    ctaid_x = |thread| thread.block().position.get()[0];
    ctaid_y = |thread| thread.block().position.get()[1];
    ctaid_z = |thread| thread.block().position.get()[2];
    nctaid_x = |thread| thread.block().launch().config.grid[0];
    nctaid_y = |thread| thread.block().launch().config.grid[1];
    nctaid_z = |thread| thread.block().launch().config.grid[2];
    laneid = |thread| thread.lane();
}

#[track_caller]
pub fn barrier_sync(barrier: u32) {
    current().sync_block(barrier, false, Reduction::None, Location::caller());
}

#[track_caller]
pub unsafe fn barrier_sync_count(barrier: u32, threads: u32) {
    current().sync_part(barrier, threads, true, Location::caller());
}

#[track_caller]
pub unsafe fn barrier_arrive_count(barrier: u32, threads: u32) {
    current().sync_part(barrier, threads, false, Location::caller());
}

#[track_caller]
pub fn barrier_popc(barrier: u32, predicate: bool) -> u32 {
    current().sync_block(barrier, predicate, Reduction::Count, Location::caller())
}

#[track_caller]
pub fn barrier_and(barrier: u32, predicate: bool) -> bool {
    current().sync_block(barrier, predicate, Reduction::And, Location::caller()) != 0
}

#[track_caller]
pub fn barrier_or(barrier: u32, predicate: bool) -> bool {
    current().sync_block(barrier, predicate, Reduction::Or, Location::caller()) != 0
}

#[track_caller]
pub fn nanosleep(_: u32) {
    current().pause(Location::caller());
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since the first launch that asked.
pub fn globaltimer() -> u64 {
    START.elapsed().as_nanos() as u64
}

/// Cycles of an imagined clock of 1 GHz.
pub fn clock64() -> u64 {
    globaltimer()
}

pub fn clock() -> u32 {
    clock64() as u32
}

/// The number of the core's worker.
pub fn multiprocessor_id() -> u32 {
    rayon::current_thread_index().unwrap_or(0) as u32
}

/// A kernel launched here is never a programmatic dependent.
pub fn griddepcontrol_launch_dependents() {}

/// As [`griddepcontrol_launch_dependents`].
pub fn griddepcontrol_wait() {}

/// `*pointer`.
#[track_caller]
#[inline]
pub unsafe fn read<T>(pointer: *const T) -> T {
    if let Some(thread) = current_or_none() {
        thread.observe::<READ>(pointer as usize, size_of::<T>(), align_of::<T>(), Location::caller());
    }
    // SAFETY: the caller's promise.
    unsafe { pointer.read() }
}

/// `*pointer = value`.
#[track_caller]
#[inline]
pub unsafe fn write<T>(pointer: *mut T, value: T) {
    if let Some(thread) = current_or_none() {
        thread.observe::<WRITE>(pointer as usize, size_of::<T>(), align_of::<T>(), Location::caller());
    }
    // SAFETY: the caller's promise.
    unsafe { pointer.write(value) }
}
