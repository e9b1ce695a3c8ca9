//! `#[kernel]`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, Ident, ItemFn, Pat, ReturnType, Type};

use crate::attribute::{Attribute, LaunchBounds};

/// A kernel's parameter as both sides need it.
struct Parameter<'a> {
    name: &'a Ident,
    device_type: &'a Type,
    host_type: TokenStream,
}

pub fn expand(attribute: &Attribute, function: &ItemFn) -> syn::Result<TokenStream> {
    check_signature(function)?;
    if let Some(name) = &attribute.name {
        return crate::instances::expand(attribute, name, function);
    }
    if !function.sig.generics.params.is_empty() {
        let message =
            "a generic kernel needs a list of values for each of its parameters, and `name = \"…\"`";
        return Err(Error::new(function.sig.generics.span(), message));
    }
    let bounds = &attribute.bounds(&[])?;
    let parameters = function.sig.inputs.iter().map(parameter).collect::<syn::Result<Vec<_>>>()?;
    let entry = device_entry(bounds, function);
    let launcher = host_launcher(bounds, function, &parameters);
    Ok(quote!(#entry #launcher))
}

fn check_signature(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    let refuse = |span: Span, message: &str| Err(Error::new(span, message));
    if signature.unsafety.is_none() {
        return refuse(
            signature.fn_token.span,
            "a kernel must be an `unsafe fn`: nothing checks its pointers and its grid",
        );
    }
    if let ReturnType::Type(_, returned) = &signature.output {
        return refuse(returned.span(), "a kernel returns nothing: write results through a pointer");
    }
    if let Some(token) = &signature.asyncness {
        return refuse(token.span, "a kernel cannot be `async`");
    }
    if let Some(token) = &signature.constness {
        return refuse(token.span, "a kernel cannot be `const`");
    }
    if let Some(abi) = &signature.abi {
        return refuse(abi.span(), "`#[kernel]` sets the ABI itself");
    }
    if let Some(variadic) = &signature.variadic {
        return refuse(variadic.span(), "a kernel cannot be variadic");
    }
    Ok(())
}

fn parameter(argument: &FnArg) -> syn::Result<Parameter<'_>> {
    let FnArg::Typed(typed) = argument else {
        return Err(Error::new(argument.span(), "a kernel is a free function and has no `self`"));
    };
    let Pat::Ident(pattern) = &*typed.pat else {
        return Err(Error::new(typed.pat.span(), "expected a plain parameter name"));
    };
    let device_type = &*typed.ty;
    let host_type = match device_type {
        Type::Reference(_) => {
            return Err(Error::new(
                device_type.span(),
                "expected a raw pointer: a reference's lifetime does not cross a launch",
            ));
        }
        Type::Ptr(pointer) => {
            let target = &pointer.elem;
            if pointer.mutability.is_some() {
                quote!(::cuda_std::launch::DevicePtrMut<#target>)
            } else {
                quote!(::cuda_std::launch::DevicePtr<#target>)
            }
        }
        scalar => quote!(#scalar),
    };
    Ok(Parameter { name: &pattern.ident, device_type, host_type })
}

/// The `.entry`. `cuda_std::__kernel_entry!` writes the ABI, so that kernel crates need no `#![feature]` of
/// their own.
fn device_entry(bounds: &LaunchBounds, function: &ItemFn) -> TokenStream {
    let ItemFn { attrs, vis, sig, block } = function;
    let (name, inputs) = (&sig.ident, &sig.inputs);
    if is_left_out(&name.to_string()) {
        return TokenStream::new();
    }
    let (only_for, lines) = bounds_of_entry(bounds, &name.to_string());
    quote! {
        #lines
        #only_for
        ::cuda_std::__kernel_entry! { { #(#attrs)* } { #vis } #name ( #inputs ) #block }
    }
}

/// Whether there is to be no entry of that name. `CudaBuilder::leave_out` and `part` say so: what has no entry is not compiled.
pub fn is_left_out(entry: &str) -> bool {
    let is_named = |variable: &str| {
        let prefixes = std::env::var(variable).ok().filter(|prefixes| !prefixes.is_empty())?;
        Some(prefixes.split(',').any(|prefix| !prefix.is_empty() && entry.starts_with(prefix)))
    };
    is_named("CUDA_BUILDER_LEAVE_OUT") == Some(true) || is_named("CUDA_BUILDER_ONLY") == Some(false)
}

/// The condition under which there is an entry, and the lines that tell `cuda_builder` its bounds and what it requires.
pub fn bounds_of_entry(bounds: &LaunchBounds, entry: &str) -> (TokenStream, TokenStream) {
    let only_for = match bounds.requires.as_str() {
        "" => quote!(#[cfg(target_arch = "nvptx64")]),
        architecture => quote!(#[cfg(all(target_arch = "nvptx64", target_feature = #architecture))]),
    };
    let launch_bounds = (bounds.max_threads > 0)
        .then(|| format!("// launch_bounds {entry} {} {}", bounds.max_threads, bounds.min_blocks));
    let requires = (!bounds.requires.is_empty()).then(|| format!("// requires {entry} {}", bounds.requires));
    let lines = launch_bounds.iter().chain(&requires);
    let lines = quote!(#(#only_for ::cuda_std::__module_line!(#lines);)*);
    (only_for, lines)
}

/// The attributes that say which lints hold.
pub fn lint_attributes(attributes: &[syn::Attribute]) -> impl Iterator<Item = &syn::Attribute> {
    let names = ["allow", "expect", "warn"];
    attributes.iter().filter(move |attribute| names.iter().any(|name| attribute.path().is_ident(name)))
}

/// What the host knows of an entry: `thread` is the function that one emulated thread runs, `sizes` are those of the
/// parameters.
pub fn description(
    bounds: &LaunchBounds,
    name: &Ident,
    entry: &str,
    thread: &TokenStream,
    sizes: &TokenStream,
) -> TokenStream {
    let LaunchBounds { max_threads, min_blocks, requires } = bounds;
    // The position of the name, since line!() would be that of a macro that makes the kernel.
    let line = quote_spanned!(name.span()=> ::core::line!());
    let file = quote_spanned!(name.span()=> ::core::file!());
    quote! {
        ::cuda_std::launch::Kernel {
            name: #entry,
            file: #file,
            line: #line,
            max_threads: #max_threads,
            min_blocks: #min_blocks,
            requires: #requires,
            body: #thread,
            parameters: #sizes,
        }
    }
}

/// The launcher: copies every argument to its own variable and hands their addresses over, in order, with what
/// there is to know of the kernel. That includes its body, as an ordinary function that one emulated thread
/// runs.
fn host_launcher(bounds: &LaunchBounds, function: &ItemFn, parameters: &[Parameter]) -> TokenStream {
    let ItemFn { attrs, vis, sig, block } = function;
    let name = &sig.ident;
    let entry = name.to_string();
    // `mixed_site`: a kernel may have a parameter called `config` or `launcher` itself.
    let launcher = Ident::new("launcher", Span::mixed_site());
    let config = Ident::new("config", Span::mixed_site());
    let values: Vec<_> =
        (0..parameters.len()).map(|i| format_ident!("value_{i}", span = Span::mixed_site())).collect();
    let names = parameters.iter().map(|p| p.name);
    let arguments = parameters.iter().map(|p| {
        let (name, host_type) = (p.name, &p.host_type);
        quote!(#name: #host_type)
    });
    let checks = parameters.iter().map(|p| {
        let device_type = p.device_type;
        quote_spanned!(device_type.span()=> ::cuda_std::launch::check_parameter::<#device_type>();)
    });
    let mut observed = block.clone();
    crate::observe::block(&mut observed);
    let inputs = &sig.inputs;
    let device_types: Vec<_> = parameters.iter().map(|p| p.device_type).collect();
    let places = 0..parameters.len();
    let lint_attributes = lint_attributes(attrs);
    let thread = quote!(__cuda_std_thread);
    let sizes = quote!(&[#(::core::mem::size_of::<#device_types>()),*]);
    let description = description(bounds, name, &entry, &thread, &sizes);
    quote! {
        #[cfg(not(target_arch = "nvptx64"))]
        #(#attrs)*
        #[doc = ""]
        #[doc = "# Safety"]
        #[doc = "The launch must keep what the kernel states about its grid, its block and its pointers;"]
        #[doc = "the pointers must stay valid until the kernel has finished."]
        #[allow(clippy::too_many_arguments)]
        #vis unsafe fn #name<L: ::cuda_std::launch::Launcher>(
            #launcher: &L,
            #config: &::cuda_std::launch::LaunchConfig,
            #(#arguments),*
        ) -> ::core::result::Result<(), L::Error> {
            const _: () = { #(#checks)* };
            #(#lint_attributes)*
            #[allow(clippy::too_many_arguments)]
            unsafe fn __cuda_std_body(#inputs) #observed
            unsafe fn __cuda_std_thread(#[allow(unused_variables)] params: *const *mut ::core::ffi::c_void) {
                // SAFETY: the caller hands over one pointer for each parameter, and keeps the kernel's contract.
                unsafe { __cuda_std_body(#(params.add(#places).read().cast::<#device_types>().read()),*) }
            }
            static KERNEL: ::cuda_std::launch::Kernel = #description;
            #(let mut #values = #names;)*
            // SAFETY: the caller answers for the kernel's contract; name, number and types of the parameters
            // come from the signature that the entry point was compiled from.
            unsafe {
                ::cuda_std::launch::Launcher::launch(
                    #launcher,
                    &KERNEL,
                    #config,
                    &mut [#((&raw mut #values).cast::<::core::ffi::c_void>()),*],
                )
            }
        }
    }
}
