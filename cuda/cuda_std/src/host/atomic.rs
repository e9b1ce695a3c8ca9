//! Atomic operations: see [`crate::atomic`]. Each is one of the host's atomics, sequentially consistent, so that
//! blocks on several cores see each other; what the order asked for would allow is the sanitizer's business.

use core::panic::Location;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::math::{canonical, flush};
use crate::atomic::{AtomicAdd, AtomicInteger, AtomicWord, Ordering, Scope};
use crate::emulation::{Access, current};

/// As on the device: not every operation has every ordering.
#[track_caller]
fn expect(order: Ordering, allowed: &[Ordering]) {
    assert!(allowed.contains(&order), "this operation does not have this ordering");
}

const LOADS: &[Ordering] = &[Ordering::Relaxed, Ordering::Acquire, Ordering::SeqCst];
const STORES: &[Ordering] = &[Ordering::Relaxed, Ordering::Release, Ordering::SeqCst];
const ADDS: &[Ordering] = &[Ordering::Relaxed, Ordering::Release];

#[track_caller]
pub fn fence(order: Ordering, _: Scope) {
    assert!(order != Ordering::Relaxed, "this operation does not have this ordering");
    current().fence(order);
}

/// `SeqCst` is a fence before the operation.
fn fence_if_sequential(order: Ordering) {
    if order == Ordering::SeqCst {
        current().fence(order);
    }
}

macro_rules! update {
    ($name:ident, $t:ident, $atomic:ident, |$old:ident, $value:ident| $new:expr) => {
        update!($name, $t, $atomic, |pointer, $old, $value| $new);
    };
    ($name:ident, $t:ident, $atomic:ident, |$pointer:ident, $old:ident, $value:ident| $new:expr) => {
        #[track_caller]
        unsafe fn $name($pointer: *mut Self, $value: Self, order: Ordering, scope: Scope) -> Self {
            fence_if_sequential(order);
            let (thread, place) = (current(), Location::caller());
            let old = thread.atomic(
                $pointer as usize,
                size_of::<$t>(),
                Access::Update,
                (order, scope),
                place,
                || {
                    // SAFETY: the caller's promise; the access was just checked.
                    let word = unsafe { $atomic::from_ptr($pointer.cast()) };
                    let next = |bits| {
                        let $old = <$t as Word>::from_word(bits as u64);
                        Some(<$t as Word>::into_word($new) as _)
                    };
                    let (Ok(old) | Err(old)) = word.fetch_update(SeqCst, SeqCst, next);
                    u64::from(old)
                },
            );
            <$t as Word>::from_word(old)
        }
    };
}

/// A value as bits.
trait Word: Copy {
    fn into_word(self) -> u64;
    fn from_word(word: u64) -> Self;
}

macro_rules! word {
    ($($t:ident, $atomic:ident, $bits:ty, |$value:ident| $into:expr, |$word:ident| $from:expr;)*) => { $(
        impl Word for $t {
            #[inline]
            fn into_word(self) -> u64 {
                let $value = self;
                u64::from($into)
            }

            #[inline]
            fn from_word(word: u64) -> Self {
                let $word = word as $bits;
                $from
            }
        }

        impl AtomicWord for $t {
            #[track_caller]
            unsafe fn load(pointer: *const Self, order: Ordering, scope: Scope) -> Self {
                expect(order, LOADS);
                fence_if_sequential(order);
                let (thread, place) = (current(), Location::caller());
                let value = thread.atomic(pointer as usize, size_of::<$t>(), Access::Load, (order, scope), place, || {
                    // SAFETY: the caller's promise; the access was just checked.
                    unsafe { $atomic::from_ptr(pointer.cast_mut().cast()) }.load(SeqCst).into()
                });
                Self::from_word(value)
            }

            #[track_caller]
            unsafe fn store(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) {
                expect(order, STORES);
                fence_if_sequential(order);
                let (thread, place) = (current(), Location::caller());
                thread.atomic(pointer as usize, size_of::<$t>(), Access::Store, (order, scope), place, || {
                    // SAFETY: the caller's promise; the access was just checked.
                    unsafe { $atomic::from_ptr(pointer.cast()) }.store(value.into_word() as _, SeqCst);
                    value.into_word()
                });
            }

            update!(exchange, $t, $atomic, |_old, value| value);

            #[track_caller]
            unsafe fn compare_exchange(
                pointer: *mut Self,
                expected: Self,
                new: Self,
                order: Ordering,
                scope: Scope,
            ) -> Self {
                fence_if_sequential(order);
                let (thread, place) = (current(), Location::caller());
                let old = thread.atomic(pointer as usize, size_of::<$t>(), Access::Update, (order, scope), place, || {
                    // SAFETY: the caller's promise; the access was just checked.
                    let word = unsafe { $atomic::from_ptr(pointer.cast()) };
                    let (expected, new) = (expected.into_word() as _, new.into_word() as _);
                    let (Ok(old) | Err(old)) = word.compare_exchange(expected, new, SeqCst, SeqCst);
                    u64::from(old)
                });
                Self::from_word(old)
            }
        }
    )* };
}

word! {
    u32, AtomicU32, u32, |value| value, |word| word;
    i32, AtomicU32, u32, |value| value.cast_unsigned(), |word| word.cast_signed();
    f32, AtomicU32, u32, |value| value.to_bits(), |word| f32::from_bits(word);
    u64, AtomicU64, u64, |value| value, |word| word;
    i64, AtomicU64, u64, |value| value.cast_unsigned(), |word| word.cast_signed();
    f64, AtomicU64, u64, |value| value.to_bits(), |word| f64::from_bits(word);
}

macro_rules! add {
    ($($t:ident, $atomic:ident, |$pointer:ident, $old:ident, $value:ident| $new:expr;)*) => { $(
        impl AtomicAdd for $t {
            update!(fetch_add, $t, $atomic, |$pointer, $old, $value| $new);

            #[track_caller]
            unsafe fn add(pointer: *mut Self, value: Self, order: Ordering, scope: Scope) {
                expect(order, ADDS);
                // SAFETY: the caller's promise.
                unsafe { Self::fetch_add(pointer, value, order, scope) };
            }
        }
    )* };
}

add! {
    u32, AtomicU32, |pointer, old, value| old.wrapping_add(value);
    i32, AtomicU32, |pointer, old, value| old.wrapping_add(value);
    u64, AtomicU64, |pointer, old, value| old.wrapping_add(value);
    i64, AtomicU64, |pointer, old, value| old.wrapping_add(value);
    f64, AtomicU64, |pointer, old, value| old + value;
    f32, AtomicU32, |pointer, old, value| sum(pointer, old, value);
}

/// `atom.add.f32`: in global memory subnormal numbers count as zero, in shared memory they do not (PTX ISA).
fn sum(pointer: *const f32, old: f32, value: f32) -> f32 {
    let shared = current().block().is_shared(pointer as usize);
    canonical(if shared { old + value } else { flush(flush(old) + flush(value)) })
}

macro_rules! integer {
    ($($t:ident, $atomic:ident;)*) => { $(
        impl AtomicInteger for $t {
            update!(fetch_min, $t, $atomic, |old, value| old.min(value));
            update!(fetch_max, $t, $atomic, |old, value| old.max(value));
            update!(fetch_and, $t, $atomic, |old, value| old & value);
            update!(fetch_or, $t, $atomic, |old, value| old | value);
            update!(fetch_xor, $t, $atomic, |old, value| old ^ value);
        }
    )* };
}

integer! {
    u32, AtomicU32;
    i32, AtomicU32;
    u64, AtomicU64;
    i64, AtomicU64;
}
