//! What makes Rust a CUDA language on rustc's own `nvptx64-nvidia-cuda` target.
//!
//! A kernel crate starts with `use cuda_std::prelude::*;` and needs no `#![feature]` of its own:
//!
//! ```
//! use cuda_std::prelude::*;
//!
//! /// `out[i] = a * x[i]` for `i < n`; any 1-d grid, one thread an element.
//! ///
//! /// # Safety
//! /// `x` and `out` hold `n` values.
//! #[kernel(max_threads = 256)]
//! pub unsafe fn scale_f32_plain(n: u32, a: f32, x: *const f32, out: *mut f32) {
//!     let i = thread::index_1d();
//!     if i < n {
//!         unsafe { *out.add(i as usize) = a * *x.add(i as usize) }
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! Compiled for `nvptx64` that is an entry point; compiled for the host it is a launcher with typed arguments
//! ([`kernel`], [`launch`]), which a CUDA stream takes or, where there is no GPU, the
//! [`Emulator`](emulation::Emulator). Functions and types that kernels use are marked [`device`](macro@device).
//! Names are those of Rust-CUDA's `cuda_std` where it has them.
//!
//! # Two targets
//! Every operation exists on both, with one documentation. The public modules are common; what they are made of
//! is in `nvptx/` as instructions and in `host/` as emulation, function by function. How emulation works,
//! what it finds and what it cannot see is in [`emulation`].
//!
//! # Two routes to an instruction
//! Every `asm!` and every LLVM intrinsic of the project is in this crate. An operation in which threads take
//! part together (barrier, shuffle, vote, match, `redux`, `ldmatrix`, `mma`) is *convergent*: the compiler
//! must not copy it into two branches nor move it under another condition. LLVM knows that of its own
//! intrinsics and of no `asm!`, so these go through `nvptx/intrinsics.rs`. What a thread does alone (loads, stores,
//! atomics, copies, `mbarrier`, conversions) is `asm!` where Rust has no word for it. Each module states its
//! route. `asm!` that touches memory is never `nomem` nor `pure`, so the compiler keeps it on its side of
//! barriers and of other accesses. Device crates must be compiled with `-Zmir-enable-passes=-JumpThreading`
//! (`cuda_builder` does): that pass copies even intrinsics (rust-lang/rust#137086).
//!
//! # Compute capability
//! Everything works from sm_80 on unless its documentation says sm_90. A function that no kernel of a build
//! calls leaves nothing in the PTX, so a build for sm_80 may contain sm_90 code as long as only kernels
//! marked `#[kernel(requires = "sm_90")]` reach it; those are left out there.
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(internal_features),
    feature(abi_unadjusted, allow_internal_unstable, asm_experimental_arch, core_intrinsics, f16),
    feature(link_llvm_intrinsics, repr_simd, simd_ffi)
)]

#[cfg(not(target_arch = "nvptx64"))]
extern crate std;

pub mod async_copy;
pub mod atomic;
mod bits;
mod element;
#[cfg(not(target_arch = "nvptx64"))]
pub mod emulation;
mod exp;
pub mod f16x2;
pub mod float;
pub mod grid;
pub mod launch;
pub mod mbarrier;
pub mod memory;
pub mod mma;
pub mod prelude;
pub mod shared;
pub mod tensor_map;
pub mod thread;
pub mod warp;
pub mod wgmma;

/// The primitives that the modules above are made of: instructions on the device, emulation on the host.
#[cfg_attr(target_arch = "nvptx64", path = "nvptx/mod.rs")]
#[cfg_attr(not(target_arch = "nvptx64"), path = "host/mod.rs")]
mod target;

pub use bits::Bits;
#[doc(hidden)]
pub use cuda_std_macros::__kernel_of_list;
pub use cuda_std_macros::{device, kernel, kernel_args, shared_array};
pub use element::{Element, PackedElement, note_out_of_range};
pub use half;

/// A panic on the device stops the grid: the launch ends with "unspecified launch failure".
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::intrinsics::abort()
}

/// An `.entry`: written here because only this crate may name the unstable ABI.
#[doc(hidden)]
#[cfg(target_arch = "nvptx64")]
#[macro_export]
#[allow_internal_unstable(abi_ptx)]
macro_rules! __kernel_entry {
    ({ $($attribute:tt)* } { $($visibility:tt)* } $name:ident ($($inputs:tt)*) $body:block) => {
        $($attribute)*
        #[unsafe(no_mangle)]
        $($visibility)* unsafe extern "ptx-kernel" fn $name($($inputs)*) $body
    };
}

/// One line at the top of the PTX module.
#[doc(hidden)]
#[cfg(target_arch = "nvptx64")]
#[macro_export]
#[allow_internal_unstable(asm_experimental_arch)]
macro_rules! __module_line {
    ($line:literal) => {
        ::core::arch::global_asm!($line, options(raw));
    };
}
