//! `#[kernel(name = "…")]`: a kernel over an argument struct, with an entry for each combination of its lists' values.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{
    Error, Expr, FnArg, GenericArgument, GenericParam, Ident, ItemFn, LitStr, Pat, Path, PathArguments, Type,
};

use crate::attribute::{Attribute, Instance, Value};
use crate::substitute;

/// A `#[shared(length)] name: Shared<T>` behind the arguments.
struct SharedArray {
    element: Type,
    length: Expr,
}

/// The function without what only the macro reads, the type of its arguments, and its shared arrays.
struct Kernel {
    function: ItemFn,
    arguments: Path,
    shared: Vec<SharedArray>,
}

pub fn expand(attribute: &Attribute, name: &LitStr, function: &ItemFn) -> syn::Result<TokenStream> {
    let kernel = Kernel::new(function)?;
    let instances = attribute.instances(name)?;
    let device = kernel.device_side(attribute, &instances)?;
    let host = kernel.host_side(attribute, &instances)?;
    Ok(quote!(#device #host))
}

impl Kernel {
    fn new(function: &ItemFn) -> syn::Result<Self> {
        let mut function = function.clone();
        let missing = || {
            let message = "a kernel with a `name` takes a `#[kernel_args]` struct";
            Error::new(function.sig.ident.span(), message)
        };
        let Some(FnArg::Typed(first)) = function.sig.inputs.first() else { return Err(missing()) };
        let Type::Path(path) = &*first.ty else { return Err(missing()) };
        let arguments = path.path.clone();
        let shared = function.sig.inputs.iter_mut().skip(1).map(shared_array).collect::<syn::Result<_>>()?;
        Ok(Self { function, arguments, shared })
    }

    /// The function, and what writes each entry that calls it.
    fn device_side(&self, attribute: &Attribute, instances: &[Instance]) -> syn::Result<TokenStream> {
        let function = &self.function;
        let (macro_path, types) = without_generics(&self.arguments);
        let mut entries = TokenStream::new();
        for instance in instances.iter().filter(|instance| !crate::kernel::is_left_out(&instance.entry)) {
            let bounds = attribute.bounds(&instance.values)?;
            let (only_for, lines) = crate::kernel::bounds_of_entry(&bounds, &instance.entry);
            let entry = Ident::new(&instance.entry, function.sig.ident.span());
            let types = types.iter().map(|of| instance.written_into(quote!(#of)));
            let body = self.body(&function.sig.ident, instance)?;
            let shared = self.shared.iter().map(|SharedArray { element, length }| {
                let array = instance.written_into(quote!(#element; #length));
                quote!(::cuda_std::shared_array![#array])
            });
            entries.extend(quote! {
                #lines
                #only_for
                #macro_path! { #entry, [#(#types),*], #body, (#(#shared),*) }
            });
        }
        Ok(quote! {
            #[cfg(target_arch = "nvptx64")]
            #[inline(always)]
            #function
            #entries
        })
    }

    /// All entries as one value, each with a function that one emulated thread runs.
    fn host_side(&self, attribute: &Attribute, instances: &[Instance]) -> syn::Result<TokenStream> {
        let ItemFn { attrs, vis, sig, block } = &self.function;
        let name = &sig.ident;
        let arguments = &self.arguments;
        let mut observed = block.clone();
        crate::observe::block(&mut observed);
        let mut signature = sig.clone();
        signature.ident = format_ident!("__cuda_std_body", span = Span::call_site());
        let lints = crate::kernel::lint_attributes(attrs);
        let any = instances.first().map(|instance| instance.written_into(quote!(#arguments)));
        let mut entries = Vec::new();
        for instance in instances {
            entries.push(self.host_entry(attribute, instance, &signature.ident)?);
        }
        let docs = attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
        Ok(quote! {
            #[cfg(not(target_arch = "nvptx64"))]
            #(#docs)*
            #vis const fn #name() -> &'static ::cuda_std::launch::Kernels<
                <#any as ::cuda_std::launch::KernelArgs>::Host
            > {
                #(#lints)*
                #signature #observed
                static KERNELS: ::cuda_std::launch::Kernels<
                    <#any as ::cuda_std::launch::KernelArgs>::Host
                > = ::cuda_std::launch::Kernels::new(&[#(#entries),*]);
                &KERNELS
            }
        })
    }

    fn host_entry(
        &self,
        attribute: &Attribute,
        instance: &Instance,
        function: &Ident,
    ) -> syn::Result<TokenStream> {
        let arguments = &self.arguments;
        let arguments = instance.written_into(quote!(<#arguments as ::cuda_std::launch::KernelArgs>));
        let body = self.body(function, instance)?;
        let shared = self.shared.iter().map(|SharedArray { element, length }| {
            let array = instance.written_into(quote!(#element; #length));
            quote!(::cuda_std::shared_array![#array])
        });
        let values = instance.values.iter().map(|(_, value)| match value {
            Value::Number(number) => quote!(::cuda_std::launch::Value::Number(#number)),
            Value::Type(_) => {
                let text = value.text();
                quote!(::cuda_std::launch::Value::Type(#text))
            }
        });
        let thread = quote! {{
            // Lengths are computed from a list's numbers, 1 among them.
            #[allow(clippy::identity_op)]
            unsafe fn __cuda_std_thread(params: *const *mut ::core::ffi::c_void) {
                // SAFETY: the caller hands over one pointer for each field, and keeps the kernel's contract.
                unsafe { #body(#arguments::read(params) #(, #shared)*) }
            }
            __cuda_std_thread
        }};
        let sizes = quote!(<#arguments::Host as ::cuda_std::launch::Arguments>::SIZES);
        let bounds = attribute.bounds(&instance.values)?;
        let kernel =
            crate::kernel::description(&bounds, &self.function.sig.ident, &instance.entry, &thread, &sizes);
        Ok(quote! {
            ::cuda_std::launch::Instance { values: &[#(#values),*], kernel: #kernel }
        })
    }

    /// A path to the function with the entry's values for its generic parameters.
    fn body(&self, function: &Ident, instance: &Instance) -> syn::Result<TokenStream> {
        let value = |parameter: &GenericParam| {
            let name = match parameter {
                GenericParam::Type(of) => &of.ident,
                GenericParam::Const(of) => &of.ident,
                GenericParam::Lifetime(of) => {
                    return Err(Error::new(of.span(), "a kernel has no lifetimes"));
                }
            };
            let value = instance
                .value(name)
                .ok_or_else(|| Error::new(name.span(), format!("there is no list of values for `{name}`")))?;
            Ok(quote!(#value))
        };
        let values = self.function.sig.generics.params.iter().map(value).collect::<syn::Result<Vec<_>>>()?;
        Ok(if values.is_empty() { quote!(#function) } else { quote!(#function::<#(#values),*>) })
    }
}

impl Instance {
    fn value(&self, name: &Ident) -> Option<&Value> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// `tokens` with the values in the places of their names.
    fn written_into(&self, tokens: TokenStream) -> TokenStream {
        substitute::idents(tokens, &mut |ident| self.value(ident).map(|value| quote!(#value)))
    }
}

/// Takes the attribute off a parameter behind the arguments.
fn shared_array(parameter: &mut FnArg) -> syn::Result<SharedArray> {
    let span = parameter.span();
    let refused = || Error::new(span, "expected `#[shared(length)] name: Shared<T>` behind the arguments");
    let FnArg::Typed(typed) = parameter else { return Err(refused()) };
    let place = typed.attrs.iter().position(|attribute| attribute.path().is_ident("shared"));
    let length = typed.attrs.remove(place.ok_or_else(refused)?).parse_args()?;
    let Type::Path(path) = &*typed.ty else { return Err(refused()) };
    let (_, arguments) = without_generics(&path.path);
    let [element] = arguments.as_slice() else { return Err(refused()) };
    if !matches!(&*typed.pat, Pat::Ident(_)) {
        return Err(refused());
    }
    Ok(SharedArray { element: element.clone(), length })
}

/// A path without the types behind its last word, and these.
fn without_generics(path: &Path) -> (Path, Vec<Type>) {
    let mut path = path.clone();
    let mut types = Vec::new();
    if let Some(last) = path.segments.last_mut()
        && let PathArguments::AngleBracketed(arguments) = std::mem::take(&mut last.arguments)
    {
        types.extend(arguments.args.into_iter().filter_map(|argument| match argument {
            GenericArgument::Type(of) => Some(of),
            _ => None,
        }));
    }
    (path, types)
}
