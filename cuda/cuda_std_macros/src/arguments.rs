//! `#[kernel_args]`: the arguments of a kernel as one struct.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Error, Fields, GenericParam, Generics, Ident, ItemStruct, Type};

/// A field as both sides need it.
struct Field<'a> {
    name: &'a Ident,
    docs: Vec<&'a Attribute>,
    device_type: &'a Type,
    host_type: TokenStream,
}

/// The struct as kernels take it, on the device the macro that writes entries with its fields as parameters, and on the
/// host the struct that a launch takes.
pub fn expand(arguments: &ItemStruct) -> syn::Result<TokenStream> {
    let parameters = type_parameters(&arguments.generics)?;
    let Fields::Named(named) = &arguments.fields else {
        return Err(Error::new(arguments.ident.span(), "a kernel's arguments need names"));
    };
    let fields = named.named.iter().map(|f| field(f, &parameters)).collect::<syn::Result<Vec<_>>>()?;
    let entries = entry_macro(&arguments.ident, &parameters, &fields);
    let host = host_side(arguments, &fields);
    Ok(quote! {
        #[derive(Clone, Copy)]
        #arguments
        #entries
        #host
    })
}

fn type_parameters(generics: &Generics) -> syn::Result<Vec<&Ident>> {
    let of_types = generics.params.iter().map(|parameter| match parameter {
        GenericParam::Type(of) => Ok(&of.ident),
        other => Err(Error::new(other.span(), "a kernel's arguments are generic over types alone")),
    });
    of_types.collect()
}

fn field<'a>(field: &'a syn::Field, parameters: &[&Ident]) -> syn::Result<Field<'a>> {
    let name = field.ident.as_ref().ok_or_else(|| Error::new(field.span(), "expected a name"))?;
    let host_type = match &field.ty {
        Type::Reference(reference) => {
            let message = "expected a raw pointer: a reference's lifetime does not cross a launch";
            return Err(Error::new(reference.span(), message));
        }
        Type::Ptr(pointer) => {
            // Which type it is is known when an entry is chosen.
            let target = &*pointer.elem;
            let target = if mentions(target, parameters) { quote!(u8) } else { quote!(#target) };
            if pointer.mutability.is_some() {
                quote!(::cuda_std::launch::DevicePtrMut<#target>)
            } else {
                quote!(::cuda_std::launch::DevicePtr<#target>)
            }
        }
        value if mentions(value, parameters) => {
            return Err(Error::new(value.span(), "only pointers may be generic"));
        }
        value => quote!(#value),
    };
    let docs = field.attrs.iter().filter(|attribute| attribute.path().is_ident("doc")).collect();
    Ok(Field { name, docs, device_type: &field.ty, host_type })
}

/// Whether one of `parameters` stands in the type.
fn mentions(of: &Type, parameters: &[&Ident]) -> bool {
    let mut found = false;
    crate::substitute::idents(quote!(#of), &mut |ident| {
        found |= parameters.contains(&ident);
        None
    });
    found
}

/// `Name! { entry, [types], body, (shared arrays) }`, which is imported along with the struct since it has its name.
///
/// Fields are parameters of their own: through pointers in a struct that is passed whole, the compiler would load with
/// generic instructions, for it does not know of them that they are global.
fn entry_macro(name: &Ident, parameters: &[&Ident], fields: &[Field]) -> TokenStream {
    let hidden = format_ident!("__kernel_args_{name}");
    let types: Vec<_> = parameters.iter().map(|parameter| quote!($#parameter:ty)).collect();
    let of =
        |types: &[TokenStream]| if types.is_empty() { quote!(#name) } else { quote!(#name<#(#types),*>) };
    let generic = of(&parameters.iter().map(|parameter| quote!(#parameter)).collect::<Vec<_>>());
    let chosen = of(&parameters.iter().map(|parameter| quote!($#parameter)).collect::<Vec<_>>());
    // By way of a trait, since types of fields need not be known where kernels are.
    let inputs = fields.iter().enumerate().map(|(i, field)| {
        let name = field.name;
        quote!(#name: <#chosen as ::cuda_std::launch::Field<#i>>::Type)
    });
    let impls = fields.iter().enumerate().map(|(i, field)| {
        let device_type = field.device_type;
        quote! {
            #[cfg(target_arch = "nvptx64")]
            impl<#(#parameters),*> ::cuda_std::launch::Field<#i> for #generic {
                type Type = #device_type;
            }
        }
    });
    let names = fields.iter().map(|field| field.name);
    quote! {
        #(#impls)*
        #[cfg(target_arch = "nvptx64")]
        macro_rules! #hidden {
            ($entry:ident, [#(#types),*], $body:path, ($($shared:expr),*)) => {
                ::cuda_std::__kernel_entry! { {} {} $entry (#(#inputs),*) {
                    // SAFETY: the kernel's own contract.
                    unsafe { $body(#name { #(#names),* } $(, $shared)*) }
                } }
            };
        }
        #[cfg(target_arch = "nvptx64")]
        #[allow(unused_imports)]
        pub(crate) use #hidden as #name;
    }
}

/// The struct of device addresses, and reading the other one back for an emulated thread.
fn host_side(arguments: &ItemStruct, fields: &[Field]) -> TokenStream {
    let ItemStruct { vis, ident: name, generics, .. } = arguments;
    let host = format_ident!("{name}Args");
    let doc =
        format!("What a launch takes for [`{name}`]; `u8` stands for the type that the entry is made for.");
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    let device_types: Vec<_> = fields.iter().map(|field| field.device_type).collect();
    let host_types: Vec<_> = fields.iter().map(|field| &field.host_type).collect();
    let docs = fields.iter().map(|field| {
        let docs = &field.docs;
        quote!(#(#docs)*)
    });
    let checks = fields.iter().map(|field| {
        let host_type = &field.host_type;
        quote_spanned!(field.device_type.span()=> ::cuda_std::launch::check_parameter::<#host_type>();)
    });
    let (count, places) = (fields.len(), 0..fields.len());
    quote! {
        #[cfg(not(target_arch = "nvptx64"))]
        #[doc = #doc]
        #[derive(Clone, Copy)]
        #vis struct #host {
            #(#docs pub #names: #host_types,)*
        }

        // SAFETY: one address and one size for each field, in their order, which is that of the entry's parameters.
        #[cfg(not(target_arch = "nvptx64"))]
        unsafe impl ::cuda_std::launch::Arguments for #host {
            type Addresses = [*mut ::core::ffi::c_void; #count];
            const SIZES: &'static [usize] = {
                #(#checks)*
                &[#(::core::mem::size_of::<#host_types>()),*]
            };

            fn addresses(&mut self) -> Self::Addresses {
                [#((&raw mut self.#names).cast::<::core::ffi::c_void>()),*]
            }
        }

        // SAFETY: the fields of `Host`, in their order, an address being a pointer.
        #[cfg(not(target_arch = "nvptx64"))]
        unsafe impl #impl_generics ::cuda_std::launch::KernelArgs for #name #type_generics #where_clause {
            type Host = #host;

            #[allow(unused_variables)]
            unsafe fn read(params: *const *mut ::core::ffi::c_void) -> Self {
                // SAFETY: the caller hands over one pointer for each field.
                unsafe { Self { #(#names: params.add(#places).read().cast::<#device_types>().read()),* } }
            }
        }
    }
}
