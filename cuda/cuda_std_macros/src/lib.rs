//! `#[kernel]`, `#[kernel_args]`, `#[device]` and `shared_array!`; used through `cuda_std::prelude`, never directly.
//!
//! The macros decide nothing about instructions: what needs an unstable feature or names an LLVM intrinsic is
//! in `cuda_std`, in `macro_rules!` macros that these expand to.

use proc_macro::TokenStream;
use quote::quote;
use syn::parse_macro_input;

mod arguments;
mod attribute;
mod instances;
mod kernel;
mod lists;
mod observe;
#[cfg(test)]
mod refusals;
mod shared;
mod substitute;

/// Makes a function a kernel: an entry point on the device, a typed launcher and an emulated body on the host.
///
/// On `nvptx64` the function becomes an `extern "ptx-kernel"` entry of the same name (unmangled, so it must
/// be unique in the PTX module). On the host it becomes `unsafe fn name<L: Launcher>(launcher: &L, config:
/// &LaunchConfig, …parameters) -> Result<(), L::Error>`: `*const T` turns into `DevicePtr<T>`, `*mut T` into
/// `DevicePtrMut<T>`, every other type stays as it is and must be `Copy` with an alignment of at most 16. A
/// launch with wrong arguments does not compile.
///
/// `#[kernel(max_threads = 256, min_blocks = 2)]` promises a block of at most 256 threads and asks for
/// registers to be limited so that 2 blocks fit on a multiprocessor; `min_blocks` is optional. They travel to
/// `cuda_builder` as a comment line `// launch_bounds <entry> <max_threads> <min_blocks or 0>` in the PTX.
///
/// `#[kernel(requires = "sm_90")]` leaves the entry out of PTX for earlier architectures, so that it may use
/// what only that one has; the launcher stays, and fails there because the module has no such kernel. It is a comment line,
/// too: `// requires <entry> <architecture>`, for `cuda_builder::for_sm_80`.
///
/// # Kernels over an argument struct
/// `#[kernel(name = "…")]` takes a [`kernel_args`](macro@kernel_args) struct and makes one entry for each combination of the
/// values in its lists (cuda_std's tests have the like of it):
///
/// ```ignore
/// # use cuda_std::prelude::*;
/// #[kernel_args]
/// pub struct Scale<E> {
///     pub n: u32,
///     pub x: *const E,
///     pub out: *mut E,
/// }
///
/// /// `out[i] = N x[i]`
/// ///
/// /// # Safety
/// /// `x` and `out` hold `n` values; any 1-d grid with a thread for each.
/// #[kernel(E = [f16, bf16], N = [twice: 2, thrice: 3], name = "scale_{E}_{N}", max_threads = 256)]
/// pub unsafe fn scale<E: Element, const N: usize>(a: Scale<E>) {
///     let i = thread::index_1d();
///     if i < a.n {
///         // SAFETY: `i` is below `n`.
///         unsafe { *a.out.add(i as usize) = E::from_f32(N as f32 * (*a.x.add(i as usize)).to_f32()) }
///     }
/// }
///
/// # fn launch<L: Launcher>(launcher: &L, config: &LaunchConfig, x: DevicePtr<u8>, out: DevicePtrMut<u8>) -> Result<(), L::Error> {
/// // The host has all four as one value, and launches them with one struct.
/// let entry = scale().get(&["bf16".into(), 2_u32.into()]).expect("there is a list for each");
/// assert_eq!(entry.kernel().name, "scale_bf16_twice");
/// // SAFETY: the kernel's contract.
/// unsafe { entry.launch(launcher, config, ScaleArgs { n: 8, x, out }) }
/// # }
/// # fn main() {}
/// ```
///
/// A list is for one name or for several that change together: `(E, X) = [(f16, f16), (bf16, f32)]`. A value may have a
/// label, which stands for it (for the first of several) in the entry's name. Values are types and numbers. A name need
/// not be a parameter of the function: `min_blocks = B` takes its number from a list, too.
///
/// Values that several kernels share stand in a macro: `E = [f32, halves!]` has those of
///
/// ```ignore
/// macro_rules! halves {
///     ($call:path, $($rest:tt)*) => { $call! { [f16, bf16] $($rest)* } };
/// }
/// ```
///
/// Behind the arguments there may be shared arrays, `#[shared(length)] name: Shared<T>`: the length may be computed from the
/// names of the lists, which that of a [`shared_array!`] in the function cannot be.
///
/// # Errors
/// Refused at compile time: a function that is not `unsafe`, is generic without lists, `const` or `async`, returns
/// something, has a receiver, or takes a reference (lifetimes do not cross a launch), a pattern, or a value
/// that is not `Copy`.
///
/// A structure that is passed by value, without `name`, is one parameter: the compiler does not know that pointers in it
/// lead to global memory, and loads through them with slower generic instructions.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match lists::named(&attribute.clone().into(), &item.clone().into()) {
        Ok(None) => {}
        Ok(Some(call)) => return call.into(),
        Err(error) => return error.into_compile_error().into(),
    }
    let arguments = parse_macro_input!(attribute as attribute::Attribute);
    let function = parse_macro_input!(item as syn::ItemFn);
    kernel::expand(&arguments, &function).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// A [`kernel`](macro@kernel) whose attribute named a list, once the list's macro has said what is in it; never written by hand.
#[proc_macro]
#[doc(hidden)]
pub fn __kernel_of_list(input: TokenStream) -> TokenStream {
    let kernel = parse_macro_input!(input as lists::KernelOfList);
    kernel.expand().unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct the arguments of kernels: see [`kernel`](macro@kernel).
///
/// `Name<E>` stays as it is, its pointers being those of the device. The entry of a kernel has a parameter for each field,
/// from which it builds the struct. For launches the host gets `NameArgs`, in which `*const T` is `DevicePtr<T>`, `*mut T`
/// `DevicePtrMut<T>`, and a type that is a parameter of the struct `u8`: which one it is, the choice of an entry says.
///
/// # Errors
/// Refused at compile time: fields without names, references, values of a generic type, or that are not `Copy`.
#[proc_macro_attribute]
pub fn kernel_args(attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        let message = "expected `#[kernel_args]` without arguments";
        return syn::Error::new(proc_macro2::Span::call_site(), message).into_compile_error().into();
    }
    let arguments = parse_macro_input!(item as syn::ItemStruct);
    arguments::expand(&arguments).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Marks what kernels use: a function, `impl`, trait, struct, constant, `use`, `macro_rules!` or module.
///
/// On the device it changes nothing. On the host, where kernels run under emulation, plain memory accesses in its
/// functions are made visible to the emulator (`cuda_std::emulation` says which).
#[proc_macro_attribute]
pub fn device(attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        let message = "expected `#[device]` without arguments";
        return syn::Error::new(proc_macro2::Span::call_site(), message).into_compile_error().into();
    }
    let item = parse_macro_input!(item as syn::Item);
    let mut observed = item.clone();
    observe::item(&mut observed);
    if observed == item {
        return quote!(#item).into();
    }
    quote! {
        #[cfg(target_arch = "nvptx64")]
        #item
        #[cfg(not(target_arch = "nvptx64"))]
        #observed
    }
    .into()
}

/// `shared_array![T; N]`: a block's own array of `N` values of `T` in static shared memory, as
/// `cuda_std::shared::Shared<T>`.
///
/// Every place in the source where the macro stands is one array, aligned to 16 bytes and not initialised;
/// reaching it twice gives the same array. `T` and `N` are resolved in the module around the function:
/// neither may name a generic parameter or a constant inside the function. Kernels that do not reach the
/// array pay nothing for it.
#[proc_macro]
pub fn shared_array(input: TokenStream) -> TokenStream {
    let array = parse_macro_input!(input as shared::SharedArray);
    shared::expand(&array).into()
}
