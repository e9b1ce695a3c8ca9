//! Loads, stores and prefetches of global memory: see [`crate::memory`]. The hints change nothing here.

use core::panic::Location;

use crate::Bits;
use crate::emulation::{ATOMICALLY, Place, READ, WRITE, current};

/// The alignment of an access: the value's size, 16 at most.
fn alignment<T>() -> usize {
    size_of::<T>().min(16)
}

#[inline]
unsafe fn load_at<T: Bits>(pointer: *const T, place: Place) -> T {
    current().observe::<READ>(pointer as usize, size_of::<T>(), alignment::<T>(), place);
    // SAFETY: the caller's promise.
    unsafe { pointer.read_unaligned() }
}

#[inline]
unsafe fn store_at<T: Bits>(pointer: *mut T, value: T, place: Place) {
    current().observe::<WRITE>(pointer as usize, size_of::<T>(), alignment::<T>(), place);
    // SAFETY: the caller's promise.
    unsafe { pointer.write_unaligned(value) }
}

macro_rules! loads {
    ($($name:ident),*) => { $(
        #[track_caller]
        #[inline]
        pub unsafe fn $name<T: Bits>(pointer: *const T) -> T {
            // SAFETY: the caller's promise.
            unsafe { load_at(pointer, Location::caller()) }
        }
    )* };
}
loads!(
    load,
    load_nc,
    load_nc_no_allocate,
    load_nc_no_allocate_256,
    load_nc_evict_first,
    load_nc_evict_last,
    load_streaming,
    load_l2
);

macro_rules! stores {
    ($($name:ident),*) => { $(
        #[track_caller]
        #[inline]
        pub unsafe fn $name<T: Bits>(pointer: *mut T, value: T) {
            // SAFETY: the caller's promise.
            unsafe { store_at(pointer, value, Location::caller()) }
        }
    )* };
}
stores!(store, store_streaming, store_l2, store_no_allocate, store_evict_first);

#[track_caller]
pub unsafe fn load_volatile<T: Bits>(pointer: *const T) -> T {
    const VOLATILE: u8 = READ | ATOMICALLY;
    let thread = current();
    thread.observe::<VOLATILE>(pointer as usize, size_of::<T>(), alignment::<T>(), Location::caller());
    // SAFETY: the caller's promise.
    let value = unsafe { pointer.read_volatile() };
    let mut bits = [0; 8];
    // SAFETY: at most the bytes of both.
    unsafe {
        let from = (&raw const value).cast::<u8>();
        core::ptr::copy_nonoverlapping(from, bits.as_mut_ptr(), size_of::<T>().min(8));
    }
    thread.yield_if_spinning(pointer as usize, u64::from_le_bytes(bits), Location::caller());
    value
}

#[track_caller]
pub unsafe fn store_volatile<T: Bits>(pointer: *mut T, value: T) {
    const VOLATILE: u8 = WRITE | ATOMICALLY;
    current().observe::<VOLATILE>(pointer as usize, size_of::<T>(), alignment::<T>(), Location::caller());
    // SAFETY: the caller's promise.
    unsafe { pointer.write_volatile(value) }
}

macro_rules! policies {
    ($($name:ident = $bits:literal),*) => { $(
        pub const fn $name() -> u64 {
            $bits
        }
    )* };
}
policies!(evict_first = 1, evict_last = 2, evict_unchanged = 3);

#[track_caller]
pub unsafe fn load_nc_hinted(pointer: *const [u32; 4], _: u64) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { load_at(pointer, Location::caller()) }
}

#[track_caller]
pub unsafe fn store_hinted(pointer: *mut [u32; 4], words: [u32; 4], _: u64) {
    // SAFETY: the caller's promise.
    unsafe { store_at(pointer, words, Location::caller()) }
}

/// A prefetch of what is no buffer does nothing on the device either.
pub const unsafe fn prefetch_l1<T>(_: *const T) {}

/// As [`prefetch_l1`].
pub const unsafe fn prefetch_l2<T>(_: *const T) {}

/// As [`prefetch_l1`].
pub const unsafe fn prefetch_l2_evict_last<T>(_: *const T) {}
