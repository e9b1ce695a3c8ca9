//! The host's side of `#[kernel]`: device addresses that know their type, and what a launcher must be able to
//! do.
//!
//! # What the compiler sees
//! A launch whose arguments are those of the kernel compiles:
//! ```
//! use cuda_std::prelude::*;
//!
//! #[kernel]
//! pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}
//!
//! fn launch<L: Launcher>(
//!     launcher: &L, config: &LaunchConfig,
//!     x: DevicePtr<f32>, halves: DevicePtr<f16>, out: DevicePtrMut<f32>,
//! ) -> Result<(), L::Error> {
//!     unsafe { scale(launcher, config, 1, x, out) }
//! }
//! # fn main() {}
//! ```
//! One with a pointer to another type does not,
//! ```compile_fail
//! # use cuda_std::prelude::*;
//! # #[kernel]
//! # pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}
//! # fn launch<L: Launcher>(
//! #     launcher: &L, config: &LaunchConfig,
//! #     x: DevicePtr<f32>, halves: DevicePtr<f16>, out: DevicePtrMut<f32>,
//! # ) -> Result<(), L::Error> {
//! unsafe { scale(launcher, config, 1, halves, out) }
//! # }
//! # fn main() {}
//! ```
//! nor one with a pointer to read where the kernel writes,
//! ```compile_fail
//! # use cuda_std::prelude::*;
//! # #[kernel]
//! # pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}
//! # fn launch<L: Launcher>(
//! #     launcher: &L, config: &LaunchConfig,
//! #     x: DevicePtr<f32>, halves: DevicePtr<f16>, out: DevicePtrMut<f32>,
//! # ) -> Result<(), L::Error> {
//! unsafe { scale(launcher, config, 1, x, x) }
//! # }
//! # fn main() {}
//! ```
//! with a number of another type,
//! ```compile_fail
//! # use cuda_std::prelude::*;
//! # #[kernel]
//! # pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}
//! # fn launch<L: Launcher>(
//! #     launcher: &L, config: &LaunchConfig,
//! #     x: DevicePtr<f32>, halves: DevicePtr<f16>, out: DevicePtrMut<f32>,
//! # ) -> Result<(), L::Error> {
//! unsafe { scale(launcher, config, 1.0, x, out) }
//! # }
//! # fn main() {}
//! ```
//! or without one of its arguments.
//! ```compile_fail
//! # use cuda_std::prelude::*;
//! # #[kernel]
//! # pub unsafe fn scale(_n: u32, _x: *const f32, _out: *mut f32) {}
//! # fn launch<L: Launcher>(
//! #     launcher: &L, config: &LaunchConfig,
//! #     x: DevicePtr<f32>, halves: DevicePtr<f16>, out: DevicePtrMut<f32>,
//! # ) -> Result<(), L::Error> {
//! unsafe { scale(launcher, config, 1, x) }
//! # }
//! # fn main() {}
//! ```
//! A parameter that is not `Copy` makes no kernel:
//! ```compile_fail
//! # use cuda_std::prelude::*;
//! pub struct Owned(u32);
//!
//! #[kernel]
//! pub unsafe fn owned(_value: Owned) {}
//! # fn main() {}
//! ```

use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;

macro_rules! device_pointer {
    ($(#[$doc:meta])* $name:ident, $pointer:ty) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<T>(u64, PhantomData<$pointer>);

        impl<T> $name<T> {
            /// The pointer to a device address, as `cuMemAlloc` gives it.
            pub const fn from_raw(address: u64) -> Self {
                Self(address, PhantomData)
            }

            /// The device address.
            pub const fn as_raw(self) -> u64 {
                self.0
            }

            /// The pointer `elements` values of `T` further on.
            #[allow(clippy::should_implement_trait)]
            pub const fn add(self, elements: usize) -> Self {
                Self::from_raw(self.0 + (elements * size_of::<T>()) as u64)
            }

            /// The same address as a pointer to another type.
            pub const fn cast<U>(self) -> $name<U> {
                $name::from_raw(self.0)
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<T> {}

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        // SAFETY: an address of the device; the host never reads through it.
        unsafe impl<T> Send for $name<T> {}
        // SAFETY: as above.
        unsafe impl<T> Sync for $name<T> {}
    };
}

device_pointer! {
    /// An address in device memory that a kernel reads: the host's form of a `*const T` parameter.
    DevicePtr, *const T
}
device_pointer! {
    /// An address in device memory that a kernel writes: the host's form of a `*mut T` parameter.
    DevicePtrMut, *mut T
}

impl<T> From<DevicePtrMut<T>> for DevicePtr<T> {
    fn from(pointer: DevicePtrMut<T>) -> Self {
        Self::from_raw(pointer.as_raw())
    }
}

/// Grid, block and dynamic shared memory of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory for each block.
    pub shared_bytes: u32,
}

/// What `#[kernel]` knows of a kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its name, which is the entry's in the PTX.
    pub name: &'static str,
    /// The source file that defines it.
    pub file: &'static str,
    /// The line of its name there.
    pub line: u32,
    /// The largest block that it may be launched with; 0: not stated.
    pub max_threads: u32,
    /// Blocks that should fit on a multiprocessor; 0: not stated.
    pub min_blocks: u32,
    /// The first architecture that has it (`"sm_90"`); empty: all.
    pub requires: &'static str,
    /// Runs one thread of it, on the host, under [`emulation`](crate::emulation).
    ///
    /// # Safety
    /// One pointer for each parameter, to a live value of its type; and the kernel's own contract.
    pub body: unsafe fn(params: *const *mut c_void),
    /// The size of each parameter in bytes, in the order of the signature.
    pub parameters: &'static [usize],
}

/// The host's form of a [`kernel_args`](crate::kernel_args) struct: what a launch takes.
///
/// # Safety
/// `addresses` gives one pointer for each parameter of the entry, in order, each to a live value of its type; `SIZES` are
/// their sizes.
pub unsafe trait Arguments: Copy {
    /// An array of pointers.
    type Addresses: AsMut<[*mut c_void]>;
    /// The size of each parameter in bytes.
    const SIZES: &'static [usize];

    /// Where the parameters' values are.
    fn addresses(&mut self) -> Self::Addresses;
}

/// The type of field `INDEX` of a [`kernel_args`](crate::kernel_args) struct, on the device.
#[doc(hidden)]
pub trait Field<const INDEX: usize> {
    type Type;
}

/// A [`kernel_args`](crate::kernel_args) struct as kernels take it.
///
/// # Safety
/// `read` takes parameters as [`Arguments::addresses`] of `Host` gives them.
pub unsafe trait KernelArgs {
    /// The same with device addresses.
    type Host: Arguments;

    /// The arguments of an emulated thread.
    ///
    /// # Safety
    /// One pointer for each parameter, to a live value of its type.
    unsafe fn read(params: *const *mut c_void) -> Self;
}

/// What a name in a kernel's lists stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The type of that name: `f16`.
    Type(&'static str),
    /// A number.
    Number(u64),
}

impl From<&'static str> for Value {
    fn from(name: &'static str) -> Self {
        Self::Type(name)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// An entry of a kernel with lists.
#[derive(Debug)]
pub struct Instance {
    /// What it was made for, in the order of the lists.
    pub values: &'static [Value],
    /// The entry.
    pub kernel: Kernel,
}

/// All entries of a `#[kernel(name = "…")]`, which take the arguments `A`.
pub struct Kernels<A> {
    instances: &'static [Instance],
    arguments: PhantomData<fn(A)>,
}

impl<A> Kernels<A> {
    /// What the macro calls: the instances' parameters are those of `A`.
    #[doc(hidden)]
    pub const fn new(instances: &'static [Instance]) -> Self {
        Self { instances, arguments: PhantomData }
    }

    /// The entries, the last list's values changing first.
    pub const fn instances(&self) -> &'static [Instance] {
        self.instances
    }

    /// The first entry that was made for `values`, which may leave out the last ones.
    pub fn get(&self, values: &[Value]) -> Option<Entry<A>> {
        let instance = self.instances.iter().find(|instance| instance.values.starts_with(values))?;
        Some(Entry { kernel: &instance.kernel, arguments: PhantomData })
    }
}

/// An entry that takes the arguments `A`.
pub struct Entry<A> {
    kernel: &'static Kernel,
    arguments: PhantomData<fn(A)>,
}

impl<A: Arguments> Entry<A> {
    /// What is known of it.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Launches it.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    ///
    /// # Safety
    /// The launch keeps what the kernel states about its grid, its block and its pointers, which lead to values of the
    /// entry's types; they stay valid until the kernel has finished.
    pub unsafe fn launch<L: Launcher>(
        &self,
        launcher: &L,
        config: &LaunchConfig,
        mut arguments: A,
    ) -> Result<(), L::Error> {
        // SAFETY: the caller answers for the kernel's contract; the entry was compiled from the fields of `A`.
        unsafe { launcher.launch(self.kernel, config, arguments.addresses().as_mut()) }
    }
}

/// Starts kernels: a CUDA module and stream, the [`Emulator`](crate::emulation::Emulator), or a test's recorder.
pub trait Launcher {
    /// Why a launch failed.
    type Error;

    /// Starts `kernel` with `params`, one pointer to each parameter's value in the order of the signature.
    ///
    /// # Errors
    /// The kernel is not in the module, or the device refused the launch.
    ///
    /// # Safety
    /// Each pointer leads to a live value of the type that the kernel declares at that place, and the
    /// kernel's own contract holds for these values and `config`.
    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), Self::Error>;
}

/// What `#[kernel]` asks of a parameter's type, at compile time: `Copy`, and not aligned beyond what the
/// compiler's PTX backend accepts.
///
/// ```
/// #[repr(C, align(16))]
/// #[derive(Clone, Copy)]
/// struct Aligned([u32; 4]);
/// const _: () = cuda_std::launch::check_parameter::<Aligned>();
/// ```
///
/// ```compile_fail
/// #[repr(C, align(32))]
/// #[derive(Clone, Copy)]
/// struct Aligned([u32; 8]);
/// const _: () = cuda_std::launch::check_parameter::<Aligned>();
/// ```
#[doc(hidden)]
pub const fn check_parameter<T: Copy>() {
    assert!(align_of::<T>() <= 16, "a kernel parameter must be aligned to at most 16 bytes");
}
