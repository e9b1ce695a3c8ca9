//! Atomic operations with an ordering and a scope.
//!
//! Route on the device: `asm!`, one thread's own accesses. rustc's atomics are not enough: LLVM drops the ordering of a
//! read-modify-write on PTX (rust-lang/rust#136480), knows no scope below the system, and `core` has no float
//! atomics.
//!
//! Pointers may lead to global memory or to shared memory
//! ([`Shared::as_mut_ptr`](crate::shared::Shared::as_mut_ptr)). Ordering and scope are constants at the call,
//! so that the choice disappears when it is inlined. `SeqCst` is a `fence.sc` before an acquiring and
//! releasing operation. An ordering that an operation does not have (a load that releases) is a panic, as in
//! `core`.

pub use core::sync::atomic::Ordering;

use crate::Bits;
use crate::target::atomic as target;

/// The threads among which an operation is atomic and ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The block (`.cta`).
    Block,
    /// The device (`.gpu`).
    Device,
    /// All devices and the host (`.sys`).
    System,
}

/// Orders this thread's accesses before the fence against those after it (`fence.acq_rel`, for `SeqCst`
/// `fence.sc`).
///
/// # Panics
/// With `Relaxed`, which is no fence.
#[inline(always)]
pub fn fence(order: Ordering, scope: Scope) {
    target::fence(order, scope);
}

/// A value of 4 or 8 bytes, which the hardware loads, stores, exchanges and compares in one piece.
///
/// Every method needs a pointer to a live value, aligned to its size: that is their safety condition.
#[allow(clippy::missing_safety_doc)]
pub trait AtomicWord: Bits {
    /// `*pointer`: `Relaxed`, `Acquire` or `SeqCst`.
    unsafe fn load(pointer: *const Self, order: Ordering, scope: Scope) -> Self;
    /// `*pointer = value`: `Relaxed`, `Release` or `SeqCst`.
    unsafe fn store(pointer: *mut Self, value: Self, order: Ordering, scope: Scope);
    /// Stores `value` and returns what was there.
    unsafe fn exchange(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Stores `new` where `*pointer` has the bits of `expected`, and returns what was there either way.
    unsafe fn compare_exchange(
        pointer: *mut Self,
        expected: Self,
        new: Self,
        order: Ordering,
        scope: Scope,
    ) -> Self;
}

/// A number that the hardware adds to.
///
/// Every method needs a pointer to a live value, aligned to its size: that is their safety condition.
#[allow(clippy::missing_safety_doc)]
pub trait AtomicAdd: AtomicWord {
    /// Adds `value`, integers modulo their size, and returns what was there (`atom.add`). A sum of `f32` that is
    /// NaN is 0x7fff_ffff; which NaN one of `f64` is, is unspecified.
    unsafe fn fetch_add(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Adds `value` without an answer (`red.add`): `Relaxed` or `Release`. The order in which several
    /// threads' floats are added is not fixed, so their rounding is not reproducible.
    unsafe fn add(pointer: *mut Self, value: Self, order: Ordering, scope: Scope);
}

/// An integer that the hardware updates in one piece.
///
/// Every method needs a pointer to a live value, aligned to its size: that is their safety condition.
#[allow(clippy::missing_safety_doc)]
pub trait AtomicInteger: AtomicAdd {
    /// Stores the smaller of both and returns what was there.
    unsafe fn fetch_min(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Stores the larger of both and returns what was there.
    unsafe fn fetch_max(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Bitwise and; returns what was there.
    unsafe fn fetch_and(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Bitwise or; returns what was there.
    unsafe fn fetch_or(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
    /// Bitwise exclusive or; returns what was there.
    unsafe fn fetch_xor(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) -> Self;
}
