//! Shared memory: see [`crate::shared`].

use core::panic::Location;

use crate::Bits;
use crate::emulation::{SHARED_BASE, current};

/// The generic pointer to a shared address.
pub fn pointer(address: u32) -> *mut u8 {
    current().block().shared_at(address)
}

#[track_caller]
#[inline]
pub unsafe fn load<T: Bits>(address: u32) -> T {
    // SAFETY: the caller's promise.
    unsafe { current().load_shared(address, Location::caller()) }
}

#[track_caller]
#[inline]
pub unsafe fn store<T: Bits>(address: u32, value: T) {
    // SAFETY: the caller's promise.
    unsafe { current().store_shared(address, value, Location::caller()) }
}

/// Where dynamic shared memory starts.
pub const fn dynamic() -> u32 {
    SHARED_BASE
}

/// The address of the array that the `shared_array!` at `key` stands for.
#[doc(hidden)]
#[track_caller]
pub fn array(key: &'static core::sync::atomic::AtomicU8, bytes: usize) -> u32 {
    current().block().shared_array(core::ptr::from_ref(key) as usize, bytes, Location::caller())
}

/// What `shared_array!` expands to: a variable of the host whose address stands for the array.
#[doc(hidden)]
#[macro_export]
macro_rules! __shared_array {
    ($name:literal, $element:ty, $length:expr) => {{
        static KEY: ::core::sync::atomic::AtomicU8 = ::core::sync::atomic::AtomicU8::new(0);
        const BYTES: usize = size_of::<$element>() * ($length);
        $crate::shared::Shared::<$element>::from_address($crate::shared::array_address(&KEY, BYTES))
    }};
}
