//! `shared_array![T; N]`.

use std::sync::atomic::{AtomicUsize, Ordering};

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Expr, Token, Type};

/// The `T; N` between the brackets.
pub struct SharedArray {
    element: Type,
    length: Expr,
}

impl Parse for SharedArray {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let element = input.parse()?;
        input.parse::<Token![;]>()?;
        let length = input.parse()?;
        Ok(Self { element, length })
    }
}

/// One PTX variable and a handle to it. The variable's name holds the crate's name and a count, so that
/// arrays of several crates, and several arrays of one line, stay apart.
pub fn expand(array: &SharedArray) -> TokenStream {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let crate_name = std::env::var("CARGO_CRATE_NAME").unwrap_or_default();
    let name = format!("shared_{crate_name}_{count}");
    let SharedArray { element, length } = array;
    quote!(::cuda_std::__shared_array!(#name, #element, #length))
}
