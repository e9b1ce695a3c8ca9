//! `#[kernel]`, `#[device]` and `shared_array!`; used through `cuda_std::prelude`, never directly.
//!
//! The macros decide nothing about instructions: what needs an unstable feature or names an LLVM intrinsic is
//! in `cuda_std`, in `macro_rules!` macros that these expand to.

use proc_macro::TokenStream;
use quote::quote;
use syn::parse_macro_input;

mod kernel;
mod observe;
#[cfg(test)]
mod refusals;
mod shared;

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
/// what only that one has; the launcher stays, and fails there because the module has no such kernel.
///
/// # Errors
/// Refused at compile time: a function that is not `unsafe`, is generic, `const` or `async`, returns
/// something, has a receiver, or takes a reference (lifetimes do not cross a launch), a pattern, or a value
/// that is not `Copy`.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let bounds = parse_macro_input!(attribute as kernel::LaunchBounds);
    let function = parse_macro_input!(item as syn::ItemFn);
    kernel::expand(&bounds, &function).unwrap_or_else(syn::Error::into_compile_error).into()
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
