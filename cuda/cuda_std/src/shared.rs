//! Shared memory as typed 32-bit addresses.
//!
//! Route on the device: `asm!`. rustc has no shared address space, and a generic pointer to shared memory becomes generic
//! loads that ptxas does not turn into shared ones; so hot paths carry a [`Shared`] and load and store
//! through it.

use core::marker::PhantomData;

use crate::{Bits, target};

/// A typed place in the block's shared memory: a handle that is copied freely, like a pointer.
///
/// The block's threads share what it leads to, so every access is `unsafe`: accesses of different threads to
/// one place need a barrier between them unless all of them read.
#[repr(transparent)]
pub struct Shared<T> {
    address: u32,
    element: PhantomData<*mut T>,
}

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T: Bits> Shared<T> {
    /// The handle to an address of the shared state space, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn from_address(address: u32) -> Self {
        Self { address, element: PhantomData }
    }

    /// The address in the shared state space, in bytes: what `cp.async`, `ldmatrix` and `mbarrier` take.
    #[inline(always)]
    #[must_use]
    pub const fn address(self) -> u32 {
        self.address
    }

    /// The handle `elements` values further on.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn add(self, elements: u32) -> Self {
        Self::from_address(self.address + elements * size_of::<T>() as u32)
    }

    /// The same place as values of another type: `Shared<f32>` as `Shared<[f32; 4]>` for accesses of 16
    /// bytes.
    #[inline(always)]
    #[must_use]
    pub const fn cast<U: Bits>(self) -> Shared<U> {
        Shared::from_address(self.address)
    }

    /// A generic pointer to the place, for code that takes any pointer; slower than [`get`](Self::get) and
    /// [`set`](Self::set).
    #[inline(always)]
    #[must_use]
    pub fn as_mut_ptr(self) -> *mut T {
        target::shared::pointer(self.address).cast()
    }

    /// Loads value `i` (`ld.shared`, 16 bytes at a time at most).
    ///
    /// # Safety
    /// The place belongs to the block's shared memory, has been written, is aligned to the value's size (to
    /// 16 if that is larger), and no thread writes it at the same time.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    #[must_use]
    pub unsafe fn get(self, i: u32) -> T {
        // SAFETY: the caller's promise.
        unsafe { target::shared::load(self.add(i).address) }
    }

    /// Stores value `i` (`st.shared`, 16 bytes at a time at most).
    ///
    /// # Safety
    /// As for [`get`](Self::get), and no thread reads the place at the same time.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    pub unsafe fn set(self, i: u32, value: T) {
        // SAFETY: the caller's promise.
        unsafe { target::shared::store(self.add(i).address, value) }
    }
}

/// The block's dynamic shared memory, `LaunchConfig::shared_bytes` long, aligned to 128 bytes. Every call
/// gives the same place, whatever its type.
#[inline(always)]
#[must_use]
pub fn dynamic_shared<T: Bits>() -> Shared<T> {
    Shared::from_address(target::shared::dynamic())
}

/// For `shared_array!` on the host.
#[doc(hidden)]
#[cfg(not(target_arch = "nvptx64"))]
pub use target::shared::array as array_address;
