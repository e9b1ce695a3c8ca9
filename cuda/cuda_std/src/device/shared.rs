//! Shared memory as typed 32-bit addresses.
//!
//! Route: `asm!`. rustc has no shared address space, and a generic pointer to shared memory becomes generic
//! loads that ptxas does not turn into shared ones; so hot paths carry a [`Shared`] and load and store
//! through it.

use core::arch::{asm, global_asm};
use core::marker::PhantomData;

use super::access::{self, loads, stores};
use crate::Bits;

// One symbol for the whole module: every kernel's dynamic shared memory starts at the same place.
global_asm!(".extern .shared .align 128 .b8 cuda_std_dynamic_shared[];");

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
        let pointer: u64;
        // SAFETY: converts an address; touches no memory.
        unsafe {
            asm!(
                "cvta.shared.u64 {}, {};", out(reg64) pointer, in(reg64) u64::from(self.address),
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        pointer as *mut T
    }

    /// Loads value `i` (`ld.shared`, 16 bytes at a time at most).
    ///
    /// # Safety
    /// The place belongs to the block's shared memory, has been written, is aligned to the value's size (to
    /// 16 if that is larger), and no thread writes it at the same time.
    #[inline(always)]
    #[must_use]
    pub unsafe fn get(self, i: u32) -> T {
        // SAFETY: the caller's promise.
        unsafe { access::load::<State, T>(self.add(i).address) }
    }

    /// Stores value `i` (`st.shared`, 16 bytes at a time at most).
    ///
    /// # Safety
    /// As for [`get`](Self::get), and no thread reads the place at the same time.
    #[inline(always)]
    pub unsafe fn set(self, i: u32, value: T) {
        // SAFETY: the caller's promise.
        unsafe { access::store::<State, T>(self.add(i).address, value) }
    }
}

/// The shared state space.
struct State;
loads!(State, u32, reg32, "", "ld.shared", "[{0}]", "");
stores!(State, u32, reg32, "", "st.shared", "[{0}]", "");

/// The block's dynamic shared memory, `LaunchConfig::shared_bytes` long, aligned to 128 bytes. Every call
/// gives the same place, whatever its type.
#[inline(always)]
#[must_use]
pub fn dynamic_shared<T: Bits>() -> Shared<T> {
    let address: u32;
    // SAFETY: the address of a symbol that this module defines; touches no memory.
    unsafe {
        asm!(
            "mov.u32 {}, cuda_std_dynamic_shared;", out(reg32) address,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    Shared::from_address(address)
}

/// What `shared_array!` expands to: a module-level variable, since a `.shared` inside `asm!` would become
/// several variables where the compiler copies the statement.
#[doc(hidden)]
#[macro_export]
#[allow_internal_unstable(asm_experimental_arch)]
macro_rules! __shared_array {
    ($name:literal, $element:ty, $length:expr) => {{
        mod variable {
            #[allow(unused_imports)]
            use super::*;
            ::core::arch::global_asm!(
                concat!(".shared .align 16 .b8 ", $name, "[{}];"),
                const { size_of::<$element>() * ($length) },
            );
        }
        let address: u32;
        // SAFETY: the address of the symbol above; touches no memory.
        unsafe {
            ::core::arch::asm!(
                concat!("mov.u32 {}, ", $name, ";"), out(reg32) address,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        $crate::shared::Shared::<$element>::from_address(address)
    }};
}
