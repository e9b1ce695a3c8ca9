//! Shared memory: see [`crate::shared`].

use core::arch::{asm, global_asm};

use super::access::{self, loads, stores};
use crate::Bits;

// One symbol for the whole module: every kernel's dynamic shared memory starts at the same place.
global_asm!(".extern .shared .align 128 .b8 cuda_std_dynamic_shared[];");

/// The generic pointer to a shared address.
#[inline(always)]
pub fn pointer(address: u32) -> *mut u8 {
    let pointer: u64;
    // SAFETY: converts an address; touches no memory.
    unsafe {
        asm!(
            "cvta.shared.u64 {}, {};", out(reg64) pointer, in(reg64) u64::from(address),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    pointer as *mut u8
}

/// The shared state space.
struct State;
loads!(State, u32, reg32, "", "ld.shared", "[{0}]", "");
stores!(State, u32, reg32, "", "st.shared", "[{0}]", "");

#[inline(always)]
pub unsafe fn load<T: Bits>(address: u32) -> T {
    // SAFETY: the caller's promise.
    unsafe { access::load::<State, T>(address) }
}

#[inline(always)]
pub unsafe fn store<T: Bits>(address: u32, value: T) {
    // SAFETY: the caller's promise.
    unsafe { access::store::<State, T>(address, value) }
}

/// Where dynamic shared memory starts.
#[inline(always)]
pub fn dynamic() -> u32 {
    let address: u32;
    // SAFETY: the address of a symbol that this module defines; touches no memory.
    unsafe {
        asm!(
            "mov.u32 {}, cuda_std_dynamic_shared;", out(reg32) address,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    address
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
