//! How a typed value becomes memory instructions of 1 to 16 bytes; shared by `memory` and `shared`.

use core::mem::{MaybeUninit, transmute_copy};

use crate::Bits;

/// One kind of load: a state space and its cache hints. A byte travels in a register of 16 bits, PTX having
/// no smaller one.
pub trait Load {
    type Address: Address;
    unsafe fn load_8(address: Self::Address) -> u16;
    unsafe fn load_16(address: Self::Address) -> u16;
    unsafe fn load_32(address: Self::Address) -> u32;
    unsafe fn load_64(address: Self::Address) -> u64;
    unsafe fn load_128(address: Self::Address) -> [u32; 4];
}

/// One kind of store.
pub trait Store {
    type Address: Address;
    unsafe fn store_8(address: Self::Address, value: u16);
    unsafe fn store_16(address: Self::Address, value: u16);
    unsafe fn store_32(address: Self::Address, value: u32);
    unsafe fn store_64(address: Self::Address, value: u64);
    unsafe fn store_128(address: Self::Address, value: [u32; 4]);
}

/// A shared address (32 bits), or a generic one.
pub trait Address: Copy {
    fn add(self, bytes: usize) -> Self;
}

impl Address for u32 {
    #[inline(always)]
    fn add(self, bytes: usize) -> Self {
        self + bytes as u32
    }
}

impl Address for u64 {
    #[inline(always)]
    fn add(self, bytes: usize) -> Self {
        self + bytes as u64
    }
}

/// What one access, or several of 16 bytes, can move.
const fn check_size<T>() {
    assert!(
        matches!(size_of::<T>(), 1 | 2 | 4 | 8) || size_of::<T>().is_multiple_of(16),
        "a value that is loaded or stored must have 1, 2, 4, 8 or a multiple of 16 bytes"
    );
}

/// # Safety
/// `address` leads to a T in the state space of `L` and is aligned to its size, to 16 if that is larger.
#[inline(always)]
pub unsafe fn load<L: Load, T: Bits>(address: L::Address) -> T {
    const { check_size::<T>() }
    // SAFETY: the caller's promise; each arm loads exactly the bytes of T, and every pattern is a T.
    unsafe {
        match size_of::<T>() {
            1 => transmute_copy(&(L::load_8(address) as u8)),
            2 => transmute_copy(&L::load_16(address)),
            4 => transmute_copy(&L::load_32(address)),
            8 => transmute_copy(&L::load_64(address)),
            size => {
                let mut value = MaybeUninit::<T>::uninit();
                let words = value.as_mut_ptr().cast::<[u32; 4]>();
                let mut chunk = 0;
                while chunk < size / 16 {
                    words.add(chunk).write_unaligned(L::load_128(address.add(16 * chunk)));
                    chunk += 1;
                }
                value.assume_init()
            }
        }
    }
}

/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn store<S: Store, T: Bits>(address: S::Address, value: T) {
    const { check_size::<T>() }
    // SAFETY: the caller's promise; each arm stores exactly the bytes of T, all of them initialised.
    unsafe {
        match size_of::<T>() {
            1 => S::store_8(address, transmute_copy::<T, u8>(&value).into()),
            2 => S::store_16(address, transmute_copy(&value)),
            4 => S::store_32(address, transmute_copy(&value)),
            8 => S::store_64(address, transmute_copy(&value)),
            size => {
                let words = (&raw const value).cast::<[u32; 4]>();
                let mut chunk = 0;
                while chunk < size / 16 {
                    S::store_128(address.add(16 * chunk), words.add(chunk).read_unaligned());
                    chunk += 1;
                }
            }
        }
    }
}

/// The `ld` instructions of one state space with one set of hints. `readonly` without `pure`: a load is not
/// repeated, dropped, or moved over a barrier or a store. `$open` and `$close` stand around the instruction;
/// `{0}` is the address.
macro_rules! loads {
    ($kind:ident, $address:ty, $class:ident, $open:literal, $instruction:literal, $place:literal, $close:literal) => {
        impl crate::target::access::Load for $kind {
            type Address = $address;
            loads!(@scalar load_8, u16, reg16, ".b8", $address, $class, $open, $instruction, $place, $close);
            loads!(@scalar load_16, u16, reg16, ".b16", $address, $class, $open, $instruction, $place, $close);
            loads!(@scalar load_32, u32, reg32, ".b32", $address, $class, $open, $instruction, $place, $close);
            loads!(@scalar load_64, u64, reg64, ".b64", $address, $class, $open, $instruction, $place, $close);

            #[inline(always)]
            unsafe fn load_128(address: $address) -> [u32; 4] {
                let (a, b, c, d): (u32, u32, u32, u32);
                // SAFETY: the caller answers for the address.
                unsafe {
                    core::arch::asm!(
                        concat!($open, $instruction, ".v4.b32 {{{1}, {2}, {3}, {4}}}, ", $place, ";", $close),
                        in($class) address, out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
                        options(readonly, nostack, preserves_flags)
                    );
                }
                [a, b, c, d]
            }
        }
    };
    (@scalar $name:ident, $value:ty, $value_class:ident, $size:literal, $address:ty, $class:ident, $open:literal,
        $instruction:literal, $place:literal, $close:literal) => {
        #[inline(always)]
        unsafe fn $name(address: $address) -> $value {
            let value: $value;
            // SAFETY: the caller answers for the address.
            unsafe {
                core::arch::asm!(
                    concat!($open, $instruction, $size, " {1}, ", $place, ";", $close),
                    in($class) address, out($value_class) value,
                    options(readonly, nostack, preserves_flags)
                );
            }
            value
        }
    };
}

/// The `st` instructions of one state space with one set of hints.
macro_rules! stores {
    ($kind:ident, $address:ty, $class:ident, $open:literal, $instruction:literal, $place:literal, $close:literal) => {
        impl crate::target::access::Store for $kind {
            type Address = $address;
            stores!(@scalar store_8, u16, reg16, ".b8", $address, $class, $open, $instruction, $place, $close);
            stores!(@scalar store_16, u16, reg16, ".b16", $address, $class, $open, $instruction, $place, $close);
            stores!(@scalar store_32, u32, reg32, ".b32", $address, $class, $open, $instruction, $place, $close);
            stores!(@scalar store_64, u64, reg64, ".b64", $address, $class, $open, $instruction, $place, $close);

            #[inline(always)]
            unsafe fn store_128(address: $address, [a, b, c, d]: [u32; 4]) {
                // SAFETY: the caller answers for the address.
                unsafe {
                    core::arch::asm!(
                        concat!($open, $instruction, ".v4.b32 ", $place, ", {{{1}, {2}, {3}, {4}}};", $close),
                        in($class) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
    (@scalar $name:ident, $value:ty, $value_class:ident, $size:literal, $address:ty, $class:ident, $open:literal,
        $instruction:literal, $place:literal, $close:literal) => {
        #[inline(always)]
        unsafe fn $name(address: $address, value: $value) {
            // SAFETY: the caller answers for the address.
            unsafe {
                core::arch::asm!(
                    concat!($open, $instruction, $size, " ", $place, ", {1};", $close),
                    in($class) address, in($value_class) value,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}

pub(crate) use {loads, stores};
