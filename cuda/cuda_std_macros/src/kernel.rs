//! `#[kernel]`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, FnArg, Ident, ItemFn, Lit, Pat, ReturnType, Token, Type};

/// The arguments of `#[kernel(…)]`; `None` where they are not given.
#[derive(Default)]
pub struct LaunchBounds {
    max_threads: Option<u32>,
    min_blocks: Option<u32>,
    requires: Option<String>,
}

impl Parse for LaunchBounds {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut bounds = Self::default();
        let argument = |input: ParseStream| -> syn::Result<(Ident, Lit)> {
            let name = input.parse()?;
            input.parse::<Token![=]>()?;
            Ok((name, input.parse()?))
        };
        for (name, value) in Punctuated::<_, Token![,]>::parse_terminated_with(input, argument)? {
            let given_before = match name.to_string().as_str() {
                "max_threads" => bounds.max_threads.replace(number(&value, 1024)?).is_some(),
                "min_blocks" => bounds.min_blocks.replace(number(&value, 32)?).is_some(),
                "requires" => bounds.requires.replace(architecture(&value)?).is_some(),
                _ => {
                    return Err(Error::new(
                        name.span(),
                        "expected `max_threads`, `min_blocks` or `requires`",
                    ));
                }
            };
            if given_before {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
        }
        if bounds.min_blocks.is_some() && bounds.max_threads.is_none() {
            return Err(input.error("`min_blocks` needs `max_threads` beside it"));
        }
        Ok(bounds)
    }
}

fn number(value: &Lit, limit: u32) -> syn::Result<u32> {
    let number = match value {
        Lit::Int(literal) => literal.base10_parse::<u32>().ok(),
        _ => None,
    };
    number
        .filter(|number| (1..=limit).contains(number))
        .ok_or_else(|| Error::new(value.span(), format!("expected a number from 1 to {limit}")))
}

fn architecture(value: &Lit) -> syn::Result<String> {
    match value {
        Lit::Str(literal) if literal.value().starts_with("sm_") => Ok(literal.value()),
        _ => Err(Error::new(value.span(), "expected an architecture such as `\"sm_90\"`")),
    }
}

/// A kernel's parameter as both sides need it.
struct Parameter<'a> {
    name: &'a Ident,
    device_type: &'a Type,
    host_type: TokenStream,
}

pub fn expand(bounds: &LaunchBounds, function: &ItemFn) -> syn::Result<TokenStream> {
    check_signature(function)?;
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
    if !signature.generics.params.is_empty() {
        return refuse(
            signature.generics.span(),
            "a kernel cannot be generic: write one entry per type, over a generic function",
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
    // `CudaBuilder::leave_out` sets it: what has no entry is not compiled.
    let left_out = std::env::var("CUDA_BUILDER_LEAVE_OUT").unwrap_or_default();
    let entry = name.to_string();
    if left_out.split(',').any(|prefix| !prefix.is_empty() && entry.starts_with(prefix)) {
        return TokenStream::new();
    }
    let only_for = match &bounds.requires {
        Some(architecture) => quote!(#[cfg(all(target_arch = "nvptx64", target_feature = #architecture))]),
        None => quote!(#[cfg(target_arch = "nvptx64")]),
    };
    let line = bounds.max_threads.map(|max_threads| {
        let line = format!("// launch_bounds {name} {max_threads} {}", bounds.min_blocks.unwrap_or(0));
        quote!(#only_for ::cuda_std::__module_line!(#line);)
    });
    quote! {
        #line
        #only_for
        ::cuda_std::__kernel_entry! { { #(#attrs)* } { #vis } #name ( #inputs ) #block }
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
    let (max_threads, min_blocks) = (bounds.max_threads.unwrap_or(0), bounds.min_blocks.unwrap_or(0));
    let requires = bounds.requires.as_deref().unwrap_or("");
    let device_types: Vec<_> = parameters.iter().map(|p| p.device_type).collect();
    let places = 0..parameters.len();
    let lint_attributes = attrs
        .iter()
        .filter(|attribute| ["allow", "expect", "warn"].iter().any(|name| attribute.path().is_ident(name)));
    // The position of the name, since line!() would be that of a macro that makes the kernel.
    let line = quote_spanned!(name.span()=> ::core::line!());
    let file = quote_spanned!(name.span()=> ::core::file!());
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
            static KERNEL: ::cuda_std::launch::Kernel = ::cuda_std::launch::Kernel {
                name: #entry,
                file: #file,
                line: #line,
                max_threads: #max_threads,
                min_blocks: #min_blocks,
                requires: #requires,
                body: __cuda_std_thread,
                parameters: &[#(::core::mem::size_of::<#device_types>()),*],
            };
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
