//! What the macros put into kernel bodies on the host, so that plain accesses through raw pointers are seen.
//!
//! `*e` becomes `*e.__cuda_std_read()`, an assignment's left side `*e.__cuda_std_write()`, and so on. The methods
//! return what they are called on, after telling the emulator if that is a raw pointer. Which implementation is
//! meant follows from method resolution: by value for raw pointers, by (re)borrowing for references, whose
//! accesses are not the emulator's business.

use core::panic::Location;

use super::shadow::{ATOMICALLY, READ, UPDATE, WRITE};
use super::thread::current_or_none;

#[track_caller]
#[inline(always)]
fn observe<const KIND: u8>(address: usize, size: usize, align: usize) {
    if let Some(thread) = current_or_none() {
        thread.observe::<KIND>(address, size, align, Location::caller());
    }
}

/// A raw pointer.
pub trait Pointer: Copy {
    #[track_caller]
    fn __cuda_std_read(self) -> Self;
    #[track_caller]
    fn __cuda_std_write(self) -> Self;
    #[track_caller]
    fn __cuda_std_update(self) -> Self;
    /// Without alignment.
    #[track_caller]
    fn __cuda_std_read_unaligned(self) -> Self;
    #[track_caller]
    fn __cuda_std_write_unaligned(self) -> Self;
    /// May be polled.
    #[track_caller]
    fn __cuda_std_read_volatile(self) -> Self;
    #[track_caller]
    fn __cuda_std_write_volatile(self) -> Self;
    #[track_caller]
    fn __cuda_std_read_many(self, count: usize) -> Self;
    #[track_caller]
    fn __cuda_std_write_many(self, count: usize) -> Self;
}

macro_rules! pointer {
    ($($pointer:ty),*) => { $(
        impl<T> Pointer for $pointer {
            #[inline(always)]
            fn __cuda_std_read(self) -> Self {
                observe::<READ>(self as usize, size_of::<T>(), align_of::<T>());
                self
            }

            #[inline(always)]
            fn __cuda_std_write(self) -> Self {
                observe::<WRITE>(self as usize, size_of::<T>(), align_of::<T>());
                self
            }

            #[inline(always)]
            fn __cuda_std_update(self) -> Self {
                observe::<UPDATE>(self as usize, size_of::<T>(), align_of::<T>());
                self
            }

            #[inline(always)]
            fn __cuda_std_read_unaligned(self) -> Self {
                observe::<READ>(self as usize, size_of::<T>(), 1);
                self
            }

            #[inline(always)]
            fn __cuda_std_write_unaligned(self) -> Self {
                observe::<WRITE>(self as usize, size_of::<T>(), 1);
                self
            }

            fn __cuda_std_read_volatile(self) -> Self {
                const VOLATILE: u8 = READ | ATOMICALLY;
                observe::<VOLATILE>(self as usize, size_of::<T>(), align_of::<T>());
                if let Some(thread) = current_or_none() {
                    let mut value = [0; 8];
                    let bytes = size_of::<T>().min(8);
                    // SAFETY: the access was just found to be inside a buffer, or checks are off.
                    unsafe { core::ptr::copy_nonoverlapping(self.cast(), value.as_mut_ptr(), bytes) };
                    thread.yield_if_spinning(self as usize, u64::from_le_bytes(value), Location::caller());
                }
                self
            }

            fn __cuda_std_write_volatile(self) -> Self {
                const VOLATILE: u8 = WRITE | ATOMICALLY;
                observe::<VOLATILE>(self as usize, size_of::<T>(), align_of::<T>());
                self
            }

            fn __cuda_std_read_many(self, count: usize) -> Self {
                observe::<READ>(self as usize, count * size_of::<T>(), align_of::<T>());
                self
            }

            fn __cuda_std_write_many(self, count: usize) -> Self {
                observe::<WRITE>(self as usize, count * size_of::<T>(), align_of::<T>());
                self
            }
        }
    )* };
}
pointer!(*const T, *mut T);

macro_rules! reference {
    ($($(#[$doc:meta])* $name:ident: $borrow:tt;)*) => { $( reference!(@one [$(#[$doc])*] $name $borrow); )* };
    (@one [$(#[$doc:meta])*] $name:ident [$($borrow:tt)*]) => {
        $(#[$doc])*
        pub trait $name {
            #[inline(always)]
            fn __cuda_std_read($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_write($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_update($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_read_unaligned($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_write_unaligned($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_read_volatile($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_write_volatile($($borrow)* self) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_read_many($($borrow)* self, _: usize) -> $($borrow)* Self { self }
            #[inline(always)]
            fn __cuda_std_write_many($($borrow)* self, _: usize) -> $($borrow)* Self { self }
        }
    };
}
reference! {
    /// What a shared reference leads to.
    Reference: [&];
    /// What an exclusive reference leads to.
    Exclusive: [&mut];
}
impl<T: ?Sized> Reference for T {}
impl<T: ?Sized> Exclusive for T {}
