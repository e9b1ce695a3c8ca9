//! Shared memory as typed 32-bit addresses.
//!
//! Route: `asm!`. rustc has no shared address space, and a generic pointer to shared memory becomes generic loads that
//! ptxas does not turn into shared ones; so hot paths carry a [`Shared`] and load and store through it.

use core::arch::{asm, global_asm};
use core::marker::PhantomData;
use core::mem::{MaybeUninit, transmute_copy};

use crate::Bits;

// One symbol for the whole module: every kernel's dynamic shared memory starts at the same place.
global_asm!(".extern .shared .align 128 .b8 cuda_std_dynamic_shared[];");

/// A typed place in the block's shared memory: a handle that is copied freely, like a pointer.
///
/// The block's threads share what it leads to, so every access is `unsafe`: accesses of different threads to one
/// place need a barrier between them unless all of them read.
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

    /// The same place as values of another type: `Shared<f32>` as `Shared<[f32; 4]>` for accesses of 16 bytes.
    #[inline(always)]
    #[must_use]
    pub const fn cast<U: Bits>(self) -> Shared<U> {
        Shared::from_address(self.address)
    }

    /// A generic pointer to the place, for code that takes any pointer; slower than [`get`](Self::get) and [`set`](Self::set).
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
    /// The place belongs to the block's shared memory, has been written, is aligned to the value's size (to 16 if that is larger),
    /// and no thread writes it at the same time.
    #[inline(always)]
    #[must_use]
    pub unsafe fn get(self, i: u32) -> T {
        let address = self.add(i).address;
        // SAFETY: the caller's promise; each arm loads exactly the bytes of T.
        unsafe {
            match size_of::<T>() {
                1 => transmute_copy(&(load_16_of_8(address) as u8)),
                2 => transmute_copy(&load_16(address)),
                4 => transmute_copy(&load_32(address)),
                8 => transmute_copy(&load_64(address)),
                size => {
                    const { check_size::<T>() }
                    let mut value = MaybeUninit::<T>::uninit();
                    let words = value.as_mut_ptr().cast::<[u32; 4]>();
                    let mut chunk = 0;
                    while chunk < size / 16 {
                        words.add(chunk).write_unaligned(load_128(address + 16 * chunk as u32));
                        chunk += 1;
                    }
                    value.assume_init()
                }
            }
        }
    }

    /// Stores value `i` (`st.shared`, 16 bytes at a time at most).
    ///
    /// # Safety
    /// As for [`get`](Self::get), and no thread reads the place at the same time.
    #[inline(always)]
    pub unsafe fn set(self, i: u32, value: T) {
        let address = self.add(i).address;
        // SAFETY: the caller's promise; each arm stores exactly the bytes of T.
        unsafe {
            match size_of::<T>() {
                1 => store_8(address, transmute_copy::<T, u8>(&value)),
                2 => store_16(address, transmute_copy(&value)),
                4 => store_32(address, transmute_copy(&value)),
                8 => store_64(address, transmute_copy(&value)),
                size => {
                    const { check_size::<T>() }
                    let words = (&raw const value).cast::<[u32; 4]>();
                    let mut chunk = 0;
                    while chunk < size / 16 {
                        store_128(address + 16 * chunk as u32, words.add(chunk).read_unaligned());
                        chunk += 1;
                    }
                }
            }
        }
    }
}

/// What `ld.shared` and `st.shared` can move.
const fn check_size<T>() {
    assert!(
        matches!(size_of::<T>(), 1 | 2 | 4 | 8) || size_of::<T>().is_multiple_of(16),
        "a shared value must have 1, 2, 4, 8 or a multiple of 16 bytes"
    );
}

// `readonly` without `pure`: the load may not be repeated, dropped or moved over a barrier or a store.
macro_rules! scalar {
    ($($load:ident, $store:ident, $t:ty, $value:ty, $class:ident, $suffix:literal;)*) => { $(
        #[inline(always)]
        unsafe fn $load(address: u32) -> $t {
            let value: $t;
            // SAFETY: the caller answers for the address.
            unsafe {
                asm!(
                    concat!("ld.shared.", $suffix, " {}, [{}];"), out($class) value, in(reg32) address,
                    options(readonly, nostack, preserves_flags)
                );
            }
            value
        }

        #[inline(always)]
        unsafe fn $store(address: u32, value: $value) {
            // SAFETY: the caller answers for the address.
            unsafe {
                asm!(
                    concat!("st.shared.", $suffix, " [{}], {};"), in(reg32) address, in($class) <$t>::from(value),
                    options(nostack, preserves_flags)
                );
            }
        }
    )* };
}

scalar! {
    load_16_of_8, store_8, u16, u8, reg16, "u8";
    load_16, store_16, u16, u16, reg16, "b16";
    load_32, store_32, u32, u32, reg32, "b32";
    load_64, store_64, u64, u64, reg64, "b64";
}

#[inline(always)]
unsafe fn load_128(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller answers for the address.
    unsafe {
        asm!(
            "ld.shared.v4.b32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

#[inline(always)]
unsafe fn store_128(address: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller answers for the address.
    unsafe {
        asm!(
            "st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg32) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags)
        );
    }
}

/// The block's dynamic shared memory, `LaunchConfig::shared_bytes` long, aligned to 128 bytes. Every call gives the
/// same place, whatever its type.
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

/// What `shared_array!` expands to: a module-level variable, since a `.shared` inside `asm!` would become several
/// variables where the compiler copies the statement.
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
